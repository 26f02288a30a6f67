"""Out of memory: smaller batches give the same result, and where nothing smaller is left the setting is named."""

import platform
import resource

import pytest
import torch

from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks.segmentation import NetworkSettings, Predictor, make_network
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.estimate import Estimator
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.utils.errors import OasisError
from oasis_monai.utils.memory import Batched, keep_freed_memory, out_of_memory
from tests.segmentation.test_alignment import MeanShift as Known
from tests.segmentation.test_alignment import library_of, targets_of

CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "9007199254740992 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB."


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (RuntimeError(CPU), True),
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_it):
    assert out_of_memory(error) is is_it


def test_torch_s_own_error_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert out_of_memory(caught.value)


class Small(Batched):
    """Takes ``most`` rows at once, and remembers what it was asked."""

    def __init__(self, batch, most):
        self.batch, self.most, self.tried = batch, most, []

    def work(self, part):
        self.tried.append((part.start, part.stop))
        if part.stop - part.start > self.most:
            raise RuntimeError(CPU)
        return list(range(part.start, part.stop))


def test_batches_are_halved_from_where_memory_ran_out(caplog):
    small = Small(8, 3)
    parts = list(small.in_batches(11, small.work))
    assert [row for _, made in parts for row in made] == list(range(11))
    assert all(made == list(range(part.start, part.stop)) for part, made in parts)
    assert small.tried[:4] == [(0, 8), (0, 4), (0, 2), (2, 4)]
    assert small.batch == 2
    assert [r.getMessage() for r in caplog.records] == [
        "warning: align_batch: out of memory with 8 at once; continuing with 4",
        "warning: align_batch: out of memory with 4 at once; continuing with 2",
    ]


def test_without_memory_for_one_the_setting_is_named():
    small = Small(2, 0)
    with pytest.raises(OasisError, match=r"^Out of memory, even for one image at a time \(RuntimeError: ") as caught:
        list(small.in_batches(3, small.work))
    assert "Lower preprocessing.size" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_error_is_not_taken_for_it():
    def broken(_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(Small(8, 8).in_batches(3, broken))


def bounded(module, most):
    """``module`` whose forward refuses more than ``most`` rows at once."""
    whole = module.forward

    def forward(image, *more):
        if len(image) > most:
            raise torch.OutOfMemoryError(CUDA)
        return whole(image, *more)

    module.forward = forward
    return module


class Narrow(Known):
    """The stub of the aligner's tests on a machine with memory for two pairs."""

    def field(self, atlas, target):
        if len(atlas) > 2:
            raise RuntimeError(CPU)
        return super().field(atlas, target)


def test_alignment_and_overlaps_are_the_same_in_what_memory_allows(caplog):
    library = library_of(6)
    wide, narrow = Aligner(Known(), batch=8), Aligner(Narrow(), batch=8)
    atlases, targets = library.images[[0, 1, 2, 3, 4]], targets_of(0.1, 0.2, 0.3, 0.4, 0.5)
    assert torch.equal(narrow.fields(atlases, targets), wide.fields(atlases, targets))
    assert narrow.batch == 2
    narrow.batch = 8
    rows = torch.arange(6)
    assert torch.equal(LoaTable(library, narrow).matrix(rows), LoaTable(library, wide).matrix(rows))
    assert "warning: align_batch: out of memory with 8 at once; continuing with 4" in caplog.messages


def test_memory_that_ends_while_labels_are_warped_loses_none(monkeypatch):
    from oasis_monai.networks import warp

    library, rows = library_of(6), torch.arange(6)
    want = LoaTable(library, Aligner(Known(), batch=8)).matrix(rows)
    image = targets_of(0.3)[0, ..., None]
    grid = Geometry(tuple(image.shape[1:]), torch.eye(4).double().numpy())
    target = Preprocessed("t", image, None, grid, grid)
    methods, features = ("FWAL", "majority"), library.features[:1]  # no LOA, which would meet the end before them
    fused, *_ = Segmenter(library, Aligner(Known(), batch=8))(target, features, methods, (6,))
    whole = warp.warp_pair
    called = []

    def short(images, labels, ddf):
        called.append(len(images))
        if len(images) > 3:
            raise RuntimeError(CPU)
        return whole(images, labels, ddf)

    monkeypatch.setattr(warp, "warp_pair", short)
    assert torch.equal(LoaTable(library, Aligner(Known(), batch=8)).matrix(rows), want)
    assert max(called) > 3  # it did end
    again, *_ = Segmenter(library, Aligner(Known(), batch=8))(target, features, methods, (6,))
    for key, result in fused.items():
        torch.testing.assert_close(again[key].probability, result.probability, msg=str(key))


@pytest.mark.parametrize("patch", [None, (8, 8)])
def test_networks_predict_the_same_in_what_memory_allows(patch):
    settings = NetworkSettings(unet=(4, 8), dynunet=(4, 8), patch=patch)
    torch.manual_seed(0)
    model = make_network("U-Net2D", 2, settings)
    images = torch.randn(5, 1, 16, 16)
    want = Predictor(model, "U-Net2D", settings, batch=1)(images)
    narrow = Predictor(bounded(model, 2), "U-Net2D", settings, batch=8)
    torch.testing.assert_close(narrow(images), want, atol=1e-6, rtol=0)
    assert narrow.batch <= 2
    with pytest.raises(OasisError, match=r"^Out of memory, even for one image at a time"):
        Predictor(bounded(model, 0), "U-Net2D", settings, batch=8)(images)


def test_estimates_are_the_same_in_what_memory_allows(caplog):
    class Mean(torch.nn.Module):
        def forward(self, image):
            return torch.cat([image.mean(1, keepdim=True), image[:, :1]], 1)

    slices = torch.randn(5, 3, 8, 8)
    want = Estimator(Mean(), batch=1)(slices)
    assert torch.equal(Estimator(bounded(Mean(), 2), batch=32)(slices), want)
    assert caplog.messages[0] == "warning: preprocessing.size: out of memory with 5 at once; continuing with 2"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_kept_while_networks_train():
    def faults() -> int:
        """Page faults of making a tensor of 24 MiB five times, once it has been made before."""
        torch.ones(6 * 2**20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(6 * 2**20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with keep_freed_memory():
        faults()  # what lies in the way is moved once
        assert faults() < 1000  # 6144 pages each time it is given back
