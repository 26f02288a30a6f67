"""Train a joint model's slice network on single slices of one library, with Dice and cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import (
    adjacent_slice_atlases,
    append_atlas_channels,
    context_slices,
    expected_shapes,
    interpolate_shape,
    nearest_slice_atlases,
    slices_near_structure,
)
from oasis_monai.data.types import IGNORE
from oasis_monai.networks.fast_training import speed_up_training
from oasis_monai.networks.losses import make_segmentation_loss
from oasis_monai.networks.slice_unet import WINDOW, JointSettings, SliceUNet, SliceUNetEnsemble, check_size, make_slice_network
from oasis_monai.training.resident_slices import ResidentSlices
from oasis_monai.training.small_structures import Copies, even_chances, shown_in_slices
from oasis_monai.training.tracking import mean_dice
from oasis_monai.training.trainer import FitContext, Trainer, fit, generator, load_finished, load_weights
from oasis_monai.transforms.labels import split_ignored, structures, with_ignored
from oasis_monai.utils.device import use_bfloat16
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors
from oasis_monai.utils.transfer import onto

FILE = "estimator.safetensors"
VALIDATED = 16
"""Most slices of a held-out case that are segmented to show how the training goes."""
MEMBER_SEED = 1000  # distance of the members' seeds; the seeds of folds are 1 apart


def train_slice_network(context: FitContext, joint: JointSettings) -> SliceUNet | SliceUNetEnsemble:
    """Train a joint model's slice network with its part of the budget, or load it when the folder already holds it.

    Several members are trained one after the other, each with its own random numbers and an equal part of that budget.

    Args:
        context: a library of slices or volumes, with the budget of the whole joint model. ``estimator.safetensors`` (resumable
            checkpoint) and ``history.csv`` go to its folder; of several members those of each go to a folder of its own below,
            and when all are finished only the histories stay there. Under ``same_case``, with atlases beside a slice, the slice
            is also shown the shape between its case's other slices, by a network with channels for it.
        joint: the network.

    Raises:
        ConfigError: the grid is too small.
        OasisError: the loss is no longer finite; the last good checkpoint stays.
    """
    library, members, path = context.library, joint.members, context.path(FILE)
    check_size(tuple(library.images.shape[2:] if library.spatial_dims == 2 else library.detail[0].image.shape[1:]))
    part = context.training.part(joint.budgets(library.spatial_dims)[0] / members)
    context = replace(context, training=replace(part, lr=joint.lr, schedule="warm_cosine"))
    if members == 1:
        return _train_member(context, joint, path)
    stored = load_if_whole(path) if path else None
    files = [path.parent / f"member{number}" / FILE if path else None for number in range(members)]
    if path and stored:
        together = make_slice_network(library.classes, joint, False, context.same_case, library.channels, library.structures)
        load_weights(together, stored[0], path)
        together = together.to(context.device).eval()
    else:
        own = (
            replace(
                context,
                seed=context.seed + MEMBER_SEED * number,
                name=f"{context.name} {number + 1} of {members}",
                watch=context.watch and context.watch.within(f"member{number}"),
            )
            for number in range(members)
        )
        trained = [
            _train_member(member, joint, file, f"members.{number}.")
            for number, (member, file) in enumerate(zip(own, files, strict=True))
        ]
        together = SliceUNetEnsemble(trained).eval()
        if path:
            save_tensors(path, {f"model.{k}": v for k, v in together.state_dict().items()}, {"done": True})
    for file in filter(None, files):  # their histories stay
        file.unlink(missing_ok=True)
    return together


def _train_member(context: FitContext, joint: JointSettings, path: Path | None, part: str = "") -> SliceUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)  # the decoder's initial weights
        library, shape = context.library, context.same_case
        pretrained = joint.pretrained and context.start is None
        channels, structures = library.channels, library.structures
        model = SliceUNet(library.classes, joint.atlases, joint.decoder, pretrained, shape, channels, structures)
        model = model.to(context.device)
    if not load_finished_slices(model, path):
        context.begin(model, part)
        fit(SliceTrainer(context, model, joint), path, context.progress, context.name, context.watch)
    return model


def load_finished_slices(model: SliceUNet, path: Path | None) -> bool:
    """:func:`.load_finished` of a slice network, arranged in memory as its trainer leaves it: results are the same to the bit."""
    finished = load_finished(model, path)
    if finished:
        model.encoder.to(memory_format=torch.channels_last)
    return finished


class SliceTrainer(Trainer):
    """One step of training on slices drawn from the whole library; see :class:`oasis_monai.training.trainer.Trainer`."""

    terms = ("loss",)
    memory_setting = "joint.slices_per_step"

    def __init__(self, context: FitContext, model: SliceUNet, joint: JointSettings) -> None:
        library, settings = context.library, context.training
        self.library, self.model, self.settings, self.seed = library, speed_up_training(model), settings, context.seed
        self.count = joint.slices_per_step
        self.device = next(model.parameters()).device
        model.encoder.to(memory_format=torch.channels_last)  # the decoder's instance norms are faster with channels first
        own = {id(p) for p in model.encoder.parameters()}
        groups = [
            {"params": list(model.encoder.parameters()), "scale": joint.encoder_lr},
            {"params": [p for p in model.parameters() if id(p) not in own], "scale": 1.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=1e-4, fused=True)
        self.bfloat16 = settings.amp or use_bfloat16(self.device, None)
        self.augmentation = context.augmented()
        self.spacings_mm = context.spacings_mm[:, :2] / torch.tensor((library.fine_factor or (1, 1))[:2])
        # over the batch, not per slice: a slice without the structure has no Dice of its own
        self.loss = make_segmentation_loss(library.structures, library.classes, batch=True)
        rows = torch.arange(len(library))
        self.near = nearest_slice_atlases(library, joint.atlases, context.same_case, rows)
        self.expected: torch.Tensor | None = None
        if joint.atlases and context.same_case:
            self.expected = torch.cat([expected_shapes(library, part, self.near[part]).half() for part in rows.split(256)])
        # volumes: (row, z) of every slice that shows something; padding beyond the scan teaches nothing, nor does a slice that
        # nobody labelled
        self.places: torch.Tensor | None = None
        self.volumes = library.detail if library.spatial_dims == 3 else ()
        near = slices_near_structure(library)
        if library.spatial_dims == 3:
            self.places = torch.stack([_shows_something(*volume) for volume in self.volumes]).nonzero()
            near = near[self.places[:, 0], self.places[:, 1]]
            scans = ((image, label) for image, label in self.volumes)
            most = min(WINDOW, *self.volumes[0].label.shape[1:3]) // 2 if self.volumes else 0
            self.copies = Copies(scans, context.anywhere, most, generator(self.seed, -2))
        self.chances = torch.where(near, 1.0, joint.empty_slice_weight)
        if context.chances is not None:
            self.chances = self.chances * context.chances[rows if self.places is None else self.places[:, 0]]
        if joint.even_draws and len(self.chances):
            self.chances = even_chances(self.chances, self._shown())
        self.hold()

    def hold(self) -> None:
        self.resident: ResidentSlices | None = None
        copies = self.places is not None and self.copies.donors  # they are made on the host
        if self.device.type != "cpu" and not copies:
            self.resident = ResidentSlices.of(self.library, self.volumes, self.near, self.expected, self.device)

    def draw(self, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3c + extra, x, y) slices, the (B, m, x, y) label channels of
        :func:`oasis_monai.transforms.labels.with_ignored`, and the (B,) atlases they are of."""
        library = self.library
        if self.resident is not None:
            return self._draw_there(self.resident, random)
        if self.places is None:
            rows = torch.multinomial(self.chances, self.count, replacement=True, generator=random)
            shape = None if self.expected is None else self.expected[rows].float()
            image = append_atlas_channels(context_slices(library, rows), library, self.near[rows], shape)
            return image, with_ignored(library.labels[rows], library.classes), rows
        chosen = self.places[torch.multinomial(self.chances, self.count, replacement=True, generator=random)].tolist()
        image = torch.stack([_with_neighbours(self.volumes[row].image, z) for row, z in chosen])
        label = torch.stack([self.volumes[row].label[..., z] for row, z in chosen])
        if library.fine:
            image, label = cut_windows(image, label, random)
        image, label = self.copies(image, label, random)
        return image.float(), with_ignored(label, library.classes), torch.tensor([row for row, _ in chosen])

    def _draw_there(self, there: ResidentSlices, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """:meth:`draw` on a GPU; the rows stay on the host."""
        chosen = torch.multinomial(self.chances, self.count, replacement=True, generator=random)
        if self.places is None:
            return *there.of_slices(chosen), chosen
        places = self.places[chosen]
        return *there.of_volumes(places, random), places[:, 0]

    def _shown(self) -> torch.Tensor:
        """(P, classes - 1) bool: which structures each of the slices that are drawn shows."""
        classes = self.library.classes
        if self.places is None:
            return shown_in_slices(self.library.labels.movedim(0, -1), classes)
        by_scan = torch.stack([shown_in_slices(one.label, classes) for one in self.volumes])
        return by_scan[self.places[:, 0], self.places[:, 1]]

    def step(self, number: int) -> torch.Tensor:
        """(1,) the loss."""
        random = generator(self.seed, number)
        image, label, rows = self.draw(random)
        image, label = onto(image, self.device), onto(label, self.device)
        if self.augmentation is not None:
            flip = self.augmentation.flips(self.count, random)
            own, channels = 3 * self.library.channels, self.library.channels
            others = torch.cat([image[:, own:], label], 1)
            slices, rest = self.augmentation(image[:, :own], others, flip, self.spacings_mm[rows], random, channels)
            atlases, label = rest.split([image.shape[1] - own, label.shape[1]], 1)
            image = torch.cat([slices, atlases], 1)
        label, counts = split_ignored(label, self.library.classes)
        self.model.train()
        on_cpu = self.device.type == "cpu"
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16 and not on_cpu):
            output = self.team.forward(self.runs, image, bfloat16=self.bfloat16 and on_cpu)
        target = torch.cat([(1 - label.sum(1, keepdim=True)).clamp(0, 1), label], 1)
        loss = self.loss(output.float(), target, counts)
        self.descend(loss)
        return loss.detach()[None]

    def validate(self, images: AtlasLibrary) -> float | None:
        """That of up to :data:`VALIDATED` slices a case, at and beside its structures."""
        library, near = self.library, slices_near_structure(images)
        predicted, labels, cases = list[torch.Tensor](), list[torch.Tensor](), list[str]()
        for case in dict.fromkeys(images.cases):
            rows = torch.tensor([row for row, other in enumerate(images.cases) if other == case])
            where = near[rows].nonzero()
            if not len(where):
                continue
            where = where[torch.linspace(0, len(where) - 1, min(len(where), VALIDATED)).round().long()]
            if library.spatial_dims == 3:
                volume = images.detail[int(rows[0])]
                shown = torch.stack([_with_neighbours(volume.image, z) for z in where[:, 1].tolist()]).float()
                label = volume.label[0].movedim(-1, 0)[where[:, 1]]
            else:
                rows = rows[where[:, 0]]
                shown, label = self._with_atlases(images, rows), images.labels[rows, 0]
            predicted += [*self._predicted(shown)]
            labels += [*label]
            cases += [case] * len(label)
        return mean_dice(predicted, labels, library.classes, cases)

    def _with_atlases(self, images: AtlasLibrary, rows: torch.Tensor) -> torch.Tensor:
        """(B, 3c + extra, x, y) held-out slices as the network sees a new scan's."""
        slices = context_slices(images, rows)
        if not self.near.shape[1]:
            return slices
        near, shape = adjacent_slice_atlases(slices, self.library), None
        if self.expected is not None:
            places = [(images.cases[row], int(images.slices[row])) for row in rows.tolist()]
            shape = interpolate_shape(self.library, places, near)
        return append_atlas_channels(slices, self.library, near, shape)

    def _predicted(self, slices: torch.Tensor) -> torch.Tensor:
        """(B, x, y) class indices, on the CPU."""
        from monai.inferers.utils import sliding_window_inference

        found = []
        for image in slices.split(self.count):
            image = image.to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16 and self.device.type != "cpu"):
                if self.library.fine and max(image.shape[2:]) > WINDOW:
                    size = [min(side, WINDOW) for side in image.shape[2:]]
                    made: Any = sliding_window_inference(image, size, self.count, self.model)
                else:
                    made = self.model(image)
            found.append(made.argmax(1).cpu())
        return torch.cat(found)


