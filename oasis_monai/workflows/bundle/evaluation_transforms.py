"""What ``configs/evaluate.json`` of a bundle uses: labelled scans, and their labels as class indices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from oasis_monai.data.cases import find_cases
from oasis_monai.data.formats.dicom import is_dicom_label
from oasis_monai.data.io import read_volume
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import IGNORE, Case
from oasis_monai.utils.errors import DataError, Fault


def labelled_scans_in(path: str, channels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The labelled scans of a data set for MONAI's data sets: ``[{"image": PATH, "label": PATH}, ...]``; a scan of several images
    has a list of them.

    Args:
        path: a folder (any layout that ``oasis-monai train data.root=`` recognises), or the table or list of a data set.
        channels: the names of the model's channels, to take where the scans have others too.

    Raises:
        DataError: there is none, or a file holds more channels than the model's, or a label is drawn (DICOM SEG, RTSTRUCT).
        ConfigError: the layout cannot be recognised.

    Examples:
        >>> from oasis_monai.workflows.bundle import labelled_scans_in
        >>> labelled_scans_in("data/prostate")[0]
        {'image': 'data/prostate/Case00.mhd', 'label': 'data/prostate/Case00_segmentation.mhd'}
    """
    items: list[dict[str, Any]] = []
    for case in find_cases(path, data=DataSettings(channels=tuple(channels)), warn=lambda _: None):
        assert case.label is not None
        if case.take or is_dicom_label(case.label):
            what = ("channels", "the model's alone", "others too") if case.take else ("label", "an image", "a DICOM label")
            raise DataError(Fault(case.id, *what, "use oasis-monai evaluate, which reads it"))
        files: list[Any] = [str(one) for one in case.source]
        if case.channels:
            files = [[str(one) for one in source] for source in case.sources]
        items.append({"image": files if case.more or case.channels else files[0], "label": str(case.label)})
    return items


class ReadReferenced(MapTransform):
    """Read labels as class indices, on the grid of their image; checked as for a training.

    Args:
        keys: of the paths of labels.
        label_values: value in the file of each class, background first.
        background: values that count as background.
        ignore: value of voxels that nobody labelled, which become 255; None: there are none.
        image_key: of the image's path; it must not be loaded yet.

    Call: dict with paths -> the same with ``MetaTensor`` (1, x, y, z) uint8 class indices in the place of the labels.

    Raises:
        DataError: see :func:`oasis_monai.data.io.read_volume`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Sequence[int],
        background: Sequence[int] = (),
        ignore: int | None = None,
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.label_values, self.background = tuple(label_values), tuple(background)
        self.ignore, self.image_key = ignore, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        source = d[self.image_key]
        files: list[Any] = [source] if isinstance(source, str | Path) else list(source)
        first, *others = files if isinstance(files[0], list | tuple) else [files]
        image, *more = (Path(one) for one in first)
        channels = tuple(tuple(Path(one) for one in other) for other in others)
        for key in self.keys:
            path = Path(d[key])
            case = Case(path.name, image, path, tuple(more), channels, background=self.background)
            volume = read_volume(case, self.label_values, self.ignore)
            assert volume.label is not None
            d[key] = MetaTensor(volume.label, affine=torch.as_tensor(volume.geometry.affine, dtype=torch.float64))
        return d


class HideUnlabelledd(MapTransform):
    """Background in all ``keys`` where the class indices of ``reference_key`` are 255: there is nothing to compare with."""

    def __init__(self, keys: KeysCollection, reference_key: str) -> None:
        super().__init__(keys)
        self.reference_key = reference_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        unlabelled = torch.as_tensor(d[self.reference_key]) == IGNORE
        for key in self.keys:
            d[key] = torch.where(unlabelled.to(d[key].device), torch.zeros_like(d[key]), d[key])
        return d
