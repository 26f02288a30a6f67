"""Tensor files larger than memory, in the format of :func:`oasis_monai.files.save_tensors`: written piece by piece, read by
mapping them, so that only what is indexed is ever read into memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from oasis_monai.files import atomic_path

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
CHECKSUM = 32  # bytes of sha256 before the safetensors file proper
PIECE = 1 << 24  # bytes written at a time


def map_tensors(path: str | Path, check: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """As :func:`oasis_monai.files.load_tensors`, but the tensors' values stay on disk until they are used. Tensors may be written
    to; the file does not change.

    Args:
        check: read the file through once and compare its checksum (in bounded memory); False where that has just been done.

    Raises:
        OSError: the file is absent, unreadable, or cannot be mapped.
        ValueError: it is truncated or a byte of it changed.
    """
    with open(path, "rb") as stream:
        told = stream.read(CHECKSUM)
        if check and hashlib.file_digest(stream, "sha256").digest() != told:
            raise ValueError(f"{path}: expected the content of its sha256, found other bytes; delete it to have it made again")
        stream.seek(CHECKSUM)
        length = int.from_bytes(stream.read(8), "little")
        start = CHECKSUM + 8 + length
        if len(told) < CHECKSUM or start > stream.seek(0, 2):
            raise ValueError(f"{path}: expected a file of tensors, found a shorter one")
        stream.seek(CHECKSUM + 8)
        header = json.loads(stream.read(length))
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    meta = json.loads(header.pop("__metadata__", {}).get("meta", "{}"))
    return {name: _view(data, start, entry) for name, entry in header.items()}, meta


def _view(data: mmap.mmap, start: int, entry: Mapping[str, Any]) -> torch.Tensor:
    shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + entry["data_offsets"][0]).reshape(shape)


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Write the very bytes of :func:`oasis_monai.files.save_tensors`, needing no memory for a second copy of them."""
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
        stream.write(bytes(CHECKSUM))  # its place is kept for the end, when it is known
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