def _with_neighbours(image: torch.Tensor, z: int) -> torch.Tensor:
    """(3c, x, y) one slice of (c, x, y, z) as :func:`oasis_monai.networks.slice_unet.with_neighbours` has it."""
    return image[..., [max(z - 1, 0), z, min(z + 1, image.shape[-1] - 1)]].movedim(-1, 1).flatten(0, 1)


def cut_windows(image: torch.Tensor, label: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of (B, c, x, y) slices and their (B, 1, x, y) labels a window of at most :data:`.WINDOW` voxels a side, at random;
    every second one holds some of a structure, where there is any."""
    sides = torch.tensor(image.shape[2:])
    size = sides.clamp_max(WINDOW)
    if bool((size == sides).all()):
        return image, label
    images, labels = [], []
    for number in range(len(image)):
        corner = (torch.rand(2, generator=random) * (sides - size + 1)).long()
        inside = structures(label[number, 0]).nonzero()
        if number % 2 == 0 and len(inside):
            shift = (torch.rand(2, generator=random) * size).long()
            corner = (inside[int(torch.randint(len(inside), (1,), generator=random))] - shift).clamp_min(0).minimum(sides - size)
        x, y = (slice(a, a + n) for a, n in zip(corner.tolist(), size.tolist(), strict=True))
        images.append(image[number, :, x, y])
        labels.append(label[number, :, x, y])
    return torch.stack(images), torch.stack(labels)


def _shows_something(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(z,) bool: the slices of an atlas (c, x, y, z) that show different intensities and that somebody labelled."""
    different = image.amax((0, 1, 2)) > image.amin((0, 1, 2))
    return different & (label != IGNORE).flatten(0, 2).any(0)
