"""Estimates of a joint model's atlases by networks that have not seen them, to train its registration network with.

The patients are dealt into two halves. A slice network is trained on each and estimates the atlases of the other: these
estimates are as wrong as those of unseen scans, or somewhat worse, as the networks have seen half of the patients for a part of
the minutes. (Cross-fitting, as in stacked generalization: Wolpert 1992, doi 10.1016/S0893-6080(05)80023-1.) They serve for the
training of the registration network alone; atlases keep the estimates of the model's own networks.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks.slice_unet import WINDOW, JointSettings
from oasis_monai.segmentation.build import SegmenterOptions, TrainedNetworks, build_estimator
from oasis_monai.segmentation.estimate import estimate_atlases
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.trainer import FitContext, generator
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

FILE = "cross_fit.safetensors"
HALVES = 2
SEEDS_APART = 5000  # from the seeds of a model's own networks, whose members are 1000 apart


def cross_fitted(context: FitContext, joint: JointSettings) -> AtlasLibrary:
    """The library of a context with estimates by slice networks that have seen no scan of an atlas's patient.

    Args:
        context: of the registration network: its library of volumes, of two patients or more, and its folder, which keeps the
            estimates; but with the budget of the whole joint model.
        joint: the networks; each half gets an equal part of ``joint.cross_fit_budget``.

    Raises:
        OasisError: the loss is no longer finite.
    """
    library, path = context.library, context.path(FILE)
    stored = load_if_whole(path) if path else None
    if stored is not None:
        return library.with_estimates(stored[0]["estimates"])
    share = replace(joint, slice_budget=joint.cross_fit_budget / HALVES, volume_budget=0.0, cross_fit_budget=0.0, members=1)
    half = halves(library, context.seed)
    estimates = torch.zeros(len(library), library.classes - 1, *library.images.shape[2:], dtype=torch.float16)
    for number in range(HALVES):
        seen, unseen = (half != number).nonzero()[:, 0], (half == number).nonzero()[:, 0]
        folder = context.folder / f"cross_fit{number}" if context.folder else None
        own = replace(
            context,
            library=library.subset(seen),
            spacing_mm=context.spacings_mm[seen],
            seed=context.seed + SEEDS_APART + number,
            folder=folder,
            name=f"{context.name}, half {number + 1} of {HALVES}",
            watch=context.watch and context.watch.within(f"half{number}"),
        )
        network = train_slice_network(own, share)
        options = SegmenterOptions(joint=joint, window=WINDOW if library.fine else None)
        estimator = build_estimator(TrainedNetworks(None, network), options, context.device)
        assert estimator is not None
        estimates[unseen] = estimate_atlases(estimator, library, rows=unseen)
    if path:
        save_tensors(path, {"estimates": estimates}, {"done": True})
        for number in range(HALVES):
            shutil.rmtree(path.with_name(f"cross_fit{number}"), ignore_errors=True)
    return library.with_estimates(estimates)


def halves(library: AtlasLibrary, seed: int) -> torch.Tensor:
    """(N,) the half, 0 or 1, of every atlas: all of a patient's in one, and as many patients in both, drawn at random."""
    group = library.groups()
    order = torch.randperm(int(group.max()) + 1, generator=generator(seed, 0))
    return (order % HALVES)[group]
