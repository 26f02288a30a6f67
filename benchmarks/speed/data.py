"""The pairs and cases that every method receives, on the same grid, as plain arrays in one file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GRIDS: dict[int, dict[str, Any]] = {
    3: {
        "preprocessing": {"name": "physical", "size": [80, 80, 32], "spacing_mm": [1.25, 1.25, 3.0], "intensity": "local"},
        "registration": {"channels": [16, 32, 64], "field_stride": [4, 4, 1], "joint": False},
        "network": {"unet": [16, 32, 64, 128]},
    },
    2: {
        "preprocessing": {"name": "paper", "size": [320, 320]},
        "registration": {"channels": [16, 32, 32, 64], "field_stride": [4, 4], "joint": False},
        "training": {"batch": 4, "nearest_partners": 4},
    },
}
"""The grids of the comparison with the paper. The STM predicts its field on a grid four times coarser in plane."""


@dataclass(frozen=True)
class World:
    """Pairs and cases of one grid. Axes are (x, y) or (x, y, z).

    Args:
        spacing_mm: voxel size along each axis.
        fixed, moving: (P, *S) float32 targets and the atlases to align to them.
        fixed_label, moving_label: (P, *S) uint8, 0 or 1.
        targets, target_labels: (T, *S) cases to segment; T = 0 for slices.
        atlases, atlas_labels: (T, n, *S) the atlases selected for each case, the same for every method.
        cases: ids of the targets. train: ids of the training cases. root: folder of the data set.
    """

    spacing_mm: tuple[float, ...]
    fixed: np.ndarray
    moving: np.ndarray
    fixed_label: np.ndarray
    moving_label: np.ndarray
    targets: np.ndarray
    target_labels: np.ndarray
    atlases: np.ndarray
    atlas_labels: np.ndarray
    cases: tuple[str, ...]
    train: tuple[str, ...]
    root: str

    @property
    def dims(self) -> int:
        return len(self.spacing_mm)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        plain = {k: v for k, v in vars(self).items() if not isinstance(v, np.ndarray)}
        arrays: dict[str, Any] = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        np.savez(folder / "world.npz", **arrays)
        (folder / "world.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> World:
        plain = json.loads((folder / "world.json").read_text(encoding="utf-8"))
        listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        with np.load(folder / "world.npz", allow_pickle=False) as arrays:
            return cls(**listed, **dict(arrays))


def configuration(root: str, dims: int, joint: bool, minutes: float, train: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The settings of an OASIS model on the grid of the benchmark, as :func:`oasis_monai.settings.build` takes them."""
    grid = GRIDS[dims]
    return {
        "spatial_dims": dims,
        "data": {"name": Path(root).name, "root": root, "layout": "promise12", "include": list(train)},
        "methods": ["OASIS-joint"] if joint else ["OASIS"],
        "cache": str(folder / "cache"),
        "progress": False,
        **grid,
        "registration": {**grid["registration"], "joint": joint},
        "training": {**grid.get("training", {}), "minutes": minutes},
    }


def make_world(root: str, dims: int, model: Path | None, pairs: int, cases: int, n: int, folder: Path) -> World:
    """Choose test cases, their atlases and pairs, and save them in ``folder``.

    Every eighth case of the data set is a test case; with ``model``, every case that is not among its atlases. A pair is a
    test case (in 2D: its slice with the largest structure) and one of its nearest atlases.

    Raises:
        OasisError: the data set or the model cannot be used, or the model was trained on all cases.
    """
    import torch

    from oasis_monai.atlases.selection import nearest
    from oasis_monai.data.cases import find_cases
    from oasis_monai.settings import build
    from oasis_monai.utils.errors import ConfigError
    from oasis_monai.workflows.model import load_model
    from oasis_monai.workflows.prepare import prepare

    found = find_cases(root, "promise12")
    ids = [case.id for case in found]
    if model is None:
        settings = build(configuration(root, dims, False, 1.0, (), folder))
        test = set(ids[::8])
    else:
        loaded = load_model(model, "cpu")
        settings, segmenter = loaded.settings, loaded.segmenter
        test = set(ids) - set(segmenter.library.cases)
    train = tuple(i for i in ids if i not in test)
    if not test or len(train) < n:
        expected = f"a data set with cases the model has not seen and {n} atlases or more"
        raise ConfigError(
            "model", expected, f"{len(test)} and {len(train)}", "train the model on fewer cases: data.include=[...]"
        )
    dataset = prepare(settings, found, folder / "cache", print)
    library = dataset.library
    from_test = torch.tensor([case in test for case in library.cases])
    sizes = library.labels.flatten(1).float().sum(1)
    largest = {c: max((i for i, o in enumerate(library.cases) if o == c), key=lambda i: float(sizes[i])) for c in sorted(test)}
    shown = torch.tensor(list(largest.values()))
    # an atlas without the structure has no Dice: take only slices that show it
    pool = ((~from_test) & (sizes > 0)).nonzero()[:, 0]
    near = pool[nearest(library.features[shown], library.features[pool], n)[0]]
    which = [(i % len(shown), i // len(shown)) for i in range(pairs)]
    onto = shown[[t for t, _ in which]].numpy()
    from_ = near[[t for t, _ in which], [k % n for _, k in which]].numpy()
    kept = list(range(min(cases, len(shown)))) if dims == 3 else []
    whole, beside = shown[kept].numpy(), near[kept].numpy()  # NumPy treats a tensor with one element as a number
    images, labels = library.images[:, 0].numpy(), (library.labels[:, 0] > 0).numpy().astype(np.uint8)
    world = World(
        dataset.targets[next(iter(largest))].geometry.spacing_mm[:dims],
        images[onto],
        images[from_],
        labels[onto],
        labels[from_],
        images[whole],
        labels[whole],
        images[beside],
        labels[beside],
        tuple(list(largest)[i] for i in kept),
        train,
        root,
    )
    world.save(folder)
    return world
