"""The rules of the plan: what the measures of a data set say its settings should be. docs/explanation/plan.md gives the reasons.

Each rule is a function of the :class:`.Fingerprint` and of what the user has given; nothing is read or trained here. The numbers
are those with which PROMISE12 and the hippocampus were tuned by hand (docs/results/accuracy.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oasis_monai.settings import Settings, build
from oasis_monai.transforms.intensity import LOCAL_MM
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.planned import UNPLANNED, fill
from oasis_monai.workflows.fingerprint import Fingerprint
from oasis_monai.workflows.plan_sides import sided

MARGIN = 0.1  # surroundings the networks should see beyond the labels, as a fraction of the labels' extent
MARGIN_MM = 5.0  # the smallest such margin
VOXELS = {2: 96 * 96, 3: 96 * 96 * 32}  # most voxels of a grid: the default training minutes were chosen for these
THIN_VOXELS = 4  # so many times more where structures are thin
THIN = 1.0  # a structure is thin if it has less than so many voxels of the usual grid across (2 volume / surface)
ROUND_MM = (0.1, 0.125, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
"""Voxel sizes a plan takes: round ones, so that one scan more does not change the grid."""
SAME = 1.15  # voxels at most so much longer count as the same: an axis near the finest gets its size, which is a round one
ANISOTROPIC = 3.0  # slices are at most so many times thicker than pixels: nnU-Net's limit, Isensee et al. 2021
NEARLY_ISOTROPIC = 2.0  # below this ratio of the longest to the shortest side of a voxel all axes are halved alike
HOUNSFIELD = -200.0  # MR has no values below that, CT has air
MOST = 0.75  # fraction of scans that decides of what kind a data set is
BIAS = 0.2  # brightness of one tissue that changes by so much with place is a coil's field
FEW_MM = 4 * LOCAL_MM  # a field of view below this shows the neighbourhood of local normalisation, not more
CUT_AWAY = 0.3  # fraction of voxels of one lowest value from which on the surroundings are taken for cut away
GRID = ("preprocessing.size", "preprocessing.spacing_mm")


@dataclass(frozen=True)
class Choice:
    """One decision of the plan.

    Args:
        values: option (with its group) -> value, plain JSON values.
        reason: why.
        given: those of the options whose values the user has set.
    """

    values: Mapping[str, Any]
    reason: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What the user's configuration says.

    Args:
        config: the plain configuration, null where the plan is to choose.
        dims: ``spatial_dims``.
    """

    config: Mapping[str, Any]
    dims: int

    def value(self, option: str) -> Any:
        """The value of ``group.key``; None where the plan is to choose."""
        group, _, key = option.partition(".")
        return (self.config.get(group) or {}).get(key)

    def choice(self, reason: str, **values: Any) -> Choice:
        """A choice of ``group__key=value``, in whose place the user's values are taken."""
        named = {name.replace("__", "."): value for name, value in values.items()}
        given = tuple(option for option in named if self.value(option) is not None)
        return Choice({o: self.value(o) if o in given else v for o, v in named.items()}, reason, given)


def choose(fingerprint: Fingerprint, config: Mapping[str, Any]) -> list[Choice]:
    """All decisions for a data set.

    Args:
        fingerprint: with one labelled scan or more.
        config: the plain configuration, null where the plan is to choose.

    Raises:
        ConfigError: what the user has given cannot work, whatever is chosen beside it.
    """
    asked = Asked(config, config.get("spatial_dims", 3))
    made = []
    networks: Mapping[str, Mapping[str, Any]]
    if asked.value("preprocessing.name") == "paper":
        networks = _family(asked, is_fine(own_spacing(fingerprint)[: asked.dims]))
    else:
        grid, networks = working_grid(fingerprint, asked)
        made += [grid, intensity(fingerprint, asked, grid)]
    made += network_choices(networks, asked)
    made += [mirroring(fingerprint, asked), batch(fingerprint, asked, made)]
    return made


