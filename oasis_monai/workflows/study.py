"""A study: several cross-validations (*arms*) on the same folds, trained in parallel, joined into one table.

The paper's evaluation is a study (``experiment=paper``): the methods of its Table 1 under both protocols, ablations, a learning
curve. Each arm is an ordinary :func:`.crossval` in its own folder. This module plans, runs and joins them. What a finished arm
depends on is stored beside it, so a study that is started again only does what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oasis_monai.data.folds import PROTOCOLS
from oasis_monai.evaluation import scores as tables
from oasis_monai.networks.segmentation import NETWORKS
from oasis_monai.segmentation.methods import needs_atlases, result_keys
from oasis_monai.settings import REST, Settings, build
from oasis_monai.training.tracking import Tracking
from oasis_monai.training.trainer import TRAINING_VERSION
from oasis_monai.utils.cluster import Cluster, run_jobs
from oasis_monai.utils.config import make_group
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import digest, write_json, write_text
from oasis_monai.workflows.parallel_training import NEEDED, quiet, silent, train_in_parallel
from oasis_monai.workflows.plan import Plan, keep_plan
from oasis_monai.workflows.prepare import Dataset, Log, find_and_check, prepare, split_of
from oasis_monai.workflows.run_record import Clock, claim_results, refuse_other_results, run_record
from oasis_monai.workflows.self_trained_folds import models_for
from oasis_monai.workflows.training_record import tell_where, tracking_of
from oasis_monai.workflows.unlabelled_scans import with_unlabelled

SCORING_VERSION = 3  # part of every finished arm's stamp; raise it when the same models would score differently


@dataclass(frozen=True)
class Arm:
    """One cross-validation of a study.

    Args:
        settings: nested settings laid over the study's, or over those of the arm ``base``.
        base: another arm to start from.
        protocols: folds to run under.
        suffix: added to the names of its atlas methods (``OASIS`` -> ``OASIS 3D``); networks go by their own names.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    protocols: tuple[str, ...] = ("patient",)
    suffix: str = ""


@dataclass(frozen=True)
class Learning:
    """A learning curve: the methods of one or more arms at several numbers of training patients, under patient folds.

    Args:
        arms: their names, with the settings to be laid over each.
        train_cases: training patients a fold; the whole fold is added by itself.
        folds: which folds; all when empty.
        main: the method the others are compared with.
    """

    arms: Mapping[str, Mapping[str, Any]]
    train_cases: tuple[int, ...] = (4, 8, 16)
    folds: tuple[int, ...] = ()
    main: str = "OASIS 3D"


@dataclass(frozen=True)
class Study:
    """What to run (the key ``study`` of a configuration) and what to compare.

    Args:
        arms: by name, in the order of the tables.
        learning: None for no learning curve.
        main: the method Table 1 compares with every other.
        ablation: the methods whose variants the ablation tables compare, each a table; n: their number of atlases.
        printed: put the paper's printed values beside ours (they are PROMISE12's).
    """

    arms: Mapping[str, Arm]
    learning: Learning | None = None
    main: str = "OASIS"
    ablation: tuple[str, ...] = ()
    n: int = 6
    printed: bool = False


@dataclass(frozen=True)
class Job:
    """One run of an arm: its folder's name, its settings, the suffix of its methods, and its number of training patients."""

    name: str
    settings: Settings
    suffix: str
    train_cases: int | None = None

    def method(self, own: str) -> str:
        """What the study calls a method of this arm."""
        return own if own in NETWORKS else own + self.suffix


def plan(study: Study, config: Mapping[str, Any]) -> list[Job]:
    """Every cross-validation of the study, each with its settings checked.

    Args:
        config: the plain configuration the arms are laid over, as :func:`oasis_monai.settings.build` takes it.

    Raises:
        ConfigError: naming the arm and its key.
    """
    jobs = []
    for name, arm in study.arms.items():
        for protocol in arm.protocols:
            settings = _built(f"study.arms.{name}", _merged(arm_config(study, config, name), {"folds": protocol}))
            jobs.append(Job(f"{name}-{protocol}" if len(arm.protocols) > 1 else name, settings, arm.suffix))
    if study.learning is not None:
        for name, values in study.learning.arms.items():
            jobs += _points(study, study.learning, name, values, config)
    _check_jobs(study, jobs, build(config))
    return jobs


