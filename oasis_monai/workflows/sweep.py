"""The jobs of a sweep as one result: a cross-validation, or a table of several that are not averaged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai.evaluation.scores import join_scores, read_scores, summarise, write_scores, write_summary
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows.run_record import flat

JOINED = ("n", "fold", "methods")
"""Options in which the jobs of one cross-validation may differ: every row of the scores tells them."""
WHOLE = ("scores.csv", "summary.csv", "report.html")
"""Files of a sweep that is one cross-validation."""
TABLE = "sweep.csv"
"""That of a sweep that is several."""


@dataclass(frozen=True)
class Joined:
    """What a sweep's jobs have made so far.

    Args:
        path: ``scores.csv`` of one cross-validation, or ``sweep.csv``.
        keys: options in which the cross-validations of ``sweep.csv`` differ.
        conflict: why jobs of the same settings could not be joined; empty if they could.
    """

    path: Path
    keys: tuple[str, ...] = ()
    conflict: str = ""

    @property
    def whole(self) -> bool:
        """Whether the jobs are one cross-validation."""
        return self.path.name != TABLE


@dataclass
class _Job:
    """A job that has scores: its folder, its settings and data, and its values of the options swept."""

    folder: Path
    settings: dict[str, Any]
    swept: dict[str, str]
    rest: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.rest = {key: value for key, value in self.settings.items() if key not in JOINED}

    def value(self, key: str) -> str:
        """Its value of an option, as text."""
        value = self.swept[key] if key in self.swept else self.settings.get(key, "")
        return value if isinstance(value, str) else json.dumps(value)


def check_sweep_folder(sweep_dir: Path) -> None:
    """Refuse a sweep into the folder of a single run, whose scores its own would replace.

    Raises:
        ConfigError: there is one.
    """
    if (sweep_dir / "run.json").exists():
        remedy = "give another hydra.sweep.dir=DIR"
        raise ConfigError("hydra.sweep.dir", "a folder for a sweep", f"{sweep_dir} with the results of a run", remedy)


def join_jobs(sweep_dir: Path, swept: Sequence[str] = ()) -> Joined | None:
    """Join the scores of a sweep's jobs (folders with a ``scores.csv`` below ``sweep_dir``) there.

    Jobs that differ only in :data:`JOINED` are one cross-validation. If all are, it has one table of scores and one summary. If
    not, ``sweep.csv`` has the summary of each with a column per option in which they differ, and nothing is averaged over them;
    the files of a joined sweep are removed.

    Args:
        swept: the options the whole sweep is run over, of which jobs may still be missing.

    Returns:
        None while no job has any scores.
    """
    jobs = [_read(path.parent) for path in sorted(sweep_dir.glob("*/scores.csv")) if len(read_scores(path))]
    if not jobs:
        return None
    keys = list(dict.fromkeys(key for job in jobs for key in (*swept, *job.swept) if key not in JOINED))
    groups: dict[str, list[_Job]] = defaultdict(list)
    for job in jobs:
        groups[json.dumps([job.rest, [job.value(key) for key in keys]], sort_keys=True)].append(job)
    together, joined, conflict = [], [], ""
    for group in groups.values():
        try:
            joined.append(join_scores([job.folder / "scores.csv" for job in group]))
            together.append(group)
        except DataError as error:  # of the same settings, and yet with other scores: of another version, or edited
            conflict = conflict or str(error).splitlines()[0]
            joined += [read_scores(job.folder / "scores.csv") for job in group]
            together += [[job] for job in group]
    if len(together) == 1 and not keys:
        (sweep_dir / TABLE).unlink(missing_ok=True)
        write_scores(sweep_dir / "scores.csv", joined[0].to_dict("records"))
        write_summary(sweep_dir / "summary.csv", summarise(joined[0]))
        return Joined(sweep_dir / "scores.csv")
    for name in WHOLE:  # of a job that came first, or of an earlier sweep
        (sweep_dir / name).unlink(missing_ok=True)
    keys = [*keys, *_further(together, keys)]
    _write_table(sweep_dir / TABLE, together, keys, joined)
    return Joined(sweep_dir / TABLE, tuple(keys), conflict)


def _read(folder: Path) -> _Job:
    """A job by what its ``run.json`` tells; nothing of one that has none."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        settings = flat(record["settings"]) | {"data_digest": record.get("data_digest")}
        return _Job(folder, settings, {str(k): str(v) for k, v in record.get("swept", {}).items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Job(folder, {}, {})


def _further(groups: Sequence[Sequence[_Job]], keys: Sequence[str]) -> list[str]:
    """Settings that tell apart what the swept options do not: those of a configuration file, or of jobs of an earlier sweep."""
    firsts = [group[0] for group in groups]
    if len({tuple(job.value(key) for key in keys) for job in firsts}) == len(firsts):
        return []
    every = dict.fromkeys(key for job in firsts for key in job.rest if key not in keys)
    return [key for key in every if len({job.value(key) for job in firsts}) > 1]


def _write_table(path: Path, groups: Sequence[Sequence[_Job]], keys: Sequence[str], scores: Sequence[pd.DataFrame]) -> None:
    rows: list[Mapping[str, Any]] = []
    for group, frame in zip(groups, scores, strict=True):
        about = {key: group[0].value(key) for key in keys}
        about["jobs"] = " ".join(job.folder.name for job in group)
        about["folds"] = " ".join(str(fold) for fold in sorted(set(frame["fold"])) if fold >= 0) or "all"
        rows += [{**about, **row} for row in summarise(frame).to_dict("records")]
    write_summary(path, pd.DataFrame(rows), (*keys, "jobs", "folds"))
