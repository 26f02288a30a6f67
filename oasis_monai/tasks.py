"""The tasks of the command line: each takes the composed configuration as a plain dict and calls a workflow."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from oasis_monai.utils.errors import ConfigError, DataError

JOB_KEYS = (
    *("task", "model", "input", "output", "overwrite", "study", "format", "segments", "results", "review"),
    *("add", "label", "case", "patient", "remove", "msd", "accept_license", "download", "training_cases", "phantom"),
    *("share_atlases", "nnunet", "cluster"),
)
WITH_UNLABELLED = ("train", "crossval", "study", "plan", "check")
"""Tasks that may be given scans without labels; the last two do not look at them."""
SWITCHES = ("overwrite", "accept_license", "training_cases", "share_atlases")
OWN_FOLDER = {
    "demo": "hydra.run.dir",
    "crossval": "hydra.run.dir",
    "study": "hydra.run.dir",
    "train": "model",
}  # one run at a time
OWN_FOLDER |= {"segment": "output", "evaluate": "output", "adapt": "output"}


def run_task(
    config: dict[str, Any], run_dir: Path, sweep_dir: Path | None, swept: Mapping[str, str | None] = MappingProxyType({})
) -> None:
    """Run the task a composed configuration names.

    Args:
        config: the whole configuration as a plain dict.
        run_dir: folder of this job.
        sweep_dir: folder of the sweep the job belongs to, where results are joined.
        swept: the options the sweep is run over, and this job's values of them.
    """
    job = {key: config.pop(key, None) for key in JOB_KEYS} | {"swept": dict(swept)}
    tasks: dict[str, Callable[..., None]] = {
        "crossval": _crossval,
        "study": _study,
        "train": _train,
        "adapt": _adapt,
        "plan": _plan,
        "segment": _segment,
        "evaluate": _evaluate,
        "review": _review,
        "library": _library,
        "bundle": _bundle,
        "export-nnunet": _export_nnunet,
        "download": _download,
        "check": _check,
        "report": _report,
        "phantom": _phantom,
        "demo": _demo,
    }
    if job["task"] not in tasks:
        raise ConfigError("task", f"one of {list(tasks)}", job["task"])
    if config.get("unlabelled") is not None and job["task"] not in WITH_UNLABELLED:
        remedy = f"leave it out: it counts for {', '.join(WITH_UNLABELLED)}"
        raise ConfigError("unlabelled", f"null for the task {job['task']}", config["unlabelled"], remedy)
    with _alone(job, run_dir):
        tasks[job["task"]](config, job, run_dir, sweep_dir)


def _alone(job: Mapping[str, Any], run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Refuse a second run into the folder the task writes to. A missing folder is an error later."""
    from oasis_monai.utils.files import exclusive_folder

    key = OWN_FOLDER.get(job["task"])
    folder = run_dir if key == "hydra.run.dir" else job.get(str(key))
    return exclusive_folder(Path(folder), key) if key and folder else contextlib.nullcontext()


def _settings(config: dict[str, Any]) -> Any:
    """The settings of the run, checked, and torch set up for it."""
    from oasis_monai.settings import build

    return _ready(build(config))


def _planned(config: dict[str, Any]) -> Any:
    """:func:`_settings` of a run that uses a data set: what the configuration leaves open is chosen for it, and told."""
    from oasis_monai.utils.startup import import_monai_lightly
    from oasis_monai.workflows.plan import plan_settings

    planned = plan_settings(config).told(print)
    _ready(planned.settings)
    import_monai_lightly()
    return planned


def _ready(settings: Any) -> Any:
    """Torch set up for the settings, which are given back."""
    import torch

    from oasis_monai.training import distributed

    if settings.workers > 1 and distributed.size() > 1:
        raise ConfigError("workers", "1 under torchrun (its processes train each network together)", settings.workers)
    if settings.device.startswith("cuda:") and distributed.size() > 1:
        expected = "cuda or auto under torchrun (each process takes a GPU of its own)"
        raise ConfigError("device", expected, settings.device, "set device=cuda")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU tenfold and mean zero here
    return settings