def _check_jobs(study: Study, jobs: Sequence[Job], base: Settings) -> None:
    """Refuse jobs whose results could not be distinguished or compared, before hours of training."""
    names = [job.name for job in jobs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError("study.arms", "arms and protocols that make each folder once", twice, "rename an arm")
    arms = [job for job in jobs if job.train_cases is None]
    for job in arms:
        _check_folds(job, base)
    whose: dict[tuple[Any, ...], str] = {}
    for job in jobs:
        of = "arms" if job in arms else "learning"
        point = (job.settings.folds,) if job in arms else (job.train_cases, job.settings.fold)
        for method, n in result_keys(job.settings.methods, job.settings.n):
            other = whose.setdefault((of, *point, job.method(method), n), job.name)
            if other != job.name:
                found = f"{job.method(method)} in {other} and {job.name}"
                raise ConfigError(f"study.{of}", "each method and n in one arm", found, "give an arm a suffix or other methods")
        if of == "learning" and needs_atlases(job.settings.methods) and len(job.settings.n) > 1:  # each n would count the cases
            raise ConfigError(f"study.learning: {job.name}: n", "one n, as a curve has one point a size", list(job.settings.n))
    there = {job.method(method) for job in arms for method in job.settings.methods}
    if not {study.main, f"{study.main} 3D"} & there:
        raise ConfigError("study.main", f"one of {sorted(there)}", study.main, "name a method as the study calls it")


def _unnamed(study: Study, jobs: Sequence[Job]) -> list[str]:
    """Notes on methods that the study compares but no arm has: misspelt, or of an arm that was removed."""
    there = [{j.method(m) for j in jobs if (j.train_cases is None) is arm for m in j.settings.methods} for arm in (True, False)]
    asked = [("ablation", name, there[0]) for name in study.ablation]
    asked += [("learning.main", study.learning.main, there[1])] if study.learning else []
    return [
        f"note: study.{key}: {name} is not among the methods {', '.join(sorted(known))}, so nothing is compared with it"
        for key, name, known in asked
        if name not in known
    ]


def _check_folds(job: Job, base: Settings) -> None:
    """Arms are compared case by case and choose n on each other's folds, so they have all folds, and the same."""
    for key, expected in (("k", base.k), ("seed", base.seed), ("fold", None)):
        found = getattr(job.settings, key)
        if found != expected:
            remedy = "leave it out: n is chosen on the other folds" if key == "fold" else "set it for the whole study"
            raise ConfigError(f"study.arms: {job.name}: {key}", f"{expected} as in all arms", found, remedy)


def _points(study: Study, curve: Learning, arm: str, values: Mapping[str, Any], config: Mapping[str, Any]) -> list[Job]:
    """The cross-validations of one arm of a learning curve."""
    where = f"study.learning.arms.{arm}"
    if arm not in study.arms:
        raise ConfigError("study.learning.arms", f"names of the arms {list(study.arms)}", arm)
    over = _merged(arm_config(study, config, arm), dict(values) | {"folds": "patient", "browser": False})
    nobody_left_out = {"unlabelled": None} if over.get("unlabelled") == REST else {}
    whole = _built(where, _merged(over, nobody_left_out))
    jobs = []
    for size in (*sorted(set(curve.train_cases)), None):
        n = whole.n if size is None else tuple(sorted({min(n, size) for n in whole.n}))
        for fold in curve.folds or (None,):
            more: dict[str, Any] = {"train_cases": size, "n": list(n), "fold": fold, "overlays": 0}
            more |= nobody_left_out if size is None else {}
            label = f"learning-{arm}-{'all' if size is None else f'{size:03d}'}" + ("" if fold is None else f"-{fold}")
            jobs.append(Job(label, _built(where, _merged(over, more)), study.arms[arm].suffix, size or 0))
    return jobs


def arm_config(study: Study, config: Mapping[str, Any], name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain configuration of an arm."""
    arm = study.arms[name]
    if arm.base is None:
        return _merged(config, arm.settings)
    if arm.base not in study.arms or arm.base in (*seen, name):
        raise ConfigError(f"study.arms.{name}.base", f"another of the arms {list(study.arms)}, not in a circle", arm.base)
    return _merged(arm_config(study, config, arm.base, (*seen, name)), arm.settings)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other; the labels of a data set are replaced, not mixed."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and key != "labels"
        result[key] = _merged(result[key], value) if both else value
    return result


def _built(where: str, config: Mapping[str, Any]) -> Settings:
    try:
        return build(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.key}", error.expected, error.found, error.remedy) from None


def run_study(
    study: Study,
    config: Mapping[str, Any],
    run_dir: Path,
    log: Log = print,
    overwrite: bool = False,
    key: str = "run_dir",
    plan_made: Plan | None = None,
    cluster: Cluster | None = None,
) -> Path:
    """Run every arm and write ``scores.csv``, ``summary.csv``, ``learning.csv`` and ``run.json`` into ``run_dir``.

    Untrained networks of all arms are trained first, ``workers`` side by side; then the arms are scored, side by side.

    Args:
        overwrite: also in the place of the results of other data, or of other settings than those of single arms.
        key: the option that names ``run_dir``, for messages.
        plan_made: what ``config`` follows from, to be kept beside the results.
        cluster: train and score by its jobs, in the place of ``workers`` processes.

    Returns:
        The path of ``scores.csv``.

    Raises:
        ConfigError: ``run_dir`` holds such results.
    """
    settings, jobs, clock = build(config), plan(study, config), Clock()
    if not overwrite:
        refuse_other_results(run_dir, settings.to_json(), key)
    for line in _unnamed(study, jobs):
        log(line)
    stamps: dict[str, str] = {}
    waiting: list[Job] = []
    datasets: dict[str, Dataset] = {}
    trainings: dict[Path, tuple[Settings, int, str, Tracking | None]] = {}
    tracking = tracking_of(settings, run_dir)
    with clock("check and read"):
        for job in jobs:
            one = _prepared(job.settings, datasets, log)
            stamps[job.name] = _stamp(job.settings, one)
            if _read(run_dir / "arms" / job.name / ".stamp") == stamps[job.name]:
                log(f"{job.name}: already finished")
                continue
            waiting.append(job)
            split = split_of(job.settings, one)
            models = models_for(job.settings, one, split, Path(job.settings.cache), log)
            own = tracking and tracking.within(job.name)
            for fold in split.folds:
                if fold in split.choose(job.settings.fold):
                    for network in models.missing(fold):
                        trainings.setdefault(models.folder(fold, network), (job.settings, fold.index, network, own))

    def record() -> dict[str, Any]:
        one = next(iter(datasets.values()))
        found = run_record("study", settings, None, len(one.cases), clock.seconds, one.identity())
        found["study"] = plain(study)
        found["config"] = dict(config)  # what the arms are laid over; "settings" has it with its nulls decided
        found["arms"] = {job.name: {"suffix": job.suffix, "settings": job.settings.to_json()} for job in jobs}
        return found

    claim_results(run_dir, record(), key, overwrite)
    keep_plan(plan_made, run_dir)
    log(f"{len(trainings)} networks to train, {len(waiting)} of {len(jobs)} cross-validations to score")
    if trainings:
        tell_where(tracking, log)
    with clock("train"):
        train_in_parallel(list(trainings.values()), settings.workers, log, cluster)
    with clock("segment and score"):
        arms = [(job.name, job.settings, run_dir / "arms" / job.name) for job in waiting]
        for _, _, folder in arms:  # a kill between its scores and its new stamp must not leave the old stamp beside them
            (folder / ".stamp").unlink(missing_ok=True)

        def ended(name: str, minutes: float) -> None:
            write_text(run_dir / "arms" / name / ".stamp", stamps[name])
            log(f"scored {name}: {minutes:.1f} min")

        run_arms(arms, settings.workers, ended, cluster)
    rows, learning = _join(jobs, run_dir)
    tables.write_scores(run_dir / "scores.csv", rows)
    tables.write_summary(run_dir / "summary.csv", tables.summarise(tables.read_scores(run_dir / "scores.csv")))
    if learning:
        from oasis_monai.evaluation.learning_curve import write_learning

        write_learning(run_dir / "learning.csv", learning)
    write_json(run_dir / "run.json", record())
    return run_dir / "scores.csv"


def plain(study: Study) -> dict[str, Any]:
    """A study as plain JSON values, which :func:`check_study` takes back."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(study)))
    return values


def _prepared(settings: Settings, known: dict[str, Dataset], log: Log) -> Dataset:
    """The data set as the settings need it, made once for all arms that need the same."""
    values = settings.to_json()
    key = digest([values.get(k) for k in ("data", "preprocessing", "features", "spatial_dims", "cache", "unlabelled")])
    if key not in known:
        cache = Path(settings.cache)
        dataset = prepare(settings, find_and_check(settings, cache, log), cache, log)
        known[key] = with_unlabelled(settings, dataset, cache, log)
    return known[key]


def _stamp(settings: Settings, dataset: Dataset) -> str:
    """What a finished arm depends on: its settings, the data (wherever it lies), the code."""
    how = ("workers", "threads", "progress", "device", "align_batch", "cache", "tracking")
    kept = {k: v for k, v in settings.to_json().items() if k not in how}
    del kept["data"]["root"]
    return digest([kept, settings.identity(), dataset.identity(), TRAINING_VERSION, SCORING_VERSION])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _join(jobs: Sequence[Job], run_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of all arms and those of the learning curve, methods renamed."""
    rows: list[dict[str, Any]] = []
    learning: list[dict[str, Any]] = []
    for job in jobs:
        for row in tables.read_scores(run_dir / "arms" / job.name / "scores.csv").to_dict("records"):
            method = job.method(row["method"])
            if job.train_cases is None:
                rows.append({**row, "method": method})
            else:
                learning.append({"train_cases": job.train_cases, **row, "method": method})
    return rows, learning


def check_study(given: Any) -> Study:
    """A :class:`Study` from the plain value of the key ``study``.

    Raises:
        ConfigError: naming the key.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("arms"), Mapping) or not given["arms"]:
        raise ConfigError("study.arms", "one or more named arms", given)
    arms = {}
    for name, values in given["arms"].items():
        if not str(name).replace("_", "").replace("-", "").isalnum():
            raise ConfigError("study.arms", "names of letters, digits, - and _", name)
        arms[str(name)] = arm = make_group(Arm, values or {}, f"study.arms.{name}")
        if not arm.protocols or not set(arm.protocols) <= set(PROTOCOLS):
            raise ConfigError(f"study.arms.{name}.protocols", f"one or more of {list(PROTOCOLS)}", list(arm.protocols))
    learning = given.get("learning")
    if learning is not None:
        of = learning.get("arms") if isinstance(learning, Mapping) else None
        if not isinstance(of, Mapping) or not of or not all(v is None or isinstance(v, Mapping) for v in of.values()):
            raise ConfigError("study.learning.arms", "names of arms, each with settings or nothing", of)
        learning = {**learning, "arms": {str(arm): dict(values or {}) for arm, values in of.items()}}
    curve = None if learning is None else make_group(Learning, learning, "study.learning")
    rest = {k: v for k, v in given.items() if k not in ("arms", "learning")}
    return make_group(Study, rest, "study", arms=arms, learning=curve)


def run_arms(
    jobs: Sequence[tuple[str, Settings, Path]],
    workers: int,
    ended: Callable[[str, float], None],
    cluster: Cluster | None = None,
) -> None:
    """Whole cross-validations side by side: (name, settings, run folder) each; ``ended(name, minutes)`` as each is done."""
    named = [(name, (quiet(settings), folder)) for name, settings, folder in jobs]
    run_jobs(_crossval, named, workers, ended, NEEDED, cluster)


def _crossval(plain: dict[str, Any], folder: Path) -> None:
    from oasis_monai.settings import build
    from oasis_monai.workflows.crossval import crossval

    crossval(build(plain), folder, silent, overwrite=True)  # the study's own stamp tells what is finished
