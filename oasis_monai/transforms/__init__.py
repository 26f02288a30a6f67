"""What MONAI lacks for atlas-based segmentation, as MONAI transforms: array form ``X``, dictionary form ``Xd`` (= ``XD`` =
``XDict``), usable in ``Compose`` and by name in a bundle (``"_target_": "oasis_monai.transforms.RobustZScored"``)."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from oasis_monai.transforms.array import (
        InPlaneResize,
        LoadVolume,
        LocalZScore,
        OneHotLabels,
        PhysicalFieldOfView,
        RestoreToGrid,
        RobustZScore,
        SaveVolume,
    )
    from oasis_monai.transforms.dictionary import (
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
    )

_ARRAY = [
    "InPlaneResize",
    "LoadVolume",
    "LocalZScore",
    "OneHotLabels",
    "PhysicalFieldOfView",
    "RestoreToGrid",
    "RobustZScore",
    "SaveVolume",
]
_DICTIONARY = [f"{name}{ending}" for name in _ARRAY for ending in ("d", "D", "Dict")]
# on first use: these modules import MONAI, in seconds, and the others of this package do without it
__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"array": _ARRAY, "dictionary": _DICTIONARY})

__all__ = [
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
]
