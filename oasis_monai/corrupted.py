"""Corrupted copies of a cross-validation's test cases, segmented and scored: what the predicted DSC learns failures from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch

from oasis_monai.corruptions import CORRUPTIONS, drawn, left
from oasis_monai.features import Embedder, embedder, target_features
from oasis_monai.metrics import score_case
from oasis_monai.prepare import resolve_device
from oasis_monai.preprocess import restore_all
from oasis_monai.segment import INTERPOLATION, Segmenter
from oasis_monai.settings import Settings
from oasis_monai.types import Volume
from oasis_monai.volumes import to_canonical

Rows = list[tuple[dict[str, Any], torch.Tensor]]
"""Score rows with their ``corruption``, each with the counts of :func:`oasis_monai.quality.agreement`."""
UNTOLD = ("FwoW", "STAPLE", INTERPOLATION)
"""Methods whose parts are not compared, so that nothing is predicted of them."""


class CorruptedCopies:
    """Segments ``settings.corruptions`` corrupted copies of a case with the methods whose DSC is predicted.

    Patient folds only: under slice folds a scan's neighbouring slices would be as they were.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.methods = tuple(m for m in settings.atlas_methods if m not in UNTOLD)
        self.count = settings.corruptions if self.methods and settings.folds == "patient" else 0

    @cached_property
    def _embed(self) -> Embedder:
        features = self.settings.features
        return embedder(features.name, features.weights, resolve_device(self.settings.device))

    def rows(self, volume: Volume, segmenter: Segmenter, common: Mapping[str, Any]) -> Rows:
        """Rows of the copies of one labelled scan, that is none of the segmenter's atlases; ``common`` goes into each."""
        settings, made = self.settings, Rows()
        for name, seed in drawn(volume.case, self.count, settings.seed):
            copy = CORRUPTIONS[name](volume, seed)
            if not left(copy):
                continue
            assert copy.label is not None
            target = settings.preprocessing.apply(replace(copy, label=None))
            features = target_features(target, settings.spatial_dims, self._embed)
            results, _ = segmenter(target, features, self.methods, settings.n, exclude_case=volume.case)
            told = {key: result for key, result in results.items() if result.agreement is not None}
            maps = [result.probability for result in told.values()]
            truth, spacing_mm = to_canonical(copy.label[0].numpy(), copy.geometry.affine)
            for (key, result), back in zip(
                told.items(), restore_all(maps, target.geometry, target.native, False, volume.case), strict=True
            ):
                label, _ = to_canonical(back.label.numpy(), copy.geometry.affine)
                scores = score_case(label, truth, spacing_mm, list(settings.data.labels), ("whole",), case=volume.case)
                about = {**common, "case": volume.case, "method": key[0], "n": key[1], "corruption": name}
                assert result.agreement is not None
                made += [({**about, **asdict(score)}, result.agreement) for score in scores]
        return made
