"""MONAI transforms for atlas-based segmentation, and the preprocessing behind them.

Each transform has an array form ``X`` and a dictionary form ``Xd`` (= ``XD`` = ``XDict``), usable in ``Compose`` and by name in a
bundle (``"_target_": "oasis_monai.transforms.RobustZScored"``). Public modules: :mod:`.array`, :mod:`.array_intensity` and
:mod:`.dictionary` (these transforms), :mod:`.metadata`, :mod:`.preprocessing` (the working grid), :mod:`.spatial` (voxel grids),
:mod:`.intensity`, :mod:`.labels`, :mod:`.augmentation`, :mod:`.corruptions`.

Examples:
    >>> from monai.transforms import Compose
    >>> from oasis_monai.transforms import LoadVolumed, LocalZScored, PhysicalFieldOfViewd
    >>> prepare = Compose([
    ...     LoadVolumed("image"),
    ...     PhysicalFieldOfViewd("image", spacing_mm=(2.0, 2.0, 4.0), size=(48, 48, 16)),
    ...     LocalZScored("image"),
    ... ])
    >>> prepare({"image": "scan.nii.gz"})["image"].shape
    torch.Size([1, 48, 48, 16])
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from oasis_monai.transforms.array import (
        InPlaneResize,
        LoadVolume,
        OneHotLabels,
        PhysicalFieldOfView,
        RestoreToGrid,
        SaveVolume,
    )
    from oasis_monai.transforms.array_intensity import ClipWindow, LocalZScore, RobustZScore, ScaleWindow
    from oasis_monai.transforms.dictionary import (
        ClipWindowD,
        ClipWindowd,
        ClipWindowDict,
        InPlaneResizeD,
        InPlaneResized,
        InPlaneResizeDict,
        LoadVolumeD,
        LoadVolumed,
        LoadVolumeDict,
        LocalZScoreD,
        LocalZScored,
        LocalZScoreDict,
        OneHotLabelsD,
        OneHotLabelsd,
        OneHotLabelsDict,
        PhysicalFieldOfViewD,
        PhysicalFieldOfViewd,
        PhysicalFieldOfViewDict,
        RestoreToGridD,
        RestoreToGridd,
        RestoreToGridDict,
        RobustZScoreD,
        RobustZScored,
        RobustZScoreDict,
        SaveVolumeD,
        SaveVolumed,
        SaveVolumeDict,
        ScaleWindowD,
        ScaleWindowd,
        ScaleWindowDict,
    )

_SPATIAL = ["InPlaneResize", "LoadVolume", "OneHotLabels", "PhysicalFieldOfView", "RestoreToGrid", "SaveVolume"]
_INTENSITY = ["ClipWindow", "LocalZScore", "RobustZScore", "ScaleWindow"]
_DICTIONARY = [f"{name}{ending}" for name in (*_SPATIAL, *_INTENSITY) for ending in ("d", "D", "Dict")]
_HOMES = {"array": _SPATIAL, "array_intensity": _INTENSITY, "dictionary": _DICTIONARY}
# on first use: these modules import MONAI, in seconds, and the others of this package do without it
__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs=_HOMES)

__all__ = [
    "ClipWindow",
    "ClipWindowD",
    "ClipWindowDict",
    "ClipWindowd",
    "InPlaneResize",
    "InPlaneResizeD",
    "InPlaneResizeDict",
    "InPlaneResized",
    "LoadVolume",
    "LoadVolumeD",
    "LoadVolumeDict",
    "LoadVolumed",
    "LocalZScore",
    "LocalZScoreD",
    "LocalZScoreDict",
    "LocalZScored",
    "OneHotLabels",
    "OneHotLabelsD",
    "OneHotLabelsDict",
    "OneHotLabelsd",
    "PhysicalFieldOfView",
    "PhysicalFieldOfViewD",
    "PhysicalFieldOfViewDict",
    "PhysicalFieldOfViewd",
    "RestoreToGrid",
    "RestoreToGridD",
    "RestoreToGridDict",
    "RestoreToGridd",
    "RobustZScore",
    "RobustZScoreD",
    "RobustZScoreDict",
    "RobustZScored",
    "SaveVolume",
    "SaveVolumeD",
    "SaveVolumeDict",
    "SaveVolumed",
    "ScaleWindow",
    "ScaleWindowD",
    "ScaleWindowDict",
    "ScaleWindowd",
]
