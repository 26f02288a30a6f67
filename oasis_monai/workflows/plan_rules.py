"""The rules of the plan: what the measures of a data set say its settings should be. docs/explanation/plan.md gives the reasons.

Each rule is a function of the :class:`.Fingerprint` and of what the user has given; nothing is read or trained here. The numbers
are those with which PROMISE12 and the hippocampus were tuned by hand (docs/results/accuracy.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oasis_monai.transforms.intensity import LOCAL_MM
from oasis_monai.transforms.spatial import SLICE_AXES
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.planned import UNPLANNED
from oasis_monai.workflows.fingerprint import Fingerprint
from oasis_monai.workflows.plan_boxes import with_boxes
from oasis_monai.workflows.plan_choice import GRID, Asked, Choice
from oasis_monai.workflows.plan_fine import Kept, with_fine_grid
from oasis_monai.workflows.plan_grid import SAME, family, is_fine, own_spacing, working_grid
from oasis_monai.workflows.plan_sides import sided
from oasis_monai.workflows.plan_time import affordable

HOUNSFIELD = -200.0  # MR has no values below that, CT has air
MOST = 0.75  # fraction of scans that decides of what kind a data set is
BIAS = 0.2  # brightness of one tissue that changes by so much with place is a coil's field
FEW_MM = 4 * LOCAL_MM  # a field of view below this shows the neighbourhood of local normalisation, not more
CUT_AWAY = 0.3  # fraction of voxels of one lowest value from which on the surroundings are taken for cut away


def choose(fingerprint: Fingerprint, config: Mapping[str, Any], kept: Kept | None = None) -> list[Choice]:
    """All decisions for a data set.

    Args:
        fingerprint: with one labelled scan or more.
        config: the plain configuration, null where the plan is to choose.
        kept: measures what a working grid keeps of true labels; None: no fine grid is laid.

    Raises:
        ConfigError: what the user has given cannot work, whatever is chosen beside it.
    """
    asked = Asked(config, config.get("spatial_dims", 3))
    if asked.dims == 3 and all(1 in scan.shape for scan in fingerprint.labelled):
        raise ConfigError("spatial_dims", "2, as every image is a single slice", 3, "add spatial_dims=2")
    is_paper = asked.value("preprocessing.name") == "paper"
    made = [] if is_paper else [slice_axis(fingerprint, asked)]
    lying = made[0].values["preprocessing.slice_axis"] if made else asked.value("preprocessing.slice_axis") or "axial"
    if lying not in SLICE_AXES:
        raise ConfigError("preprocessing.slice_axis", f"one of {list(SLICE_AXES)}", lying)
    sides, fingerprint = fingerprint, fingerprint.along(lying)
    networks: Mapping[str, Mapping[str, Any]]
    steps = ""
    if is_paper:
        networks = family(asked, is_fine(own_spacing(fingerprint)[: asked.dims]))
    else:
        coarse, networks = working_grid(fingerprint, asked)
        fine, networks = with_fine_grid(fingerprint, asked, coarse, networks, lying, kept)
        grid, networks = with_boxes(fingerprint, asked, coarse, fine, networks)
        made += [grid, intensity(fingerprint, asked, grid)]
        networks, steps = affordable(networks, asked, grid)
    made += network_choices(networks, asked, steps)
    made += [mirroring(sides, asked, lying), batch(fingerprint, asked, made)]
    return made


def slice_axis(fingerprint: Fingerprint, asked: Asked) -> Choice:
    """How the slices lie that the slice networks see: across the axis of the thickest voxels."""
    scans = fingerprint.labelled
    if all(scan.shape.count(1) == 1 for scan in scans):
        across, reason = Counter(scan.shape.index(1) for scan in scans), "every image is one such slice"
    else:
        across = Counter(int(np.argmax(s.spacing_mm)) for s in scans if max(s.spacing_mm) > SAME * np.median(s.spacing_mm))
        reason = "the scans' slices are thickest that way"
    axis, count = across.most_common(1)[0] if across else (2, 0)
    if count < MOST * len(scans):
        axis, reason = 2, "no direction in which the voxels of most scans are thickest"
    lying = next(name for name, axes in SLICE_AXES.items() if axes[2] == axis)
    return asked.choice(reason, preprocessing__slice_axis=lying)


def network_choices(networks: Mapping[str, Mapping[str, Any]], asked: Asked, steps: str = "") -> list[Choice]:
    """What the registration network and the joint model are; ``steps``: what is to be said of the time of the volume network."""
    fine = networks["registration"]["field_stride"] == [2, 2, 2]
    stride = asked.choice(
        "as working voxels are nearly isotropic, the field has half their resolution along every axis"
        if fine
        else "the field has a quarter of the resolution in plane" + (", all of it through the slices" if asked.dims == 3 else ""),
        registration__field_stride=list(networks["registration"]["field_stride"]),
    )
    if asked.value("registration.joint") is False:
        return [stride]
    joint = networks["joint"]
    keys: tuple[str, ...]
    if asked.dims == 2:
        keys = ("atlases", "slice_budget", "volume_budget", "recentre")
        reason = "slices are seen beside the atlases of their neighbours; there is no volume to see"
    elif fine:
        keys = ("volume_network", "volume_stride")
        full = joint["volume_stride"] == [1, 1, 1]
        reason = f"the volume network works at {'full' if full else 'half the'} resolution, as voxels are nearly isotropic"
    else:
        keys = ("volume_network", "volume_stride")
        reason = "the volume network sees pixels of half the resolution, as slices are thick"
    if joint.get("box_budget"):
        keys += ("slice_budget", "volume_budget", "box_budget", "even_draws", "estimate_weight")
        reason += (
            f"; {joint['box_budget']:.0%} of the time are for the network that looks again in boxes, and atlases only tell how "
        )
        reason += "sure a result is"
    elif joint["slice_budget"] != UNPLANNED[asked.dims]["joint"]["slice_budget"]:
        keys += ("slice_budget", "volume_budget", "estimate_weight")
        reason += (
            "; most of the time is for the slice network, which sees the fine grid, and atlases only tell how sure a result is"
        )
    shown = asked.choice(f"{reason}; {steps}" if steps else reason, **{f"joint__{key}": joint[key] for key in keys})
    return [stride, shown]


def intensity(fingerprint: Fingerprint, asked: Asked, grid: Choice) -> Choice:
    """How intensities are normalised."""
    scans = fingerprint.labelled
    if np.mean([scan.lowest < HOUNSFIELD for scan in scans]) >= MOST:
        return _ct(fingerprint, asked)
    field_mm = np.multiply(grid.values[GRID[0]], grid.values[GRID[1]])
    bias = float(np.quantile([scan.bias for scan in scans], MOST))
    cut = float(np.median([scan.constant for scan in scans]))
    if cut > CUT_AWAY:
        value, reason = "zscore", f"{cut:.0%} of the voxels are empty: the surroundings were cut away"
    elif min(field_mm) < FEW_MM:
        value, reason = "zscore", f"a field of view of {min(field_mm):.0f} mm is too small to tell a coil's field from tissue"
    elif bias >= BIAS:
        value, reason = "local", f"the brightness of one tissue changes by {bias:.0%} with place, as beside a coil"
    else:
        value, reason = "zscore", f"the brightness of one tissue changes by no more than {bias:.0%} with place"
    return asked.choice(f"not CT: {reason}", preprocessing__intensity=value)


def _ct(fingerprint: Fingerprint, asked: Asked) -> Choice:
    """CT: a window round the structures' own values."""
    inside = [s for scan in fingerprint.labelled for s in scan.structures.values()]
    low, high = float(np.median([s.low for s in inside])), float(np.median([s.high for s in inside]))
    reason = f"CT, as most scans show air; the structures have {low:.0f} to {high:.0f} HU"
    side = max((high - low) / 2, 50.0)  # what lies round a structure must stay different from it
    window: list[Any] = [float(math.floor((low - side) / 10) * 10), float(math.ceil((high + side) / 10) * 10)]
    if (channels := fingerprint.scans[0].channels) > 1:  # what the others are is not known
        window = [window, *[None] * (channels - 1)]
    return asked.choice(reason, preprocessing__intensity="window", preprocessing__window=window)


