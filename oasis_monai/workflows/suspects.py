"""Look for wrong labels with results that did not see them: in a cross-validation, and by a trained model."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_monai.data.io import read_volume, to_canonical
from oasis_monai.data.types import Case, Geometry, Segmentation
from oasis_monai.evaluation.label_faults import Compared, sure_classes
from oasis_monai.evaluation.scores import method_rank
from oasis_monai.evaluation.suspects import SUSPECT, Finding, Suspect, expected_dice, ranked, suspect, suspect_rows
from oasis_monai.segmentation.agreement import overlaps
from oasis_monai.segmentation.pipeline import CaseResult
from oasis_monai.segmentation.result import Key
from oasis_monai.settings import Settings
from oasis_monai.workflows.case_pictures import PackedLabels

FOLDER, TABLE = "suspects", "suspects.csv"
MOST_PICTURES = 10  # suspects that are drawn


def key_to_trust(case_result: CaseResult) -> Key | None:
    """The result whose parts are compared that the suspects are measured against: that of OASIS-joint, then OASIS, at six
    atlases or the most; None where no result has parts to compare."""
    known = [key for key, result in case_result.results.items() if result.agreement is not None]
    if not known:
        return None
    preferred = ("OASIS-joint", "OASIS")
    method = next((m for m in preferred if any(key[0] == m for key in known)), min((k[0] for k in known), key=method_rank))
    ns = [n for name, n in known if name == method]
    return method, 6 if 6 in ns else max(ns)


def compare(case_result: CaseResult, key: Key, reference: np.ndarray, labels: Sequence[str]) -> Compared:
    """A result beside its reference (x, y, z) on the scan's own grid."""
    only = replace(case_result, results={key: case_result.results[key]}, grids={key: case_result.grids[key]})
    return compared_of(only.restore(keep_probability=True)[key], reference, labels)


def compared_of(result: Segmentation, reference: np.ndarray, labels: Sequence[str]) -> Compared:
    """A result with its probability beside its reference (x, y, z) on the same grid."""
    assert result.probability is not None
    affine = result.geometry.affine
    label, spacing_mm = to_canonical(result.label.numpy(), affine)
    truth, sure = (to_canonical(array, affine)[0] for array in (reference, sure_classes(result.probability.numpy())))
    return Compared(label, truth, sure, spacing_mm, tuple(labels))


def rank_findings(
    found: Iterable[Finding], agreements: Mapping[str, torch.Tensor], labels: Sequence[str], groups: Mapping[str, int]
) -> list[Suspect]:
    """Score the findings of a run's cases, each by what the cases of the other folds let expect.

    Args:
        agreements: case -> (2, C-1, 2) counts of its result, see :func:`oasis_monai.segmentation.agreement.agreement`.
        labels: structure names in the order of the classes.
        groups: case -> fold.
    """
    scored: list[Suspect] = []
    found = list(found)
    for index, label in enumerate(labels):
        own = [one for one in found if one.label == label and one.case in agreements]
        if not own:
            continue
        told = np.array([overlaps(agreements[one.case])[index] for one in own])
        predicted, spread = expected_dice(told, np.array([one.dsc for one in own]), [groups[one.case] for one in own])
        usual = float(np.nanmedian(predicted)) if not np.isnan(predicted).all() else 1.0
        made = (suspect(one, value, spread, usual) for one, value in zip(own, predicted.tolist(), strict=True))
        scored += [one for one in made if one is not None]
    return ranked(scored)


def table_of(suspects: Sequence[Suspect], cases: Mapping[str, Case], protocol: str, keys: Mapping[str, Key]) -> pd.DataFrame:
    """Rows of ``suspects.csv``."""
    about = {}
    for one in suspects:
        case, (method, n) = cases[one.finding.case], keys[one.finding.case]
        about[case.id] = {"protocol": protocol, "patient": case.patient, "centre": case.centre, "method": method, "n": n}
    return suspect_rows(suspects, about)


def first_suspects(suspects: Sequence[Suspect]) -> dict[str, Suspect]:
    """The worst structure of each of the first cases whose score makes them suspects."""
    first: dict[str, Suspect] = {}
    for one in suspects:
        if one.score >= SUSPECT and (one.finding.case in first or len(first) < MOST_PICTURES):
            first.setdefault(one.finding.case, one)
    return first


def draw_suspects(
    settings: Settings,
    cases: Mapping[str, Case],
    suspects: Sequence[Suspect],
    keys: Mapping[str, Key],
    packed_labels: PackedLabels,
    run_dir: Path,
) -> None:
    """Draw the first suspects on the slices where result and reference differ most, unless no pictures are wanted
    (``overlays=0``); pictures of an earlier run go."""
    folder = run_dir / FOLDER
    for old in folder.glob("*.png"):
        old.unlink()
    if not settings.overlays:
        return
    for case, one in first_suspects(suspects).items():
        volume = read_volume(cases[case], settings.data.label_values, settings.data.ignore)
        assert volume.label is not None
        packed = np.frombuffer(zlib.decompress(packed_labels[case, *keys[case]]), np.uint8)
        label = packed.reshape(volume.geometry.shape)
        picture(folder / f"{case}.png", volume.image[0].numpy(), volume.label[0].numpy(), label, volume.geometry, one, settings)


def picture(
    path: Path,
    image: np.ndarray,
    reference: np.ndarray,
    label: np.ndarray,
    geometry: Geometry,
    one: Suspect,
    settings: Settings,
) -> None:
    """Draw one suspect; arrays (x, y, z) are on the scan's own grid."""
    from oasis_monai.evaluation.contours import overlay

    (shown, spacing_mm), *others = (to_canonical(array, geometry.affine) for array in (image, reference, label))
    truth, result = (array for array, _ in others)
    title = f"{one.finding.case}  {one.finding.label}  DSC {100 * one.finding.dsc:.1f} %, expected {100 * one.predicted:.1f} %"
    names: dict[int, Any] = dict(enumerate(settings.data.labels, 1))
    overlay(path, shown, truth, result, spacing_mm, title, labels=names, slices=one.finding.slices or 4)
