"""The plan of a data set: what is chosen for it, with reasons, and the settings that follow.

The presets ``auto`` of ``conf/`` leave values null. :func:`make_plan` measures the labelled scans and fills them by
:mod:`.plan_rules`; what the user gives, as a value or as another preset, stays. The settings that come out are concrete: records
and caches know them as if they had been typed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oasis_monai.data.folds import make_split
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.segmentation.methods import USUAL_ATLASES
from oasis_monai.settings import Settings, build, build_data
from oasis_monai.utils.config import plain
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.utils.files import write_json
from oasis_monai.utils.planned import fill, open_keys, without_nulls
from oasis_monai.workflows.fingerprint import Fingerprint, take_fingerprint
from oasis_monai.workflows.plan_choice import Choice
from oasis_monai.workflows.plan_fine import Kept, kept_by
from oasis_monai.workflows.plan_grid import own_spacing
from oasis_monai.workflows.plan_rules import choose
from oasis_monai.workflows.prepare import Log, complete_data, file_stamps, part_to_deal

FILE = "plan.json"
CLEARED = (
    *("preprocessing.size", "preprocessing.spacing_mm", "preprocessing.window"),
    *("registration.field_stride", "joint.volume_stride", "joint.atlases"),
)
"""Options whose values a plan can make possible: an error about them is no error before it."""


@dataclass(frozen=True)
class Plan:
    """What was chosen for a data set, and why.

    Args:
        spatial_dims: 2 or 3.
        data: the data set in words.
        choices: the decisions; empty where everything was given.

    Examples:
        >>> plan = Plan(3, "8 scans", (Choice({"training.batch": 2}, "there is room", ()),))
        >>> plan.lines()
        ['plan for 8 scans', 'training.batch=2  # there is room']
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """

    spatial_dims: int
    data: str
    choices: tuple[Choice, ...]

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """The chosen values by group and key."""
        found: dict[str, dict[str, Any]] = {}
        for choice in self.choices:
            for option, value in choice.values.items():
                group, _, key = option.partition(".")
                found.setdefault(group, {})[key] = value
        return found

    def fill(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plain configuration with its nulls replaced."""
        return without_nulls(fill(config, self.values))

    def lines(self) -> list[str]:
        """The plan for people: options as they can be typed, with the reasons."""
        lines = [f"plan for {self.data}"]
        for choice in self.choices:
            words = " ".join(f"{o}={typed(v)}{' (given)' if o in choice.given else ''}" for o, v in choice.values.items())
            lines.append(words if set(choice.given) == set(choice.values) else f"{words}  # {choice.reason}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        made = [{"values": dict(c.values), "reason": c.reason, "given": list(c.given)} for c in self.choices]
        return {"spatial_dims": self.spatial_dims, "data": self.data, "choices": made}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that :meth:`to_json` wrote."""
        made = tuple(Choice(dict(c["values"]), c["reason"], tuple(c["given"])) for c in values["choices"])
        return cls(values["spatial_dims"], values["data"], made)

    def write(self, folder: Path) -> Path:
        """Write ``plan.json`` into a folder, whole or not at all."""
        write_json(folder / FILE, self.to_json())
        return folder / FILE


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return json.dumps(value, separators=(",", ":")).replace('"', "")


@dataclass(frozen=True)
class Planned:
    """A plan and what follows from it.

    Args:
        plan: None where nothing was left to plan.
        settings: with concrete values.
        config: the plain configuration they were built from.
        fingerprint: of the labelled scans; None where they were not measured.
        said: what was recognised of the data set, in lines.
        kept: measures what a working grid keeps of its true labels.
    """

    plan: Plan | None
    settings: Settings
    config: Mapping[str, Any]
    fingerprint: Fingerprint | None = None
    said: tuple[str, ...] = ()
    kept: Kept | None = None

    def told(self, log: Log) -> Planned:
        """Say what was recognised, and the plan."""
        for line in (*self.said, *(self.plan.lines() if self.plan else ())):
            log(line)
        return self


def plan_settings(config: Mapping[str, Any], keep: bool = True) -> Planned:
    """The settings of a run: what the configuration leaves open is found in its data set, or chosen for it.

    Scans that cannot be read are left out here, and reported by the check that every task does before it uses them.

    Args:
        config: the plain composed configuration, see :func:`oasis_monai.settings.composed`.
        keep: keep the measures of the scans in ``cache``.

    Raises:
        DataError: the folder is absent or no data set.
        ConfigError: a value that cannot work.
    """
    _check_early(config)
    cache = Path(str(config.get("cache") or "outputs/cache")) if keep else None
    found = complete_data(build_data(config)[0], cache, part_to_deal(str(config.get("folds", ""))))
    config, said = _with_atlases({**config, "data": plain(found.data)}, found.cases)
    said = (*found.said, *said)
    if not open_keys(config):
        return Planned(None, build(config), config, said=said)
    measured = fingerprint_of(found.data, found.cases, cache and cache / "measured")
    kept = kept_by(found.cases, found.data, cache and cache / "measured", _stamp)
    return replace(plan_for(measured, config, found.data.name, kept), said=said)


def _with_atlases(config: dict[str, Any], cases: Sequence[Case]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration with ``n`` where nobody gives it, and what to say of it: fewer than usual where a fold has no more."""
    if config.get("n") is not None:
        return config, ()
    fewest = USUAL_ATLASES
    if config.get("spatial_dims", 3) == 3:  # of slices there are always more
        with contextlib.suppress(ConfigError, DataError):  # folds that cannot be made are reported where they are made
            folds = (config.get("k", 5), config.get("seed", 0), config.get("folds", "patient"))
            split = make_split(dict.fromkeys((case.id for case in cases), 1), *folds, cases=cases)
            fewest = min(len(fold.train) for fold in split.folds)
    n = max(1, min(USUAL_ATLASES, fewest))
    told = f"n={n}: a fold has {fewest} training cases, fewer than the usual {USUAL_ATLASES} atlases"
    return {**config, "n": n}, (told,) if n < USUAL_ATLASES else ()


def plan_for(fingerprint: Fingerprint, config: Mapping[str, Any], name: str = "", kept: Kept | None = None) -> Planned:
    """:func:`plan_settings` for a data set that has been measured; without any labelled scan nothing is planned."""
    if not fingerprint.labelled:
        return Planned(None, build(config), config, fingerprint)
    plan = Plan(config.get("spatial_dims", 3), describe(fingerprint, name), tuple(choose(fingerprint, config, kept)))
    filled = plan.fill(config)
    return Planned(plan, build(filled), filled, fingerprint, kept=kept)


def fingerprint_of(data: DataSettings, cases: Sequence[Case], cache: Path | None) -> Fingerprint:
    """Measure the cases of a data set, with the labels that its settings name."""
    if cache is not None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:  # a run that needs a cache says so itself
            cache = None
    more = {} if data.ignore is None else {"ignore": data.ignore}
    return take_fingerprint(cases, data.label_values, list(data.labels), cache, _stamp, more)


def _stamp(case: Case) -> list[Any]:
    """What tells whether what is read of a case has changed."""
    return [file_stamps([case]), list(case.take), *([list(case.structures)] if case.structures else [])]


def _check_early(config: Mapping[str, Any]) -> None:
    """Refuse, before anything is read, what no plan can make possible."""
    try:
        build(config)
    except ConfigError as error:
        if error.key not in CLEARED:
            raise


def describe(fingerprint: Fingerprint, name: str = "") -> str:
    """The data set in a line: what the rules have seen."""
    scans = fingerprint.scans
    own = own_spacing(fingerprint)
    coarsest = f"coarsest along {'xyz'[int(own.argmax())]}" if own.max() > 1.05 * own.min() else "isotropic"
    channels = max(scan.channels for scan in scans)
    kind = "images" if all(scan.shape[2] == 1 for scan in scans) else "scans"
    parts = [
        f"{len(scans)} labelled {kind} of {fingerprint.patients} patients"
        if fingerprint.patients < len(scans)
        else f"{len(scans)} labelled {kind}, taken as one patient each",
        f"{channels} channel{'s' if channels > 1 else ''}",
        f"{len(fingerprint.names)} structure{'s' if len(fingerprint.names) > 1 else ''} ({', '.join(fingerprint.names[:4])}"
        f"{', ...' if len(fingerprint.names) > 4 else ''})",
        f"pixels {' x '.join(f'{v:.3g}' for v in own[:2])} mm"
        if kind == "images"
        else f"voxels {' x '.join(f'{v:.3g}' for v in own)} mm, {coarsest}",
    ]
    return f"{name}: {', '.join(parts)}" if name else ", ".join(parts)


def keep_plan(plan: Plan | None, folder: Path) -> None:
    """The plan of a run beside its results; none of an earlier one stays."""
    if plan is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        plan.write(folder)


def read_plan(folder: Path) -> Plan | None:
    """The plan beside a run or a model; None where there is none that can be read."""
    try:
        return Plan.from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