def working_grid(fingerprint: Fingerprint, asked: Asked) -> tuple[Choice, Mapping[str, Mapping[str, Any]]]:
    """The grid, and the values of the networks that go with it.

    It holds every label with a margin, but nothing that no scan shows. Its voxels are the scans' own: of the finest quarter of
    them in plane, of the median scan through the slices, which are at most :data:`ANISOTROPIC` times thicker. They are made
    coarser from the finest axis on, in steps of :data:`ROUND_MM`, until there are no more than :data:`VOXELS`, or
    :data:`THIN_VOXELS` times as many where a structure would have less than :data:`THIN` of them across.
    """
    dims, scans = asked.dims, fingerprint.labelled
    extent = np.max([scan.label_extent_mm for scan in scans], 0)[:dims]
    largest = np.max([scan.size_mm for scan in scans], 0)[:dims]
    wanted = np.minimum(2 * (extent + np.maximum(MARGIN * extent, MARGIN_MM)), largest)
    least = np.minimum(2 * extent, largest)
    own = own_spacing(fingerprint)[:dims]
    spacing, size, networks = _finest(own, wanted, least, asked, VOXELS[dims])
    thin = thinnest(fingerprint)
    is_thin = thin is not None and thin[1] < THIN * min(spacing)
    if is_thin:
        spacing, size, networks = _finest(own, wanted, least, asked, THIN_VOXELS * VOXELS[dims])
    reach = " x ".join(f"{v:.0f}" for v in extent)
    reason = f"labels reach {reach} mm from the images' centres; the scans' voxels are {_mm(own)}"
    if max(spacing) > 1.01 * max(own) or min(spacing) > 1.3 * min(own):
        limit = VOXELS[dims] * (THIN_VOXELS if is_thin else 1)
        reason += f", made coarser for at most {limit:,} voxels"
    if is_thin and thin is not None:
        reason += f" ({THIN_VOXELS} times the usual: {thin[0]} is {thin[1]:.1f} mm thin)"
    return asked.choice(reason, preprocessing__size=size, preprocessing__spacing_mm=spacing), networks


def own_spacing(fingerprint: Fingerprint) -> np.ndarray:
    """Voxels of the data set along x, y, z: the lower quartile, along the coarsest axis the median."""
    every = np.array([scan.spacing_mm for scan in fingerprint.labelled])
    found, median = np.quantile(every, 0.25, axis=0), np.median(every, 0)
    coarsest = int(np.argmax(median))
    found[coarsest] = median[coarsest]
    return found


def thinnest(fingerprint: Fingerprint) -> tuple[str, float] | None:
    """The thinnest structure and its thickness in mm in the median scan."""
    medians = {
        index: float(np.median([s.structures[index].thickness_mm for s in fingerprint.labelled if index in s.structures]))
        for index in fingerprint.present
    }
    if not medians:
        return None
    index = min(medians, key=medians.__getitem__)
    return fingerprint.name_of(index), medians[index]


def _finest(
    own: np.ndarray, wanted: np.ndarray, least: np.ndarray, asked: Asked, voxels: int
) -> tuple[list[float], list[int], Mapping[str, Mapping[str, Any]]]:
    """The finest grid of at most ``voxels``, or of the size or voxels that the user has given."""
    given_size, given_spacing = asked.value(GRID[0]), asked.value(GRID[1])
    first = next((mm for mm in ROUND_MM if SAME * mm >= own.min()), ROUND_MM[-1])
    for mm in ROUND_MM[ROUND_MM.index(first) :]:
        spacing = list(given_spacing) if given_spacing is not None else _spacing(own, mm)
        networks = _family(asked, is_fine(spacing))
        plain = _plain_settings(asked, networks)
        if given_size is not None and not _takes(plain, given_size, spacing):
            other = _family(asked, not is_fine(spacing))
            if _takes(_plain_settings(asked, other), given_size, spacing):
                networks = other
        size = list(given_size) if given_size is not None else _size(wanted, least, spacing, plain.divisor)
        if given_spacing is not None or mm == ROUND_MM[-1]:
            break
        if given_size is not None:
            if (np.multiply(size, spacing) >= 0.97 * wanted).all():
                break
        elif math.prod(size) <= voxels or size == list(plain.divisor):
            break
    while given_size is None and not _takes(plain, size, spacing) and math.prod(size) <= voxels:
        shortest = int(np.argmin(np.divide(size, plain.divisor)))
        size[shortest] += plain.divisor[shortest]
    return spacing, size, networks


