"""Write what a cross-validation shows of its cases: label maps, the case browser, contour pictures."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_monai.data.types import Case, Geometry, Segmentation
from oasis_monai.evaluation.scores import method_name
from oasis_monai.segmentation.methods import uses_estimate
from oasis_monai.segmentation.pipeline import CaseResult
from oasis_monai.segmentation.result import Key
from oasis_monai.segmentation.views import rows_of
from oasis_monai.settings import Settings
from oasis_monai.transforms.labels import belongs_to
from oasis_monai.utils.files import write_text
from oasis_monai.utils.words import SHOWN
from oasis_monai.workflows.scan_result import mask_files

PackedLabels = dict[tuple[str, str, int], bytes]
"""(case, method, n) -> the label of a result, compressed."""


def save_label(settings: Settings, run_dir: Path, result: Segmentation, method: str, n: int) -> bytes:
    """Write the label and the probability if the settings ask for it; return the compressed label for the pictures."""
    from oasis_monai.data.io import write_label, write_probability

    name = f"{result.case}__{method_name(method, n)}"
    path = run_dir / "segmentations" / f"{name}.nii.gz"
    if settings.save_segmentations:
        write_label(path, result.label, result.geometry, settings.data.label_values)
        if settings.save_structures or settings.data.overlap:
            for structure, file in mask_files(name, list(settings.data.scored), ".nii.gz").items():
                mask = belongs_to(result.label, settings.data.scored[structure])
                write_label(path.with_name(file), mask, result.geometry, (0, 1))
    if settings.save_probability and result.probability is not None:
        write_probability(path.with_name(f"{name}_probability.nii.gz"), result.probability, result.geometry)
    return zlib.compress(result.label.numpy().tobytes(), 1)


def read_saved(
    settings: Settings, run_dir: Path, packed: bytes, case: str, geometry: Geometry, method: str, n: int
) -> Segmentation:
    """What :func:`save_label` was given: the label, and the probability if the settings had it written."""
    label = torch.from_numpy(np.frombuffer(zlib.decompress(packed), np.uint8).reshape(geometry.shape).copy())
    probability = None
    if settings.save_probability:
        from nibabel.nifti1 import Nifti1Image

        path = run_dir / "segmentations" / f"{case}__{method_name(method, n)}_probability.nii.gz"
        probability = torch.from_numpy(np.moveaxis(np.asarray(Nifti1Image.from_filename(path).dataobj, np.float32), -1, 0).copy())
    return Segmentation(case, label, probability, geometry)


def replace_in_browser(run_dir: Path, result: Segmentation, method: str, n: int) -> None:
    """Put a result in the place of that of its method in what :func:`write_case_browser` wrote, if it is shown there."""
    from oasis_monai.data.io import to_canonical
    from oasis_monai.evaluation.case_view import replace_result

    label, _ = to_canonical(result.label.numpy(), result.geometry.affine)
    replace_result(run_dir / "browser", result.case, method_name(method, n), label)


def save_uncertainty(settings: Settings, run_dir: Path, case: str, maps: Mapping[Key, torch.Tensor], geometry: Geometry) -> None:
    """Write where each result is uncertain, (x, y, z) on the scan's own grid, if the settings ask for it."""
    from oasis_monai.data.io import write_probability

    for key, values in maps.items() if settings.save_uncertainty else ():
        write_probability(run_dir / "segmentations" / f"{case}__{method_name(*key)}_uncertainty.nii.gz", values, geometry)


def shown_keys(settings: Settings, keys: Iterable[Key]) -> list[Key]:
    """The results that the case browser shows: every method at one n (6 as in the paper, or the largest)."""
    n = 6 if 6 in settings.n else max(settings.n)
    return [key for key in keys if key[1] in (0, n)]


def write_case_browser(
    settings: Settings,
    run_dir: Path,
    protocol: str,
    fold: int,
    image: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[Key, Segmentation],
    case_result: CaseResult,
    uncertain: Mapping[Key, torch.Tensor],
) -> None:
    """Write a case for the report's case browser: the results of :func:`shown_keys`.

    Args:
        image: (x, y, z) on the scan's own grid; of several channels the first.
        reference: (x, y, z) class indices there.
        labels: by method and n, on that grid.
        case_result: the atlases selected, their weights, and the view of the scan.
        uncertain: (x, y, z) where a result is uncertain, on that grid.
    """
    from oasis_monai.data.io import to_canonical
    from oasis_monai.evaluation.case_view import write_browser

    n = 6 if 6 in settings.n else max(settings.n)
    shown = {method_name(*key): labels[key] for key in shown_keys(settings, labels)}
    first, seen = next(iter(shown.values())), _seen(case_result)
    affine = first.geometry.affine
    canonical, spacing_mm = to_canonical(image, affine)
    write_browser(
        run_dir / "browser",
        first.case,
        protocol,
        fold,
        canonical,
        to_canonical(reference, affine)[0],
        {name: to_canonical(result.label.numpy(), affine)[0] for name, result in shown.items()},
        spacing_mm,
        list(settings.data.scored),
        [[[used.case, used.slice, round(used.distance, 4)] for used in rows[:n]] for rows in case_result.atlases],
        {
            method_name(*key): [[round(weight, 4) for weight in row] for row in result.weights.tolist()]
            for key, result in case_result.results.items()
            if key[1] == n and result.weights is not None
        },
        {method_name(*key): seen for key in case_result.results if uses_estimate([key[0]])} if seen else {},
        {
            method_name(*key): to_canonical(values.numpy(), affine)[0]
            for key, values in uncertain.items()
            if key in shown_keys(settings, uncertain)
        },
        settings.data.members,
    )


