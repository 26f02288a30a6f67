"""Tensor files that are mapped: the same bytes as those written at once, read without being loaded, damage told."""

import hashlib
import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.utils.tensor_files import DTYPES, load_tensors, map_tensors, save_tensors

META = {"cases": ["ä", "b"], "classes": 2}


@pytest.fixture
def tensors():
    random = torch.Generator().manual_seed(0)
    made = {f"t{name.lower()}": (9 * torch.rand(5, 3, 2, generator=random)).to(dtype) for name, dtype in DTYPES.items()}
    return made | {"é": torch.arange(5), "none": torch.empty(0, 4), "scalar": torch.tensor(2.5), "turned": torch.rand(4, 3).T}


def equal(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_written_in_pieces_are_the_bytes_of_safetensors(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr("oasis_monai.utils.tensor_files.PIECE", 16)
    save_tensors(tmp_path / "pieces", tensors, META)
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    expected = safetensors.torch.save(plain, metadata={"meta": json.dumps(META, sort_keys=True)})
    assert (tmp_path / "pieces").read_bytes() == hashlib.sha256(expected).digest() + expected


def test_loaded_is_what_was_saved_each_tensor_in_memory_of_its_own(tensors, tmp_path):
    save_tensors(tmp_path / "a", tensors, META)
    found, meta = load_tensors(tmp_path / "a")
    assert meta == META
    assert equal(found, tensors)
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in found.values())


def test_mapped_is_what_was_saved_and_writing_to_it_leaves_the_file(tensors, tmp_path):
    save_tensors(tmp_path / "a", tensors, META)
    before = (tmp_path / "a").read_bytes()
    found, meta = map_tensors(tmp_path / "a")
    assert meta == META
    assert equal(found, tensors)
    found["tf32"] += 1
    assert torch.equal(found["tf32"], tensors["tf32"] + 1)
    assert (tmp_path / "a").read_bytes() == before


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("change", ["truncate", "flip", "empty", "head", "none"])
def test_damage_is_told(tensors, tmp_path, change, check):
    path = tmp_path / "a"
    save_tensors(path, tensors, META)
    raw = bytearray(path.read_bytes())
    if change == "flip":
        raw[-1] ^= 1
    elif change == "head":
        raw[34] ^= 255
    path.write_bytes({"truncate": raw[:-9], "empty": b""}.get(change, raw))
    if change == "none" or (change == "flip" and not check):  # what nobody looks at is not seen
        assert map_tensors(path, check)[1] == META
    else:
        with pytest.raises(ValueError, match=r"expected|buffer"):
            map_tensors(path, check)
        with pytest.raises(ValueError, match="expected"):
            load_tensors(path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_mapped_library_needs_memory_for_what_is_used_alone(tmp_path):
    """98 MB of images and labels on disk, of which six slices are looked at."""
    count, side = 1200, 128
    labels, images = torch.zeros(count, 1, side, side, dtype=torch.uint8), torch.ones(count, 1, side, side)
    features = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    AtlasLibrary(images, labels, features, ("a",) * count, torch.arange(count), 2).save(tmp_path / "library")
    code = """
import sys
from pathlib import Path
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.selection import nearest
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before = resident()
library = AtlasLibrary.load(sys.argv[1])
indices, _ = nearest(library.features[7:8], library.features, 6)
print(int(indices[0, 0]), float(library.images[indices[0]].float().mean()), resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "library")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    row, mean, megabytes = map(float, done.stdout.split())
    assert (row, mean) == (7, 1)
    assert megabytes < 40