def _spacing(own: np.ndarray, finest: float) -> list[float]:
    """Voxels whose shortest side is ``finest``: the others are the scans' own, within the limits."""
    found = []
    for mm in own:
        if mm < SAME * finest:
            found.append(finest)
        else:
            found.append(float(min(math.ceil(round(100 * mm, 6)) / 100, ANISOTROPIC * finest)))
    return found


def _size(wanted: np.ndarray, least: np.ndarray, spacing: Sequence[float], divisor: Sequence[int]) -> list[int]:
    """Voxels that hold all labels; the margin round them is rounded to what the networks can halve."""
    found = []
    for field, labels, mm, by in zip(wanted, least, spacing, divisor, strict=True):
        blocks = max(math.floor(field / (mm * by) + 0.5), math.ceil(round(labels / (mm * by), 6)), 1)
        found.append(blocks * by)
    return found


def is_fine(spacing: Sequence[float] | np.ndarray) -> bool:
    """Whether networks should halve all axes of such voxels alike."""
    return len(spacing) == 3 and max(spacing) < NEARLY_ISOTROPIC * min(spacing)


def _family(asked: Asked, fine: bool) -> Mapping[str, Mapping[str, Any]]:
    """Values of the groups ``registration`` and ``joint``: those for nearly isotropic voxels, or the usual ones."""
    usual = {group: UNPLANNED[asked.dims][group] for group in ("registration", "joint")}
    if not fine or asked.dims == 2:
        return usual
    joint = {**usual["joint"], "volume_network": "DynU-Net3D", "volume_stride": [1, 1, 1]}
    return {"registration": {"field_stride": [2, 2, 2]}, "joint": joint}


def _plain_settings(asked: Asked, networks: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Settings with these networks, whatever their grid."""
    config = fill(asked.config, {**networks, "preprocessing": {"intensity": "zscore"}})
    error: ConfigError | None = None
    for side in (256, 288, 480):  # most networks can halve these
        try:
            config["preprocessing"] = {**config["preprocessing"], "size": [side] * asked.dims, "spacing_mm": [1.0] * asked.dims}
            return build(config)
        except ConfigError as found:
            error = error or found
    assert error is not None
    raise error


def _takes(settings: Settings, size: Sequence[int], spacing: Sequence[float]) -> bool:
    try:
        return settings.takes(Preprocessing("physical", settings.spatial_dims, tuple(size), tuple(spacing)))
    except ConfigError:
        return False


def network_choices(networks: Mapping[str, Mapping[str, Any]], asked: Asked) -> list[Choice]:
    """What the registration network and the joint model are."""
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
        reason = "the volume network works at full resolution, as voxels are nearly isotropic"
    else:
        keys = ("volume_network", "volume_stride")
        reason = "the volume network sees pixels of half the resolution, as slices are thick"
    shown = asked.choice(reason, **{f"joint__{key}": joint[key] for key in keys})
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
    return asked.choice(f"MR: {reason}", preprocessing__intensity=value)


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


def mirroring(fingerprint: Fingerprint, asked: Asked) -> Choice:
    """Whether left and right may be exchanged, in training and in the estimate."""
    reason = sided(fingerprint)
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
    fine = values.get("joint.volume_network") == "DynU-Net3D"
    each = math.prod(size) * STEP_BYTES["fine" if fine else "usual"] * (12 if asked.dims == 2 else 1) / 2**30
    fits = BASE_GB + 2 * each < 0.6 * fingerprint.memory_gb
    number = asked.value("training.batch") or (2 if fits else 1)
    workers = int(asked.config.get("workers") or 1)
    needed = workers * (BASE_GB + number * each)
    reason = f"training takes about {needed:.1f} of {fingerprint.memory_gb:.0f} GB"
    minutes = asked.value("training.minutes")
    if minutes is not None:
        folds = 1 if asked.config.get("fold") is not None else int(asked.config.get("k") or 5)
        total = minutes * folds / workers
        reason += f"; {minutes:g} min a fold on {fingerprint.cores} cores, {total:.0f} for {folds} of a cross-validation"
    return asked.choice(reason, training__batch=2 if fits else 1)


def _mm(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values) + " mm"
