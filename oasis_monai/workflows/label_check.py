"""Let a trained model look at labelled cases: whose label disagrees with a result that is sure of itself?

Scans of the training are looked at as well, without any atlas of their patient. Their networks have seen the label, so that they
repeat some of its faults: what is found there is weaker evidence, and what is not found proves less.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from oasis_monai.data.io import read_volume
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case, Volume
from oasis_monai.evaluation.quality import FEWEST
from oasis_monai.evaluation.scores import method_name
from oasis_monai.evaluation.suspects import (
    LEAST_SPREAD,
    SUSPECT,
    Finding,
    Suspect,
    findings,
    ranked,
    robust_spread,
    suspect,
    write_suspects,
)
from oasis_monai.segmentation.pipeline import check_choice, number_of_atlases
from oasis_monai.segmentation.result import Key
from oasis_monai.settings import Settings
from oasis_monai.transforms.preprocessing import PreprocessCache
from oasis_monai.utils.errors import ConfigError, DataError, Fault, with_case_in_errors
from oasis_monai.workflows.case_pictures import PackedLabels
from oasis_monai.workflows.evaluate import PROTOCOL, in_order, learned_from
from oasis_monai.workflows.model import Model
from oasis_monai.workflows.prepare import Log
from oasis_monai.workflows.same_structures import with_structures_of
from oasis_monai.workflows.scan_result import ScanResult
from oasis_monai.workflows.suspects import TABLE, compared_of, draw_suspects, table_of


def check_labels(
    model: Model, data: DataSettings, cases: Sequence[Case], log: Log = print, output: Path | None = None, progress: bool = False
) -> list[Fault]:
    """Compare the labels of cases with what a model makes of their scans.

    Args:
        model: the trained model, by its usual method and number of atlases.
        data: complete settings of the data set; its structures are found as :func:`.with_structures_of` does.
        cases: those to look at; cases without a label, and those that cannot be read, are passed over.
        output: gets ``suspects.csv``, ``suspects/`` with pictures, and ``suspects.html``.
        log: gets what the reader should know.

    Returns:
        A warning per suspect, the worst first.

    Raises:
        ConfigError: the structures of the data set are not the model's.
    """
    from tqdm import tqdm

    if model.settings.data.structures:
        remedy = "leave out model=DIR"
        raise ConfigError("model", "a model whose structures share no voxel", ", ".join(model.structures), remedy)
    data, said = with_structures_of(model.settings.data, data)
    for line in said:
        log(line)
    run = _LabelCheck(model, replace(model.settings, data=data, overlays=1), output)
    labelled = [case for case in cases if case.label is not None]
    for case in tqdm(labelled, desc="look at labels", disable=not progress, leave=False):
        with with_case_in_errors(case.id):
            run.look_at(case)
    return run.finish(labelled, log)


@dataclass
class _LabelCheck:
    """What the cases share, and what was found.

    Args:
        found: structure by structure, with the predicted Dice.
        seen: case -> why the model's networks have seen its label.
        faults: of cases that the model cannot segment.
    """

    model: Model
    settings: Settings
    output: Path | None
    found: list[tuple[Finding, float]] = field(default_factory=list)
    keys: dict[str, Key] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    labels: PackedLabels = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def look_at(self, case: Case) -> None:
        """Segment one case as if it had no label and no atlas of its patient, and compare."""
        data, names = self.settings.data, list(self.settings.data.labels)
        try:
            volume = read_volume(case, data.label_values, data.ignore)
        except DataError:  # the check of the data set has told it
            return
        try:
            result = self._segment(case)
        except DataError as error:
            self.faults += [replace(fault, case=case.id, severity="warning") for fault in error.faults]
            return
        assert volume.label is not None
        segmentation = in_order(replace(result, case=case.id), list(self.model.labels), names, volume.geometry)
        compared = compared_of(segmentation, volume.label[0].numpy(), names)
        for one in findings(case.id, compared):
            value = result.predictions[one.label].value
            if value is not None:
                self.found.append((one, value))
        self.keys[case.id] = result.method
        if self.output is not None:
            self.labels[case.id, *result.method] = zlib.compress(segmentation.label.numpy().tobytes(), 1)

    def _segment(self, case: Case) -> ScanResult:
        model, library = self.model, self.model.segmenter.library
        contents = PreprocessCache(None, self.settings.preprocessing, self.settings.data.label_values)
        known = learned_from(model, case, contents)
        if known is not None:
            self.seen[case.id] = known[1]
        volume = read_volume(case.without_label(), self.settings.data.label_values)
        person = None if known is None else library.patient_of(known[0])
        result = self._without(person, volume)
        if known is None and result.is_atlas is not None:  # the same scan in another file
            self.seen[case.id] = f"it is the model's atlas {result.is_atlas}"
            result = self._without(library.patient_of(result.is_atlas), volume)
        return result

    def _without(self, person: str | None, volume: Volume) -> ScanResult:
        """The result without the atlases of a person."""
        model = self.model
        others = sum(patient != person for patient in model.segmenter.library.patients)
        if not others:
            remedy = "add atlases of other patients"
            raise DataError(Fault("", "label", "atlases of other patients to compare it with", "none", remedy))
        n = min(number_of_atlases(model.segmenter, None), others)
        found = model.find(volume, check_choice(model.segmenter, None, n), n, person)
        return model.describe(found, save_probability=True)

    def finish(self, cases: Sequence[Case], log: Log) -> list[Fault]:
        """Rank the cases, and write and say what was found."""
        suspects = self._scored()
        if self.output is not None and suspects:
            from oasis_monai.evaluation.report import write_suspect_page

            by_id = {case.id: case for case in cases}
            write_suspects(self.output / TABLE, table_of(suspects, by_id, PROTOCOL, self.keys))
            draw_suspects(self.settings, by_id, suspects, self.keys, self.labels, self.output)
            log(f"suspects: {write_suspect_page(self.output, self.settings.data.name)}")
        if known := [case for case in self.seen if case in self.keys]:
            log(
                f"{len(known)} of {len(self.keys)} labels looked at are of the model's training: its networks have seen them, "
                "so what is found there is weaker evidence (no atlas of the same patient was used)"
            )
        several, worst = len(self.settings.data.labels) > 1, dict[str, Suspect]()
        for one in suspects:
            if one.score >= SUSPECT:
                worst.setdefault(one.finding.case, one)
        return self.faults + [self._fault(one, several) for one in worst.values()]

    def _scored(self) -> list[Suspect]:
        """The suspects of each structure; labels that the networks have seen are measured against each other."""
        scored: list[Suspect] = []
        for label in self.settings.data.labels:
            for trained in (False, True):
                own = [(o, v) for o, v in self.found if o.label == label and (o.case in self.seen) == trained]
                if own:
                    scored += self._of(label, own)
        return ranked(scored)

    def _of(self, label: str, own: list[tuple[Finding, float]]) -> list[Suspect]:
        told = np.array([value for _, value in own])
        middle, spread = robust_spread(np.array([one.dsc for one, _ in own]) - told)
        if len(own) < FEWEST:
            spread = max(LEAST_SPREAD, self._usual_error(label, self.keys[own[0][0].case]) or spread)
        predicted = np.clip(told + middle, 0, 1)
        made = [suspect(one, v, spread, float(np.median(predicted))) for (one, _), v in zip(own, predicted.tolist(), strict=True)]
        return [one for one in made if one is not None]

    def _usual_error(self, label: str, key: Key) -> float | None:
        """The spread of the model's predictions; None where they were not calibrated."""
        known = self.model.calibrations.get(method_name(*key), {}).get(label)
        return None if known is None else known.spread

    def _fault(self, one: Suspect, several: bool) -> Fault:
        finding = one.finding
        found = one.text if one.explanation else f"{finding.dsc:.2f}: {one.text}"
        found = f"{finding.label}: {found}" if several else found
        where = ", ".join(str(z + 1) for z in finding.slices)
        remedy = f"look at slices {where}, counted from the feet" if where else "look at the label"
        if finding.case in self.seen:
            remedy += f" (weaker evidence: {self.seen[finding.case]})"
        expected = f"a Dice of about {one.predicted:.2f} with the model's result"
        return Fault(finding.case, "label", expected, found, remedy, "warning")