def _seen(case_result: CaseResult) -> str:
    """The view of a case, in words; empty for the scan as it is."""
    taken = [row for row in rows_of(case_result.tried) if row["taken"]]
    if not case_result.view or not taken:
        return ""
    first = case_result.tried[0].agreement
    return f"{taken[0]['view']}: agreement {100 * taken[0]['agreement']:.0f} %, as it is {100 * first:.0f} %"


def write_views(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``views.csv``, the views of doubtful scans; nothing where there are none."""
    if rows:
        write_text(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def draw_overlays(
    settings: Settings, cases: Mapping[str, Case], rows: list[dict[str, Any]], packed_labels: PackedLabels, run_dir: Path
) -> set[Path]:
    """Draw cases at evenly spaced ranks of the last method, worst to best, for every method and n; return the files."""
    from oasis_monai.data.io import read_volume, to_canonical
    from oasis_monai.evaluation.contours import overlay

    whole = [r for r in rows if r["region"] == "whole" and r["method"] == settings.methods[-1]]
    dsc: dict[str, list[float]] = defaultdict(list)
    for row in whole:
        dsc[row["case"]].append(0.0 if np.isnan(row["dsc"]) else row["dsc"])
    ranked = sorted(dsc, key=lambda case: (float(np.mean(dsc[case])), case))
    ranks = np.linspace(0, len(ranked) - 1, min(settings.overlays, len(ranked))).round().astype(int)
    data = settings.data
    names, structures = dict(enumerate(data.labels, 1)), data.shared
    scores = {(r["case"], r["method"], r["n"], r["label"]): r["dsc"] for r in rows if r["region"] == "whole"}
    pictures = set()
    for case in dict.fromkeys(ranked[rank] for rank in ranks):
        volume = read_volume(cases[case], settings.data.label_values, settings.data.ignore)
        assert volume.label is not None
        image, spacing_mm = to_canonical(volume.image[0].numpy(), volume.geometry.affine)
        truth, _ = to_canonical(volume.label[0].numpy(), volume.geometry.affine)
        for _, method, n in sorted(key for key in packed_labels if key[0] == case):
            unpacked = np.frombuffer(zlib.decompress(packed_labels[case, method, n]), np.uint8).reshape(volume.geometry.shape)
            label, _ = to_canonical(unpacked, volume.geometry.affine)
            values = [scores[case, method, n, name] for name in data.scored]
            name = method_name(method, n)
            title = f"{case}  {name}  {_told(values)}"
            path = run_dir / "overlays" / f"{case}__{name}.png"
            overlay(path, image, truth, label, spacing_mm, title, labels=names, structures=structures)
            pictures.add(path)
    return pictures


def _told(values: list[float]) -> str:
    """The Dice of every structure; of many their mean and the lowest, which a title has room for."""
    known = [value for value in values if not np.isnan(value)]
    if len(values) <= SHOWN or not known:
        return "DSC " + ", ".join(f"{100 * value:.1f} %" for value in values)
    return f"DSC of {len(known)} structures {100 * np.mean(known):.1f} %, lowest {100 * min(known):.1f} %"


def remove_stale_pictures(settings: Settings, run_dir: Path, rows: list[dict[str, Any]], pictures: set[Path]) -> None:
    """Remove pictures that an earlier run with other settings left in the folder, which the page would show as this run's.

    Args:
        pictures: of :func:`draw_overlays`.
    """
    from oasis_monai.evaluation.case_view import browser_file

    shown = {row["case"] for row in rows} if settings.browser else set()
    current = pictures | {browser_file(run_dir / "browser", case) for case in shown}
    for path in (*run_dir.glob("overlays/*__*.png"), *run_dir.glob("browser/*.safetensors")):
        if path not in current:
            path.unlink()
