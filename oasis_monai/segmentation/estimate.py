"""The joint model's first estimate of the target's label, before any atlas is aligned.

The ImageNet network that selects the atlases (EfficientNet-Lite0) also reads the target: its pre-trained stages are the encoder
of a U-Net that labels one axial slice. The slices above and below it are the other two colour channels. The estimate is used
three times: as an input channel of the joint STM, as the reference for the overlap of the atlases' labels (LOA), and in the vote
with them. (DeepAtlas of Xu and Niethammer, arXiv 1904.08465, trains both networks together for the same reason: a segmentation
shows the registration where the structure is.) With a handful of labelled scans a pre-trained encoder is worth more than any
width of an untrained one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import append_atlas_channels, context_slices, expected_shapes, nearest_slice_atlases
from oasis_monai.data.types import Preprocessed
from oasis_monai.networks.layers import without_batch_norms
from oasis_monai.networks.segmentation import NetworkSettings, Predictor
from oasis_monai.networks.slice_unet import VIEWS, SliceUNet, SliceUNetEnsemble, with_neighbours
from oasis_monai.segmentation.packed import Networks, PackedNetworks, SlicePacker
from oasis_monai.transforms.labels import MANY
from oasis_monai.utils.device import infer_in_bfloat16
from oasis_monai.utils.interpolation import enlarge, pool
from oasis_monai.utils.memory import Batched

OVERLAP = 0.25  # of the windows in which large slices are seen
FAINT = 0.05  # a slice without a foreground probability above this is background; test-time views are skipped
ESTIMATE_VERSION = 2
"""Raise it with every change after which the same networks estimate otherwise, so that what is known of others is not used."""
MOST_SEEN = 5 * 2**22
"""Voxels of a scan that the slice network sees, copies for test-time augmentation counted: four views of a scan of up to four
million voxels, two of one of seven, none of a larger one."""
MOST_VALUES = 2**23  # of the probabilities of slices seen at once where classes are many: 32 MiB, which the system gives again
MOST_PIXELS = 2**21  # of the slices that the network is given at once; those of the usual working grids are fewer


Network = Callable[[torch.Tensor], torch.Tensor]
"""(B, c, \\*s) images -> (B, C, \\*s) probabilities."""


class Estimate(NamedTuple):
    """What the networks of a joint model make of a scan.

    Args:
        networks: (V, C, \\*S) probabilities of each network on the working grid, the slice network first.
        fine: (V, C, \\*F) the same on the fine grid, packed where classes are many; None without one.
    """

    networks: torch.Tensor
    fine: Networks | None = None


def rotate_and_scale(images: torch.Tensor, angle: float, scale: float, back: bool = False) -> torch.Tensor:
    """Resample slices (B, c, x, y) on a field of view rotated by ``angle`` radians and ``scale`` times as large; ``back`` undoes
    it. Voxels are assumed square. Volumes (B, c, x, y, z) are resampled slice by slice."""
    if images.ndim == 5:
        slices = images.permute(0, 4, 1, 2, 3)
        made = rotate_and_scale(slices.flatten(0, 1), angle, scale, back)
        return made.unflatten(0, slices.shape[:2]).permute(0, 2, 3, 4, 1)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos, -sin], [sin, cos]]) * scale
    matrix = torch.linalg.inv(matrix) if back else matrix
    size = torch.tensor(
        [float(images.shape[3]), float(images.shape[2])]
    )  # torch's normalised coordinates start with the last axis
    matrix = matrix * size[None, :] / size[:, None]
    theta = torch.cat([matrix, torch.zeros(2, 1)], 1).to(images).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros" if back else "border", align_corners=False)


class Estimator(Batched):
    """The trained segmentation networks of a joint model: a volume in, class probabilities out.

    Args:
        model: the slice network, or several whose probabilities are averaged.
        tta_flip, tta_views: see :class:`JointSettings`.
        device: where it runs.
        batch: slices per forward pass.
        bfloat16: run the networks in bfloat16, see :func:`oasis_monai.utils.device.infer_in_bfloat16`.
        window: most voxels a side of what the slice network sees at once; larger slices in windows that overlap. None: all.
        volume_network: (B, c, \\*s) -> (B, C, \\*s) probabilities on a grid coarser by ``stride``; None without one.
    """

    memory_setting = "preprocessing.size"

    def __init__(
        self,
        model: SliceUNet | SliceUNetEnsemble,
        tta_flip: bool = True,
        device: str | torch.device = "cpu",
        batch: int = 32,
        volume_network: Callable[[torch.Tensor], torch.Tensor] | None = None,
        stride: Sequence[int] = (2, 2, 1),
        tta_views: int = 0,
        bfloat16: bool | None = None,
        window: int | None = None,
    ) -> None:
        self.window = window
        self.model, self.tta_flip, self.tta_views = model.to(device).eval(), tta_flip, tta_views
        members = model.members if isinstance(model, SliceUNetEnsemble) else [model]
        classes: Any = getattr(members[0], "classes", 0)  # of a network that does not say: few
        self.classes = int(classes)
        self._fused = [
            without_batch_norms(member) for member in members
        ]  # used for inference; the model itself is what gets saved
        self.device, self.batch = torch.device(device), batch
        self.bfloat16 = infer_in_bfloat16(self.device, bfloat16)
        self.volume_network, self.stride = volume_network, tuple(stride)

    def without_views(self) -> Estimator:
        """The same estimator without rotated and scaled copies, in a third of the time."""
        return self.quick(self.tta_flip) if self.tta_views else self

    def quick(self, tta_flip: bool = False) -> Estimator:
        """The same estimator without copies, with or without the mirrored ones."""
        arguments = (self.model, tta_flip, self.device, self.batch, self.volume_network, self.stride)
        return Estimator(*arguments, bfloat16=self.bfloat16, window=self.window)

    @torch.inference_mode()
    def __call__(self, slices: torch.Tensor, most_views: int | None = None) -> torch.Tensor:
        """(B, 3c + extra, x, y) slices with their neighbours (and atlases) -> (B, C, x, y) float32 probabilities on the CPU, with
        ``tta_views`` views, but no more than ``most_views``."""
        views = self.tta_views if most_views is None else min(self.tta_views, most_views)

        def estimate(rows: slice) -> torch.Tensor:
            part = slices[rows].to(self.device, torch.float32)
            return self._averaged(self._seen, part, views).cpu()

        return torch.cat([made for _, made in self.in_batches(len(slices), estimate)])

    def _averaged(self, network: Network, images: torch.Tensor, views: int) -> torch.Tensor:
        """What a network makes of (B, c, \\*s) images, averaged over their copies for test-time augmentation, of which
        so many ``views`` are turned; (B, C, \\*s)."""
        probability = network(images)
        if self.tta_flip:  # array axis x runs from left to right on every working grid
            probability = (probability + network(images.flip(2)).flip(2)).div_(2)
        has_foreground = (1 - probability[:, 0]).flatten(1).amax(1) > FAINT
        if views and has_foreground.any():
            some = has_foreground.nonzero()[:, 0]
            seen, total = images[has_foreground], probability[has_foreground]
            copies = (self._there_and_back(network, seen, *view) for view in VIEWS[:views])
            if probability.shape[1] > MANY:  # one copy at a time: each has a map for every class
                for foreground in copies:
                    total[:, 1:] += foreground
                    total[:, :1] += background(foreground)
                averaged = total.div_(views + 1)
            else:
                averaged = torch.stack([total, *(torch.cat([background(one), one], 1) for one in copies)]).mean(0)
            probability = probability.index_copy(0, some, averaged) if len(some) < len(images) else averaged
        return probability

    def _seen(self, slices: torch.Tensor) -> torch.Tensor:
        if self.window is not None and max(slices.shape[2:]) > self.window:
            from monai.inferers.utils import sliding_window_inference

            size = [min(side, self.window) for side in slices.shape[2:]]
            many = max(1, MOST_VALUES // (self.classes * math.prod(size))) if self.classes > MANY else self.batch
            made = sliding_window_inference(slices, size, min(self.batch, many), self._seen, OVERLAP, mode="gaussian")
            assert isinstance(made, torch.Tensor)
            return made
        slices = slices.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = [network(slices) for network in self._fused]
        if len(logits) == 1:
            return torch.softmax(logits[0].float(), 1)
        return torch.stack([torch.softmax(one.float(), 1) for one in logits]).mean(0)

    def _there_and_back(self, network: Network, images: torch.Tensor, angle: float, scale: float) -> torch.Tensor:
        """The estimate of one rotated and scaled copy, without its background.

        Copies that are turned to one side are mirrored as well. Both sides would cost twice as much and bring nothing more
        (docs/results/accuracy.md), and so a mirrored scan still has the mirrored estimate.
        """
        copy = rotate_and_scale(images, angle, scale)
        seen = network(copy.flip(2)).flip(2) if self.tta_flip and angle > 0 else network(copy)
        return rotate_and_scale(seen[:, 1:], angle, scale, back=True)

    @torch.inference_mode()
    def on_both_grids(self, image: torch.Tensor, fine: torch.Tensor, exact: bool = False) -> Estimate:
        """What the networks make of a scan (c, \\*S) on the working grid; the slice network sees (c, \\*F) of the fine one.
        ``exact``: maps of many classes are float32, for whom takes their logarithms."""
        factor = [f // n for f, n in zip(fine.shape[1:], image.shape[1:], strict=True)]
        if self.classes > MANY:
            return self._packed(image, fine, factor, exact)
        by_slices = self._by_slices(fine)
        pooled = pool(by_slices[None], factor)
        if self.volume_network is None:
            return Estimate(pooled, by_slices[None])
        by_volume = self._by_volume(image)
        both = torch.empty(2, *by_slices.shape)
        both[0] = by_slices
        del by_slices  # of a large scan every map counts
        add_detail(by_volume, pooled[0], both[0], both[1])
        return Estimate(torch.stack([pooled[0], by_volume]), both)

    def _packed(self, image: torch.Tensor, fine: torch.Tensor, factor: Sequence[int], exact: bool) -> Estimate:
        """:meth:`on_both_grids` of many classes: a few slices at a time, and none of their maps is held as it is."""
        made = SlicePacker(self.classes, fine.shape[1:], factor, exact)
        views, slices = views_within(fine[0].numel()), with_neighbours(fine)
        at_once = max(1, MOST_VALUES // (self.classes * slices[0, 0].numel()) // factor[2]) * factor[2]
        for first, part in zip(range(0, len(slices), at_once), slices.split(at_once), strict=True):
            made.add(first, self(part, views))
        pooled = made.pooled[None]
        networks = pooled if self.volume_network is None else torch.cat([pooled, self._by_volume(image)[None]])
        return Estimate(networks, PackedNetworks(made.packed, networks))

    def volume(self, image: torch.Tensor) -> torch.Tensor:
        """(c, x, y, z) -> (C, x, y, z) float32 probabilities: the mean over the networks."""
        return self.network_probabilities(image).mean(0)

    @torch.inference_mode()
    def network_probabilities(self, image: torch.Tensor) -> torch.Tensor:
        """(c, x, y, z) -> (V, C, x, y, z) float32 probabilities of each network, the slice network first."""
        by_slices = self._by_slices(image)
        if self.volume_network is None:
            return by_slices[None]
        return torch.stack([by_slices, self._by_volume(image)])

    def _by_slices(self, image: torch.Tensor) -> torch.Tensor:
        """(c, x, y, z) -> (C, x, y, z) of the slice network; large slices a few at a time."""
        at_once = max(1, MOST_PIXELS // (image.shape[1] * image.shape[2]))
        views = views_within(image[0].numel())
        parts = with_neighbours(image).split(at_once)
        return torch.cat([self(part, views) for part in parts]).permute(1, 2, 3, 0).contiguous()

    def _by_volume(self, image: torch.Tensor) -> torch.Tensor:
        """(c, x, y, z) -> (C, x, y, z) of the volume network, which sees a coarser grid."""
        assert self.volume_network is not None
        network = self.volume_network

        def look(volume: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                return network(volume).float()

        # a network that sees every voxel follows edges closely; copies blur them, and it loses (docs/results/accuracy.md)
        views = self.tta_views if max(self.stride) > 1 else 0
        return enlarge(self._averaged(look, pool(image[None].float(), self.stride), views), image.shape[1:])[0]


def background(foreground: torch.Tensor) -> torch.Tensor:
    """(B, C-1, \\*s) -> (B, 1, \\*s): what the structures leave; what a smaller field of view does not show is background."""
    return (1 - foreground.sum(1, keepdim=True)).clamp_min(0)


def views_within(voxels: int) -> int:
    """How many views of a scan the slice network sees beside the scan as it is, see :data:`MOST_SEEN`. An even number: they come
    in pairs, turned to either side."""
    return max(0, MOST_SEEN // voxels - 1) // 2 * 2


def add_detail(
    by_volume: torch.Tensor, pooled: torch.Tensor, by_slices: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """What the volume network says on the fine grid: its own over the blocks of the working grid, and within them the detail of
    the slice network, which it does not see itself.

    Args:
        by_volume: (C, \\*S) of the volume network.
        pooled: (C, \\*S) the slice network's mean over the blocks.
        by_slices: (C, \\*F) of the slice network.
        out: takes the result, where it is given.

    Returns:
        (C, \\*F) probabilities.
    """
    made = torch.empty_like(by_slices) if out is None else out
    if by_slices.shape == pooled.shape:
        return made.copy_(by_volume)
    moved, size = by_volume - pooled, by_slices.shape[1:]
    for number, own in enumerate(made):  # class by class: no further map of all classes is held
        torch.add(by_slices[number], enlarge(moved[None, number : number + 1], size)[0, 0], out=own)
    made.clamp_min_(0)
    return made.div_(made.sum(0, keepdim=True))


def see(estimator: Estimator, target: Preprocessed, exact: bool = False) -> Estimate:
    """What the networks make of a scan, on both grids where it has a fine one; see :meth:`Estimator.on_both_grids`."""
    if target.fine is None:
        return Estimate(estimator.network_probabilities(target.image))
    return estimator.on_both_grids(target.image, target.fine.image, exact)


def see_atlas(estimator: Estimator, library: AtlasLibrary, row: int) -> Estimate:
    """:func:`see` of an atlas."""
    if not library.fine:
        return Estimate(estimator.network_probabilities(library.images[row]))
    return estimator.on_both_grids(library.images[row], library.fine[row].image)


def make_volume_network(
    network: nn.Module, name: str, settings: NetworkSettings, device: str | torch.device = "cpu"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Wrap the trained volume network ``name`` for :class:`Estimator`."""
    return Predictor(network, name, replace(settings, patch=None), device)


def estimate_atlases(
    estimator: Estimator,
    library: AtlasLibrary,
    atlases: int = 0,
    same_case: bool = False,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Estimate the structures of the atlases ``rows`` (default all) of a library: (R, C-1, \\*S) float16 probabilities.

    A slice is never shown itself as an atlas.
    """
    rows = torch.arange(len(library)) if rows is None else rows
    estimator = estimator.without_views()  # views would add little: the STM is trained on perturbed estimates
    if library.spatial_dims == 3:
        return torch.stack([see_atlas(estimator, library, row).networks.mean(0)[1:].half() for row in rows.tolist()])
    near = nearest_slice_atlases(library, atlases, same_case, rows)
    estimates = []
    for part, of in zip(rows.split(64), near.split(64), strict=True):
        slices = context_slices(library, part)
        shape = expected_shapes(library, part, of) if atlases and same_case else None
        slices = append_atlas_channels(slices, library, of, shape)
        estimates.append(estimator(slices)[:, 1:].half())
    return torch.cat(estimates)
