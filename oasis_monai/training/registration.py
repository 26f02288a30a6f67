"""Train the registration network (STM) on pairs of atlases of one library, with the loss of eq. 1."""

from __future__ import annotations

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.selection import nearest
from oasis_monai.networks import warp as warping
from oasis_monai.networks.fast_training import speed_up_training
from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel, append_structures
from oasis_monai.training.estimate_errors import bend_estimate, perturb_estimate, reach_for_dice
from oasis_monai.training.resident import gather, resident
from oasis_monai.training.tracking import mean_dice
from oasis_monai.training.trainer import FitContext, Trainer, draw_rows, fit, generator, load_finished
from oasis_monai.transforms.labels import ignored, split_ignored, with_ignored
from oasis_monai.utils.device import use_bfloat16
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.transfer import upload

TRIES = 50  # draws of a partner before the partners are listed; with cases of like size two or three do


class Pairs:
    """Draws training pairs: the allowed partners of every atlas of a library.

    Args:
        library: the training atlases.
        distance: of :func:`oasis_monai.atlases.selection.nearest`.
        nearest_count: partners are this many nearest atlases by feature distance; 0: all.
        same_case: whether an atlas may be paired with another one of its own case (slices under slice folds), never with itself.
            Without it partners are of different patients: at test time no atlas is of the target's patient either.
        chances: (N,) how often each atlas is drawn; None: all as often.
    """

    def __init__(
        self,
        library: AtlasLibrary,
        nearest_count: int,
        distance: str = "l2",
        same_case: bool = False,
        chances: torch.Tensor | None = None,
    ) -> None:
        self._chances = chances
        count, own = len(library), library.groups(same_case)
        self.count, self._own = count, own
        patients = len(set(library.patients))
        partners = count - int(torch.bincount(own).max())
        if partners < 1:
            raise ConfigError("data", "at least two training patients to form pairs", f"{patients} patient(s)", "add cases")
        self._near: torch.Tensor | None = None
        if nearest_count:
            self._near, _ = nearest(
                library.features, library.features, min(nearest_count, partners), distance, exclude=(own, own)
            )

    def draw(self, batch: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch,) rows of atlases and of their targets."""
        targets = draw_rows(self.count, batch, random, self._chances)
        if self._near is not None:
            column = torch.randint(self._near.shape[1], (batch,), generator=random)
            return self._near[targets, column], targets
        atlases = draw_rows(self.count, batch, random, self._chances)
        for _ in range(TRIES):
            if not bool((clash := self._own[atlases] == self._own[targets]).any()):
                return atlases, targets
            atlases = torch.where(clash, draw_rows(self.count, batch, random, self._chances), atlases)
        return self._among_partners(targets, random), targets

    def _among_partners(self, targets: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """(batch,) an atlas of another group for each target, where one group has most atlases and trying again takes long."""
        order = self._own.argsort(stable=True)  # group after group
        sizes = torch.bincount(self._own)
        first = sizes.cumsum(0) - sizes
        group = self._own[targets]
        place = (torch.rand(len(targets), generator=random) * (self.count - sizes[group])).long()
        return order[torch.where(place < first[group], place, place + sizes[group])]


def train_registration(
    context: FitContext, registration: RegistrationSettings, loss: RegistrationLoss | None = None
) -> SpatialTransformModel:
    """Train a registration network (STM) on the pairs of a library, or load it when the folder already holds the finished one.

    Args:
        context: ``stm.safetensors`` (resumable checkpoint) and ``history.csv`` go to its folder. A joint STM needs a library
            with estimates.
        registration: the network.
        loss: eq. 1, with the weights given; None: with the default ones.

    Raises:
        OasisError: the loss is no longer finite; the last good checkpoint stays.
        ValueError: a joint STM, and a library without estimates.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)  # the initial weights
        model = make_registration_network(context.library, registration).to(context.device)
    path = context.path("stm.safetensors")
    if not load_finished(model, path):
        context.begin(model)
        fit(RegistrationTrainer(context, model, loss or RegistrationLoss()), path, context.progress, context.name, context.watch)
    return model


def make_registration_network(library: AtlasLibrary, stm: RegistrationSettings) -> SpatialTransformModel:
    """An STM for the grid, the channels and, where it is a joint one, the structures of a library."""
    return SpatialTransformModel(library.images.shape[2:], stm, library.classes - 1 if stm.joint else 0, library.channels)


