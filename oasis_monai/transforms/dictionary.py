"""Dictionary transforms: apply the array transform of the same name to every key; ``Xd`` = ``XD`` = ``XDict``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform
from monai.utils.misc import ensure_tuple_rep

from oasis_monai.transforms.array import (
    InPlaneResize,
    LoadVolume,
    OneHotLabels,
    PhysicalFieldOfView,
    RestoreToGrid,
    SaveVolume,
)
from oasis_monai.transforms.array_intensity import ClipWindow, LocalZScore, RobustZScore, ScaleWindow
from oasis_monai.transforms.intensity import LOCAL_MM


class _EachKey(MapTransform):
    """Applies one transform to every key, or the k-th of several to the k-th key."""

    def __init__(self, keys: KeysCollection, transforms: Any, allow_missing_keys: bool) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transforms: tuple[Callable[[Any], Any], ...] = ensure_tuple_rep(transforms, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, transform in self.key_iterator(d, self.transforms):
            d[key] = transform(d[key])
        return d


class LoadVolumed(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.LoadVolume`."""

    backend = LoadVolume.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, LoadVolume(), allow_missing_keys)


class RobustZScored(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.RobustZScore`."""

    backend = RobustZScore.backend

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        padding: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RobustZScore(lower, upper, padding), allow_missing_keys)


class LocalZScored(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.LocalZScore`."""

    backend = LocalZScore.backend

    def __init__(
        self,
        keys: KeysCollection,
        sigma_mm: float = LOCAL_MM,
        lower: float = 0.5,
        upper: float = 99.5,
        padding: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, LocalZScore(sigma_mm, lower, upper, padding), allow_missing_keys)


class ClipWindowd(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.ClipWindow`."""

    backend = ClipWindow.backend

    def __init__(self, keys: KeysCollection, window: Sequence[Any], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, ClipWindow(window), allow_missing_keys)


class ScaleWindowd(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.ScaleWindow`."""

    backend = ScaleWindow.backend

    def __init__(
        self,
        keys: KeysCollection,
        window: Sequence[Any],
        lower: float = 0.5,
        upper: float = 99.5,
        padding: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, ScaleWindow(window, lower, upper, padding), allow_missing_keys)


class PhysicalFieldOfViewd(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.PhysicalFieldOfView`; ``label``: one for all keys or one a key."""

    backend = PhysicalFieldOfView.backend

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: Sequence[float | None],
        size: Sequence[int | None],
        label: bool | Sequence[bool] = False,
        padding: float = 0.0,
        anti_alias: bool = True,
        allow_missing_keys: bool = False,
        slice_axis: str = "axial",
        fine_factor: Sequence[int] | None = None,
    ) -> None:
        common = (padding, anti_alias, slice_axis, fine_factor)
        each = [PhysicalFieldOfView(spacing_mm, size, one, *common) for one in _per_key(keys, label)]
        super().__init__(keys, each, allow_missing_keys)


class InPlaneResized(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.InPlaneResize`; ``label``: one for all keys or one a key."""

    backend = InPlaneResize.backend

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int] = (320, 320),
        label: bool | Sequence[bool] = False,
        anti_alias: bool = True,
        allow_missing_keys: bool = False,
        slice_axis: str = "axial",
    ) -> None:
        each = [InPlaneResize(size, one, anti_alias, slice_axis) for one in _per_key(keys, label)]
        super().__init__(keys, each, allow_missing_keys)


class RestoreToGridd(MapTransform):
    """Dictionary form of :class:`~oasis_monai.transforms.RestoreToGrid`.

    Args:
        keys: probability maps.
        reference_keys: keys of the references, one for all or one a key; None: each map's own metadata.
        threshold: see the array form.
        original: see the array form.
    """

    backend = RestoreToGrid.backend

    def __init__(
        self,
        keys: KeysCollection,
        reference_keys: KeysCollection | None = None,
        threshold: bool = True,
        original: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_keys = ensure_tuple_rep(reference_keys, len(self.keys))
        self.transform = RestoreToGrid(threshold, original)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, reference in self.key_iterator(d, self.reference_keys):
            d[key] = self.transform(d[key], None if reference is None else data[reference])
        return d


class SaveVolumed(MapTransform):
    """Dictionary form of :class:`~oasis_monai.transforms.SaveVolume`.

    Args:
        keys: what to write.
        output_dir, output_postfix, output_ext: see the array form; one postfix for all keys or one a key.
        name_key: key of the name; where it is None or absent the file's own name is taken.
    """

    backend = SaveVolume.backend

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        output_postfix: str | Sequence[str] = "segmentation",
        output_ext: str = ".nii.gz",
        name_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transforms = [SaveVolume(output_dir, postfix, output_ext) for postfix in _per_key(keys, output_postfix)]
        self.name_key = name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        name = None if self.name_key is None else d.get(self.name_key)
        for key, transform in self.key_iterator(d, self.transforms):
            transform(d[key], name)
        return d


class OneHotLabelsd(_EachKey):
    """Dictionary form of :class:`~oasis_monai.transforms.OneHotLabels`."""

    backend = OneHotLabels.backend

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Sequence[int],
        one_hot: bool = True,
        ignore: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, OneHotLabels(label_values, one_hot, ignore), allow_missing_keys)


def _per_key(keys: KeysCollection, values: Any) -> tuple[Any, ...]:
    return tuple(ensure_tuple_rep(values, 1 if isinstance(keys, str) or not isinstance(keys, Sequence) else len(keys)))


LoadVolumeD = LoadVolumeDict = LoadVolumed
RobustZScoreD = RobustZScoreDict = RobustZScored
LocalZScoreD = LocalZScoreDict = LocalZScored
ClipWindowD = ClipWindowDict = ClipWindowd
ScaleWindowD = ScaleWindowDict = ScaleWindowd
PhysicalFieldOfViewD = PhysicalFieldOfViewDict = PhysicalFieldOfViewd
InPlaneResizeD = InPlaneResizeDict = InPlaneResized
RestoreToGridD = RestoreToGridDict = RestoreToGridd
SaveVolumeD = SaveVolumeDict = SaveVolumed
OneHotLabelsD = OneHotLabelsDict = OneHotLabelsd