def mirroring(fingerprint: Fingerprint, asked: Asked, lying: str) -> Choice:
    """Whether left and right may be exchanged, in training and in the estimate; not in sagittal slices, which show one side."""
    reason = sided(fingerprint)
    if lying == "sagittal":
        reason = reason or "a mirrored sagittal slice exchanges front and back, which no patient shows"
    values: dict[str, Any] = {"augmentation__flip": 0.0 if reason else 0.5}
    if asked.value("registration.joint") is not False:
        values["joint__tta_flip"] = not reason
    return asked.choice(reason or "no structure has a side: left and right may be exchanged", **values)


STEP_BYTES = {"usual": 700, "fine": 3000}  # of memory per working voxel and image of a batch, measured; networks in all ~1 GB
BASE_GB = 1.5


def batch(fingerprint: Fingerprint, asked: Asked, made: Sequence[Choice]) -> Choice:
    """Pairs in a training step: fewer where the memory would not do."""
    values = {option: value for choice in made for option, value in choice.values.items()}
    size = values.get(GRID[0])
    if size is None:
        return asked.choice("the usual number", training__batch=2)
    fine = values.get("joint.volume_stride") == [1, 1, 1]
    each = math.prod(size) * STEP_BYTES["fine" if fine else "usual"] * (12 if asked.dims == 2 else 1) / 2**30
    fits = BASE_GB + 2 * each < 0.6 * fingerprint.memory_gb
    number = asked.value("training.batch") or (2 if fits else 1)
    workers = int(asked.config.get("workers") or 1)
    needed = workers * (BASE_GB + number * each)
    reason = f"training takes about {needed:.1f} of {fingerprint.memory_gb:.0f} GB"
    minutes = asked.value("training.minutes")
    if minutes is not None:
        folds = 1 if asked.config.get("fold") is not None else int(asked.config.get("k") or 5)
        if fingerprint.patients < folds and asked.config.get("folds") == "patient":
            folds = fingerprint.patients
            reason += f"; {folds} patients make {folds} folds at most (k={folds})"
        total = minutes * folds / workers
        reason += f"; {minutes:g} min a fold on {fingerprint.cores} cores, {total:.0f} for {folds} of a cross-validation"
    return asked.choice(reason, training__batch=2 if fits else 1)