class RegistrationTrainer(Trainer):
    """One step of training; see :class:`oasis_monai.training.trainer.Trainer`."""

    terms = ("loss", "similarity", "dice", "smoothness")

    def __init__(self, context: FitContext, model: SpatialTransformModel, loss: RegistrationLoss) -> None:
        self.library, self.spacings_mm, self.model = context.library, context.spacings_mm, speed_up_training(model)
        self.joint, self.distance = model.settings.joint, context.distance
        if self.joint and self.library.estimates is None:
            raise ValueError("a joint STM needs a library with estimates")
        self.loss, self.settings, self.seed = loss, context.training, context.seed
        self.optimiser = torch.optim.Adam(model.parameters(), lr=self.settings.lr, fused=True)
        self.augmentation = context.augmented()
        self.pairs = Pairs(self.library, self.settings.nearest_partners, context.distance, context.same_case, context.chances)
        self.device = next(model.parameters()).device
        # convolutions of volumes take half of the time in bfloat16 on a CPU that is made for it; flow and warp stay in float32
        self.bfloat16 = self.settings.amp or (self.library.spatial_dims == 3 and use_bfloat16(self.device, None))
        self.reach_mm = 0.0  # how far estimates are bent
        if self.joint and context.estimate_dice < 1:
            self.reach_mm = reach_for_dice(self.library, self.spacings_mm, context.estimate_dice, self.seed)
        self.hold()

    def hold(self) -> None:
        self.data = resident(self.library, self.device)
        # looking at a batch's labels for voxels that nobody labelled is free on a CPU alone
        self.ignores = None if self.device.type == "cpu" else bool(ignored(self.library.labels).any())

    def validate(self, images: AtlasLibrary) -> float | None:
        """That of the nearest atlas of each image, warped onto it; a joint STM needs images with estimates."""
        if self.joint and images.estimates is None:
            return None
        classes, found = images.classes, []
        rows, _ = nearest(images.features, self.library.features, 1, self.distance)
        for number, row in enumerate(rows[:, 0]):
            atlas, label = self._batch(row[None])
            parts, _ = split_ignored(label, classes)
            target = images.images[number : number + 1].to(self.device, torch.float32)
            seen, onto = atlas, target
            if self.joint:
                assert images.estimates is not None
                estimate = images.estimates[number : number + 1].to(self.device, torch.float32)
                seen, onto = append_structures(atlas, parts), append_structures(target, estimate)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp):
                ddf = self.model(seen, onto)
            moved = warping.warp(parts, ddf)
            found.append(torch.cat([1 - moved.sum(1, keepdim=True), moved], 1).argmax(1).cpu())
        return mean_dice(torch.cat(found), images.labels[:, 0], classes, images.cases)

    def _batch(self, rows: torch.Tensor, estimated: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, c, *S) images with (B, m, *S) label channels: their estimates where ``estimated``, then those of
        :func:`oasis_monai.transforms.labels.with_ignored`."""
        data, device = self.data, self.device
        if data.images.device.type != "cpu":
            (rows,) = upload(device, rows)
        image = gather(data.images, rows, device).float()
        label = with_ignored(gather(data.labels, rows, device), data.classes, self.ignores)
        if not estimated:
            return image, label
        assert data.estimates is not None
        return image, torch.cat([gather(data.estimates, rows, device).float(), label], 1)

    def step(self, number: int) -> torch.Tensor:
        """(4,) the terms of eq. 1: total, similarity, Dice, smoothness."""
        settings, random, classes = self.settings, generator(self.seed, number), self.library.classes
        atlases, targets = self.pairs.draw(settings.batch, random)
        joint = self.joint
        (atlas, atlas_label), (target, target_label) = self._batch(atlases), self._batch(targets, joint)
        if self.augmentation is not None:
            flip = self.augmentation.flips(settings.batch, random)
            channels = self.library.channels
            atlas, atlas_label = self.augmentation(atlas, atlas_label, flip, self.spacings_mm[atlases], random, channels)
            target, target_label = self.augmentation(target, target_label, flip, self.spacings_mm[targets], random, channels)
        seen, onto = atlas, target
        if joint:
            estimate, target_label = target_label[:, : classes - 1], target_label[:, classes - 1 :]
            parts, _ = split_ignored(atlas_label, classes)
            if self.reach_mm:
                estimate = bend_estimate(estimate, self.reach_mm, self.spacings_mm[targets], random)
            seen, onto = append_structures(atlas, parts), append_structures(target, perturb_estimate(estimate, random))
        own = self.team.own_rows(settings.batch)  # the loss is a mean over pairs
        if own.start == own.stop:
            return self.descend_with_others(len(self.terms))
        seen, onto, atlas, atlas_label, target, target_label = (
            part[own] for part in (seen, onto, atlas, atlas_label, target, target_label)
        )
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            ddf = self.runs(seen, onto)
        moved, moved_label = warping.warp_pair(atlas, atlas_label, ddf)
        (moved_label, there), (target_label, here) = split_ignored(moved_label, classes), split_ignored(target_label, classes)
        counts = there & here if there is not None and here is not None else here if there is None else there
        terms = self.loss(moved, target, moved_label, target_label, ddf, counts)
        part = (own.stop - own.start) / settings.batch
        told = self.team.total(part * torch.stack([term.detach() for term in terms]))
        self.descend(part * terms.total)
        return told
