"""Tensor files with a checksum, in the safetensors format, also for tensors larger than memory.

Large files are written piece by piece and read by memory mapping, so that only indexed values are ever loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from oasis_monai.utils.files import atomic_path

DTYPES = {  # safetensors' names, in the order in which it lays tensors out: every one stays aligned
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHECKSUM = 32  # bytes of the sha256 that precedes the safetensors content
PIECE = 1 << 24  # bytes written at a time


def map_tensors(path: str | Path, check: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """As :func:`.load_tensors`, but the tensors' values stay on disk until they are used. Tensors may be written
    to; the file does not change.

    Args:
        check: read the file through once and compare its checksum (in bounded memory); False where that has just been done.

    Raises:
        OSError: the file is absent, unreadable, or cannot be mapped.
        ValueError: it is truncated or a byte of it changed.
    """
    with open(path, "rb") as stream:
        stored_checksum = stream.read(CHECKSUM)
        if check and hashlib.file_digest(stream, "sha256").digest() != stored_checksum:
            raise ValueError(f"{path}: expected the content of its sha256, found other bytes; delete it to have it made again")
        stream.seek(CHECKSUM)
        length = int.from_bytes(stream.read(8), "little")
        start = CHECKSUM + 8 + length
        if len(stored_checksum) < CHECKSUM or start > stream.seek(0, 2):
            raise ValueError(f"{path}: expected a file of tensors, found a shorter one")
        stream.seek(CHECKSUM + 8)
        header = json.loads(stream.read(length))
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    meta = json.loads(header.pop("__metadata__", {}).get("meta", "{}"))
    return {name: _view(data, start, entry) for name, entry in header.items()}, meta


def _view(data: mmap.mmap | bytearray, start: int, entry: Mapping[str, Any]) -> torch.Tensor:
    shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + entry["data_offsets"][0]).reshape(shape)


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Write a flat dict of tensors and a JSON-able ``meta`` with a sha256 over the content, whole or not at all.

    The content is what the library safetensors writes, byte for byte, but no second copy of it is held in memory.
    """
    names = sorted(tensors, key=lambda name: (list(NAMES).index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"meta": json.dumps(dict(meta or {}), sort_keys=True, allow_nan=False)}}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    total = hashlib.sha256()
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(bytes(CHECKSUM))  # placeholder: the checksum is known only at the end
        head = len(text).to_bytes(8, "little") + text
        for piece in itertools.chain([head], _pieces(tensors[name] for name in names)):
            total.update(piece)
            stream.write(piece)
        stream.seek(0)
        stream.write(total.digest())


def _pieces(tensors: Iterable[torch.Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        for part in tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).split(PIECE):
            yield part.numpy().tobytes()


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        OSError: the file is absent or unreadable.
        ValueError: it is truncated or a byte of it changed (one flipped byte would otherwise load in silence).
    """
    raw = bytearray(Path(path).read_bytes())
    if len(raw) < CHECKSUM + 8 or hashlib.sha256(memoryview(raw)[CHECKSUM:]).digest() != raw[:CHECKSUM]:
        raise ValueError(f"{path}: expected the content of its sha256, found other bytes; delete it to have it made again")
    start = CHECKSUM + 8 + int.from_bytes(raw[CHECKSUM : CHECKSUM + 8], "little")
    header = json.loads(raw[CHECKSUM + 8 : start])
    meta = json.loads(header.pop("__metadata__", {}).get("meta", "{}"))
    # copies: a tensor that is kept must not hold the whole file
    return {name: _view(raw, start, entry).clone() for name, entry in header.items()}, meta


def load_if_whole(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read a cached file; None when it is absent or damaged (with a warning), so that the caller computes it again."""
    try:
        return load_tensors(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        _warn_damaged(str(path), type(error).__name__)
        return None


@cache  # one warning per process: a checkpoint is read several times before it is replaced
def _warn_damaged(path: str, kind: str) -> None:
    logging.getLogger(__name__).warning("warning: %s is damaged (%s); it is computed again", path, kind)
