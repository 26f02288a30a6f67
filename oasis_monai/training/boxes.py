"""Train the network that looks again in boxes, on windows round the structures of training scans at the boxes' resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.types import IGNORE
from oasis_monai.networks.slice_unet import BOX_WINDOW, JointSettings, SliceUNet, make_box_network
from oasis_monai.training.resident import hold
from oasis_monai.training.slices import FILE, SliceTrainer, load_finished_slices
from oasis_monai.training.small_structures import ANYWHERE, Copies
from oasis_monai.training.trainer import FitContext, fit, generator
from oasis_monai.transforms.boxes import ScanPart, place_axes
from oasis_monai.transforms.labels import ignored, with_ignored

MOST_PLACES = 4096  # voxels of a structure in a scan that windows are laid on


def train_box_network(context: FitContext, parts: Mapping[str, ScanPart], joint: JointSettings, start: nn.Module) -> SliceUNet:
    """Train the box network on its part of the budget, or load it when the folder already holds it.

    It begins as the slice network of the coarse pass, which knows the structures, on voxels of another size.

    Args:
        context: the library of the whole joint model, with its budget. ``estimator.safetensors`` and ``history.csv`` go to its
            folder.
        parts: case -> :func:`oasis_monai.transforms.boxes.labelled_part`; atlases of other cases are not learned from.
        joint: the network and its part of the budget.
        start: a trained slice network; of several members the first one counts.

    Raises:
        OasisError: the loss is no longer finite; the last good checkpoint stays.
    """
    rows = [row for row, case in enumerate(context.library.cases) if case in parts]
    library = context.library.subset(rows)
    chances = None if context.chances is None else context.chances[rows]
    settings = replace(context.training.part(joint.box_budget), lr=joint.lr, schedule="warm_cosine")
    spacings_mm = torch.tensor([parts[case].grid.spacing_mm for case in library.cases], dtype=torch.float64)
    own = replace(context, library=library, chances=chances, training=settings, spacing_mm=spacings_mm)
    members = getattr(start, "members", [start])
    model = make_box_network(library.classes, joint, library.channels, library.structures)
    model.load_state_dict(model.state_dict() | members[0].state_dict())
    model = model.to(context.device)
    if not load_finished_slices(model, context.path(FILE)):
        trainer = BoxTrainer(own, model, joint, [parts[case] for case in library.cases])
        fit(trainer, context.path(FILE), context.progress, context.name, context.watch)
    return model


class BoxTrainer(SliceTrainer):
    """One step of training on windows; every structure of a scan is drawn as often, however small it is."""

    def __init__(self, context: FitContext, model: SliceUNet, joint: JointSettings, parts: Sequence[ScanPart]) -> None:
        self.parts = parts
        super().__init__(replace(context, library=replace(context.library, fine=())), model, joint)
        self.spacings_mm = context.spacings_mm[:, :2]
        self.rows = torch.ones(len(parts)) if context.chances is None else context.chances
        random = generator(self.seed, -1)
        self.structures = [_places(part, context.library.classes, random) for part in parts]
        scans = ((part.image, part.label) for part in parts)
        self.copies = Copies(scans, context.anywhere, BOX_WINDOW // 2, generator(self.seed, -2))
        self.hold()

    def hold(self) -> None:
        self.resident, self.shown, self.ignores = None, self.parts, None
        self.where = [place_axes(part.working, part.grid) for part in self.parts]
        if self.device.type != "cpu" and not self.copies.donors:  # copies are made on the host
            held = hold([part for one in self.parts for part in one[:2]], self.device, "training images in boxes")
            pairs = zip(self.parts, held[::2], held[1::2], strict=True)
            self.shown = [one._replace(image=image, label=label) for one, image, label in pairs]
            self.where = [[axis.to(self.shown[0].image.device) for axis in axes] for axes in self.where]
            self.ignores = any(bool(ignored(one.label).any()) for one in self.parts)

    def draw(self, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3c + 3, x, y) windows of slices with their neighbours and the places of their voxels, their (B, m, x, y) label
        channels, and the (B,) atlases they are of. A window is :data:`.BOX_WINDOW` voxels a side, or as large as the smallest
        scan's part allows."""
        rows = torch.multinomial(self.rows, self.count, replacement=True, generator=random)
        size = [min(BOX_WINDOW, *(part.image.shape[axis] for part in self.parts)) for axis in (1, 2)]
        images, labels = [], []
        for number, row in enumerate(rows.tolist()):
            part, along = self.shown[row], self.where[row]
            x, y, z = self._window(row, size, bool(number % ANYWHERE), random)
            around = (max(z - 1, 0), z, min(z + 1, part.image.shape[3] - 1))
            slices = torch.stack([part.image[:, x, y, at] for at in around], 1).flatten(0, 1)
            places = torch.stack(torch.meshgrid(along[0][x], along[1][y], along[2][z : z + 1], indexing="ij"))[..., 0]
            images.append(torch.cat([slices.float(), places]))
            labels.append(part.label[:, x, y, z])
        image, label = self.copies(torch.stack(images), torch.stack(labels), random)
        return image, with_ignored(label, self.library.classes, self.ignores), rows

    def validate(self, images: AtlasLibrary) -> float | None:
        """None: held-out images are on the working grid, where there are no boxes."""
        return None

    def _window(self, row: int, size: Sequence[int], structure: bool, random: torch.Generator) -> tuple[slice, slice, int]:
        """Where a window of a scan lies: with a voxel of a structure somewhere in it, or anywhere."""
        sides, shown = torch.tensor(self.parts[row].image.shape[1:]), self.structures[row]
        at = (torch.rand(3, generator=random) * sides).long()
        if structure and shown:
            own = shown[int(torch.randint(len(shown), (1,), generator=random))]
            at = own[int(torch.randint(len(own), (1,), generator=random))].long()
        shift = (torch.rand(2, generator=random) * torch.tensor(size)).long()
        corner = (at[:2] - shift).clamp_min(0).minimum(sides[:2] - torch.tensor(size)).tolist()
        x, y = (slice(c, c + n) for c, n in zip(corner, size, strict=True))
        return x, y, int(at[2])


def _places(part: ScanPart, classes: int, random: torch.Generator) -> list[torch.Tensor]:
    """Of every structure that is there (k, 3) int16 voxels, at most :data:`MOST_PLACES` drawn at random."""
    found = []
    for index in torch.bincount(part.label.flatten(), minlength=classes)[1:IGNORE].nonzero()[:, 0].tolist():
        voxels = (part.label[0] == index + 1).nonzero()
        chosen = torch.randint(len(voxels), (MOST_PLACES,), generator=random) if len(voxels) > MOST_PLACES else slice(None)
        found.append(voxels[chosen].short())
    return found