def _demo(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _phantom(config, job, run_dir, sweep_dir)
    _crossval(config, job, run_dir, sweep_dir)


def _crossval(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job)
    planned = _planned(config)
    settings = planned.settings
    from oasis_monai.evaluation.report import write_report
    from oasis_monai.evaluation.scores import read_scores, summarise, summary_text
    from oasis_monai.utils.files import locked
    from oasis_monai.workflows.crossval import crossval
    from oasis_monai.workflows.sweep import check_sweep_folder

    key = "hydra.run.dir" if sweep_dir is None else "hydra.sweep.dir"
    swept = job.get("swept") or {}
    if sweep_dir is not None:
        check_sweep_folder(sweep_dir)
    overwrite = bool(job["overwrite"])
    scores = read_scores(crossval(settings, run_dir, overwrite=overwrite, key=key, swept=swept, plan=planned.plan))
    if len(scores):
        print(summary_text(summarise(scores)))
        print(f"report: {write_report(run_dir)}")
        if sweep_dir is None and settings.fold is None:
            print("next: open the report in a browser; `oasis-monai train` with the same options and model=DIR fits a model")
    else:
        print("this job could not score any case yet")
    if sweep_dir is not None:
        with locked(sweep_dir):  # a job joins what is there once its own scores are: the last one to come in joins all
            _join(sweep_dir, tuple(swept))


def _join(sweep_dir: Path, swept: tuple[str, ...]) -> None:
    """Join what the jobs of a sweep have so far, and say what became of it."""
    from oasis_monai.evaluation.report import write_report
    from oasis_monai.workflows.sweep import join_jobs

    joined = join_jobs(sweep_dir, swept)
    if joined is None:
        return
    print(f"sweep so far: {joined.path}")
    if joined.whole:
        print(f"report: {write_report(sweep_dir)}")
    elif joined.conflict:
        print(f"warning: jobs of the same settings are not joined: {joined.conflict}")
    else:
        keys = ", ".join(joined.keys)
        print(f"note: the jobs differ in {keys}, so each value has rows of its own there and nothing is averaged over them")


def _study(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    if job["study"] is None:
        raise ConfigError("study", "the arms of a study", None, "add experiment=paper, or write an experiment with a study")
    _require(job)
    from oasis_monai.training import distributed

    if distributed.size() > 1:
        raise ConfigError(
            "task", "crossval or train under torchrun", "study", "run it without torchrun; workers=N trains N networks at once"
        )
    from oasis_monai.workflows.study import check_study, run_study
    from oasis_monai.workflows.study_plan import planned_study
    from oasis_monai.workflows.study_report import write_results

    planned = _planned(config)
    study = planned_study(check_study(job["study"]), config, planned)
    key = "hydra.run.dir" if sweep_dir is None else "hydra.sweep.dir"
    cluster = _cluster(job["cluster"], run_dir)
    run_study(study, planned.config, run_dir, overwrite=bool(job["overwrite"]), key=key, plan_made=planned.plan, cluster=cluster)
    print(f"report: {write_results(study, planned.config, run_dir)}")


def _cluster(given: Any, run_dir: Path) -> Any:
    """Where the jobs of a study run; None for this machine's own processes."""
    from oasis_monai.utils.cluster import Cluster
    from oasis_monai.utils.config import make_group

    values = {} if given is None else {"executor": given} if isinstance(given, str) else dict(given)
    return make_group(Cluster, {"folder": run_dir / ".submitit", **values}, "cluster") if values.get("executor") else None


def _train(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job, model="the folder to write the model to")
    own = config.get("methods") is not None
    planned = _planned(config)
    settings = planned.settings
    from oasis_monai.workflows.train import train_model

    if own and settings.networks == settings.methods:
        remedy = "leave it out; use crossval to train these networks"
        raise ConfigError("methods", "one or more methods that fuse atlases", list(settings.methods), remedy)
    for key in ("fold", "train_cases"):  # taken for a hold-out, they would have the test cases among the atlases
        if (value := getattr(settings, key)) is not None:
            remedy = "leave it out; data.include=[...] chooses cases"
            raise ConfigError(key, "null: train uses all cases (crossval holds some out)", value, remedy)
    folder, overwrite = Path(job["model"]), bool(job["overwrite"])
    made = train_model(settings, folder, overwrite=overwrite, plan=planned.plan, segments=job["segments"])
    print(f"model: {made}")


def _adapt(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job, model="the folder of a trained model", output="the folder to write the adapted model to")
    settings = _settings(config)  # what made the model travels with it; of these only data, budget and the machine count
    from oasis_monai.workflows.adapt import adapt_model

    made = adapt_model(Path(job["model"]), Path(job["output"]), settings, overwrite=bool(job["overwrite"]))
    print(f"model: {made}")


def _plan(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    from oasis_monai.workflows.plan import plan_settings

    planned = plan_settings(config).told(print)
    if planned.plan is None:
        print("nothing to plan: there is no labelled scan that can be read, or every value is given")
    elif job["output"]:
        print(f"plan: {planned.plan.write(Path(job['output']))}")


def _require(job: Mapping[str, Any], **paths: str) -> None:
    """Refuse a job without one of ``paths``, or with a switch that is neither true nor false."""
    for key, what in paths.items():
        if not job[key]:
            raise ConfigError(key, what, None, f"add {key}=PATH")
    for key in SWITCHES:
        if not isinstance(job[key], bool | None):
            raise ConfigError(key, "true or false", job[key])


def _one(settings: Any, config: Mapping[str, Any], own: bool) -> tuple[int | None, str | None]:
    """The number of atlases and the method (None: as suits the model) of a task that gives one result a scan."""
    if len(settings.n) > 1:
        raise ConfigError("n", "one number: a scan gets one result", list(settings.n))
    if own and len(settings.methods) > 1:
        raise ConfigError("methods", "one method: a scan gets one result", list(settings.methods))
    return None if config.get("n") is None else settings.n[0], settings.methods[0] if own else None


def _segment(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job, model="the folder of a trained model", input="a scan or a folder of scans", output="a folder")
    if job["format"] is not None and not isinstance(job["format"], str):
        raise ConfigError("format", "null or the ending of a file", job["format"])
    from oasis_monai.utils.startup import import_monai_lightly

    import_monai_lightly()
    from oasis_monai.workflows.segment import segment_scans

    settings = _settings(config)  # what made the model travels with it; of these only the options below count
    failed = segment_scans(job["model"], job["input"], job["output"], **_segment_options(settings, config, job))
    if failed:
        raise DataError(failed)


def _segment_options(settings: Any, config: Mapping[str, Any], job: Mapping[str, Any]) -> Any:
    """The options of a command that segments scans, see :class:`oasis_monai.workflows.segment.SegmentOptions`."""
    n, method = _one(settings, config, config.get("methods") is not None)
    if job["input"] and not Path(job["input"]).exists():
        raise ConfigError("input", "a scan or a folder of scans", str(job["input"]), "correct the path")
    return {
        "n": n,
        "method": method,
        "device": settings.device,
        "batch": settings.align_batch,
        "save_probability": settings.save_probability,
        "save_uncertainty": settings.save_uncertainty,
        "save_structures": settings.save_structures,
        "overwrite": bool(job["overwrite"]),
        "file_format": job["format"],
        "segments": job["segments"],
        "postprocessing": settings.postprocessing,
        "views": config.get("views"),
        "views_below": config.get("views_below"),
        "data": settings.data,
    }


def _review(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job)
    if not job["model"] and not job["results"]:
        raise ConfigError(
            "model", "the folder of a trained model, or results=DIR", None, "add model=DIR input=SCANS, or results=DIR"
        )
    if job["input"] and not job["model"]:
        raise ConfigError("model", "the folder of a trained model to segment the scans of input", None, "add model=DIR")
    if job["results"] and job["output"]:
        raise ConfigError("output", "null with results=DIR, which it would be", job["output"], "leave one of them out")
    asked = dict(job["review"] or {})
    if unknown := sorted(set(asked) - {"port", "upload_mb", "minutes", "open"}):
        raise ConfigError(f"review.{unknown[0]}", "port, upload_mb, minutes or open", "an unknown option", "correct or remove it")
    from oasis_monai.review.server import ReviewOptions, Server

    settings = _settings(config)
    segment = _segment_options(settings, config, job)
    model, scans = (Path(job[key]) if job[key] else None for key in ("model", "input"))
    name = "-".join(path.resolve().name for path in (model, scans) if path is not None)
    output = Path(job["results"] or job["output"] or Path("outputs", "review", name))
    Server(output, model, scans, ReviewOptions(**asked), segment, settings.cache).run()


def _evaluate(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job, model="the folder of a trained model")
    from oasis_monai.evaluation.report import write_report
    from oasis_monai.evaluation.scores import read_scores, summarise, summary_text
    from oasis_monai.utils.files import exclusive_folder
    from oasis_monai.workflows.evaluate import evaluate_model, quality_summary
    from oasis_monai.workflows.model import load_model

    own = config.get("methods") is not None
    settings = _settings(config)
    n, method = _one(settings, config, own)
    views = config.get("views"), config.get("views_below")
    model = load_model(Path(job["model"]), settings.device, settings.align_batch, *views)
    output = Path(job["output"] or Path("outputs", "evaluations", f"{model.folder.resolve().name}-{settings.data.name}"))
    switches = {key: bool(job[key]) for key in ("training_cases", "overwrite")}
    with contextlib.nullcontext() if job["output"] else exclusive_folder(output, "output"):
        scores = read_scores(evaluate_model(model, settings.data, output, print, n, method, settings, **switches))
        print(summary_text(summarise(scores)))
        if len(quality := quality_summary(output)):
            print(f"predicted against true Dice\n{quality.to_string(index=False, float_format=lambda v: f'{v:.3f}')}")
        print(f"report: {write_report(output)}")


def _listed_paths(value: Any) -> list[Path]:
    """The path of an option, or those of a list ``[T2.nii.gz,ADC.nii.gz]`` (a path is taken as it is typed, so it is text)."""
    text = str(value)
    if isinstance(value, str) and text.startswith("[") and text.endswith("]") and not Path(text).exists():
        value = [part.strip() for part in text[1:-1].split(",")]
    return [Path(str(one)) for one in (value if isinstance(value, list) else [value])]


def _library(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    if not job["model"]:
        raise ConfigError("model", "the folder of a trained model", None, "add model=DIR")
    if job["add"] is not None and job["remove"] is not None:
        raise ConfigError("remove", "one edit at a time", job["remove"], "give add=IMAGE or remove=CASE")
    if (job["add"] is None) != (job["label"] is None):
        missing, there = ("label", "add") if job["label"] is None else ("add", "label")
        raise ConfigError(missing, f"a file beside {there}={job[there]}", None, "give add=IMAGE label=LABEL")
    images = _listed_paths(job["add"])
    if job["add"] is not None:
        for key, path in (*(("add", image) for image in images), ("label", Path(str(job["label"])))):
            if not path.exists():
                raise ConfigError(key, "an existing file", str(path), "correct the path")
    if job["case"] is not None and job["add"] is None:
        raise ConfigError("case", "the id of a case to add", job["case"], "give add=IMAGE label=LABEL case=ID, or remove=CASE")
    if job["patient"] is not None and job["add"] is None:
        raise ConfigError("patient", "the person of a case to add", job["patient"], "give add=IMAGE label=LABEL patient=NAME")
    from oasis_monai.workflows.library import add_atlas, list_atlases, remove_atlas

    model = Path(job["model"])
    if job["add"] is not None:
        settings = _settings(config)
        case, patient = (None if job[key] is None else str(job[key]) for key in ("case", "patient"))
        label = Path(str(job["label"]))
        added = add_atlas(model, images, label, case, settings.device, settings.align_batch, patient=patient)
        print(f"added: {added}")
    elif job["remove"] is not None:
        settings = _settings(config)
        remove_atlas(model, str(job["remove"]), settings.device, settings.align_batch)
        print(f"removed: {job['remove']}")
    print(list_atlases(model), end="")


def _bundle(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job, model="the folder of a trained model", output="the folder to write the bundle to")
    own = config.get("methods") is not None
    settings = _settings(config)
    from oasis_monai.workflows.bundle import write_bundle

    n, method = _one(settings, config, own)
    shared = bool(job["share_atlases"])
    made = write_bundle(
        Path(job["model"]), Path(job["output"]), n, method, settings.align_batch, bool(job["overwrite"]), share_atlases=shared
    )
    print(f"bundle: {made}")


def _export_nnunet(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    _require(job, output="the folder for nnUNet_raw, nnUNet_preprocessed and nnUNet_results")
    asked = dict(job["nnunet"] or {})
    if unknown := sorted(set(asked) - {"dataset"}):
        raise ConfigError(f"nnunet.{unknown[0]}", "dataset", "an unknown option", "correct or remove it")
    from oasis_monai.workflows.nnunet import FOLDERS, export_nnunet
    from oasis_monai.workflows.plan import plan_settings

    results = Path(job["results"]) if job["results"] else None
    settings = _settings(config) if results else _ready(plan_settings(config, keep=False).settings)
    methods = settings.methods if config.get("methods") is not None else None
    n = settings.n if config.get("n") is not None else None
    output = Path(job["output"])
    made = export_nnunet(output, settings, results, asked.get("dataset"), methods, n, bool(job["overwrite"]))
    for line in made.notes:
        print(line)
    print(f"data set: {made.raw}\nfolds: {made.splits}")
    for model in made.models:
        print(f"results: {model}")
    print("next: export " + " ".join(f"{name}={output.resolve() / name}" for name in FOLDERS))


def _download(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    from oasis_monai.data.download import download, find_source

    settings = _settings(config)
    output = job["output"] or ("" if job["msd"] else settings.data.root)
    _require({**job, "output": output}, output="the folder to put the data set in")
    source = find_source(job["msd"] or settings.data.source, job["download"])
    print(f"data: {download(source, Path(output), bool(job['accept_license']), progress=settings.progress)}")


def _check(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    from oasis_monai.data.found import find_data
    from oasis_monai.settings import build_data
    from oasis_monai.utils.files import write_text
    from oasis_monai.workflows.check import as_table, check_cases
    from oasis_monai.workflows.plan import plan_settings

    planned, wrong = None, None
    try:
        planned = plan_settings(config, keep=False)
        _ready(planned.settings)
        data, preprocessing = planned.settings.data, planned.settings.preprocessing
    except ConfigError as error:  # the networks cannot work like this; the data can be looked at all the same
        if error.key.startswith("data."):
            raise
        data, preprocessing = build_data(config)
        wrong = error
        print(f"error: {wrong}", file=sys.stderr)
    model = _model_that_looks(job, planned)
    found = find_data(data, part="all", channels=() if model is None else model.record.channels)
    cases, faults = found.cases, list(found.faults)
    own = found.data
    faults += check_cases(cases, own.label_values, preprocessing, ignore=own.ignore, structures=own.shared)
    if model is not None:
        from oasis_monai.workflows.label_check import check_labels

        output = Path(job["output"]) if job["output"] else None
        faults += check_labels(model, found.data, cases, print, output, bool(config.get("progress")))
    if job["output"]:
        write_text(Path(job["output"]) / "check.csv", as_table(faults))
    for fault in faults:
        print(f"{fault.severity}: {fault}", file=sys.stderr if fault.severity == "error" else sys.stdout)
    if planned is not None:
        planned.told(print)
    else:
        for line in found.said:
            print(line)
    errors = sum(fault.severity == "error" for fault in faults)
    settings_too = "" if wrong is None else "; the data was looked at, but the settings cannot work"
    print(f"{len(cases)} cases, {errors} errors, {len(faults) - errors} warnings{settings_too}")
    if errors or wrong is not None:
        raise SystemExit(2)


def _model_that_looks(job: Mapping[str, Any], planned: Any) -> Any:
    """The model that looks at the labels too; None where none is named."""
    if not job["model"]:
        return None
    from oasis_monai.workflows.model import load_model

    options = () if planned is None else (planned.settings.device, planned.settings.align_batch)
    return load_model(Path(job["model"]), *options)


def _report(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    from oasis_monai.evaluation.report import read_run, write_report

    if not job["output"]:
        raise ConfigError("output", "the folder of a finished run, with its scores.csv", None, "add output=RUN_DIR")
    folder = Path(job["output"])
    run = read_run(folder / "run.json") or {}
    if run.get("task") == "study":
        from oasis_monai.workflows.study import check_study
        from oasis_monai.workflows.study_report import write_results

        config = run.get("config") or run.get("settings") or {}
        print(f"report: {write_results(check_study(run.get('study')), config, folder)}")
    else:
        print(f"report: {write_report(folder)}")


def _phantom(config: dict[str, Any], job: Mapping[str, Any], run_dir: Path, sweep_dir: Path | None) -> None:
    from oasis_monai.data.phantom import write_phantom

    settings, asked = _settings(config), dict(job["phantom"] or {})
    if unknown := sorted(set(asked) - {"kind", "size", "cases"}):
        raise ConfigError(f"phantom.{unknown[0]}", "kind, size or cases", "an unknown option", "correct or remove it")
    kind = asked.get("kind") or ("ct" if settings.data.name == "phantom_ct" else "prostate")
    if not settings.data.root:
        raise ConfigError("data.root", "the folder to write the phantom to", settings.data.root, "add data.root=DIR")
    more = {key: asked[key] for key in ("size", "cases") if asked.get(key) is not None}
    ids = write_phantom(Path(settings.data.root), seed=settings.seed, kind=kind, **more)
    print(f"phantom: {len(ids)} cases in {settings.data.root}")
