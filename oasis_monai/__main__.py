"""The command line ``oasis-monai [task] key=value ...`` (or ``python -m oasis_monai``), the only module that uses Hydra."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from oasis_monai.utils.typed import QUOTED, as_typed

VALUED = {"--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"}  # Hydra's options that take the next word
VALUED |= {"--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
TASKS = (
    *("crossval", "study", "train", "adapt", "plan", "segment", "evaluate"),
    *("review", "library", "bundle", "export-nnunet", "download", "check", "report", "phantom", "demo"),
)
PATHS = {"model", "input", "output", "results", "add", "label", "cache", "data.root", "features.weights", "unlabelled"}
PATHS |= {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"}
GROUPS = {
    "data",
    "preprocessing",
    "features",
    "registration",
    "loss",
    "training",
    "augmentation",
    "network",
    "joint",
    "self_training",
    "experiment",
}
NAMES = {
    "nnunet.dataset",
    "data.name",
    "data.citation",
    "data.licence",
    "data.source",
    "msd",
    "download.url",
    "download.md5",
    "hydra.job.name",
}
USUAL = {
    "adapt": ("training=adapt",),  # minutes of its own
    "demo": ("experiment=demo", "hydra.run.dir=outputs/demo"),
}
"""What a task means where the command does not say otherwise."""
IDS = {"case", "patient", "remove"}  # of cases, which may be called anything: never values of a sweep
IDS |= {"data.patient"}  # regular expressions, with any signs in them
NESTED = ("data.image", "data.label", "data.centre")  # the same or templates, or a list or map of them
PLAIN = re.compile(r"[A-Za-z0-9_./:+%@*?|-]*")  # what Hydra's grammar takes as it is
NO_TEXT = re.compile(r"(?i:[+-]?(inf|nan|(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d+)?)|true|false)")  # and makes other values of
FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|str)\(.*\)")
INTERPOLATION = re.compile(r"\$\{[A-Za-z_][\w.]*(:[^{}]*)?\}")
LABELS = "data.labels"
USAGE = """\
oasis-monai: segment medical images from a few labelled scans (atlases), aligned in one pass and fused by label overlap.

  oasis-monai [TASK] [KEY=VALUE ...]     python -m oasis_monai is the same

tasks
  demo       see it work: cross-validate on synthetic scans; minutes on two cores, ends with the path of a report
  crossval   cross-validate on a labelled data set (default): scores, summary, pictures, a report page
  study      compare several cross-validations on the same folds  experiment=paper
  train      train on all cases and write a model folder          data.root=DIR model=DIR [unlabelled=DIR]
  adapt      train a model on with a few scans of a new centre    model=DIR data.root=DIR output=NEWDIR
  plan       choose grid, intensities and networks for a data set  data.root=DIR [output=DIR]
  segment    segment a scan or a folder of scans                  model=DIR input=PATH output=DIR [format=nii.gz|dicom-seg|...]
  evaluate   score a model on labelled cases, another centre's    model=DIR data.root=DIR [output=DIR]
  review     look at results, correct them, teach the model       model=DIR input=PATH [output=DIR], or results=DIR [model=DIR]
  library    list a model's atlases, or edit them                 model=DIR [add=IMAGE label=LABEL [case=ID] | remove=CASE]
  bundle     write a model as a MONAI bundle                      model=DIR output=DIR [share_atlases=false]
  export-nnunet  folds and results as nnU-Net has them            results=RUN_DIR output=DIR, or data.root=DIR output=DIR
  download   download a public data set                           data=promise12|hippocampus or msd=Task09_Spleen   output=DIR
  check      list all faults of a data set, and its plan          data.root=DIR [model=DIR to look at the labels]
  report     write report.html for a finished run                 output=RUN_DIR
  phantom    write a synthetic data set                           data.root=DIR

What suits a data set is chosen from its scans and told with the reasons; every value can be given instead.

frequent options
  data=phantom|promise12|hippocampus   data.root=DIR
  spatial_dims=3|2                     an atlas is a volume (3) or an axial slice (2, the paper)
  n=6                                  number of atlases to fuse; also n=[1,2,4,6]
  folds=patient|slice  k=5  fold=null  split by patient, or by slice as the paper did; run all folds or one
  methods=[FwoW,FWAL,OASIS,OASIS-joint]  also OASIS-consensus, OASIS-conditioned, majority, STAPLE, estimate
  training.minutes=20                  per fold; training.iterations=N training.minutes=null gives repeatable results
  device=auto  seed=0

examples
  oasis-monai data=promise12 data.root=/data/promise12
  oasis-monai -m n=2,4,6,8 fold=0,1,2,3,4 data=promise12 data.root=/data/promise12
  oasis-monai train data=promise12 data.root=/data/promise12 model=models/prostate
  oasis-monai segment model=models/prostate input=scan.mhd output=results

  -m, --multirun   sweep over comma-separated values; jobs that differ only in n, fold or methods are joined
  --cfg job        print the composed configuration
  --hydra-help     Hydra's own options
"""


def _arguments(argv: list[str]) -> list[str]:
    """The bare first word is the task; everything else is Hydra's, its options first.

    Hydra's parser refuses overrides on both sides of an option (``data=x -m n=1,2``), which is how people type them.
    """
    options: list[str] = []
    overrides: list[str] = []
    words: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument.startswith("-"):
            options.append(argument)
            if argument in VALUED:
                options += [value for value in [next(rest, None)] if value is not None]
        elif "=" in argument[1:] or argument.startswith("~"):
            overrides.append(argument)
        else:
            words.append("export-nnunet" if argument == "export_nnunet" else argument)
    if words and (words[0] not in TASKS or len(words) > 1):
        wrong = words[0] if words[0] not in TASKS else words[1]
        sys.exit(
            f"error: task: expected one of {', '.join(TASKS)}, then KEY=VALUE pairs, found {wrong!r}; see oasis-monai --help"
        )
    sweep = not {"-m", "--multirun"}.isdisjoint(options)
    # a key of data may stand in the data set's own file or not: both its + and its = mean the same
    quoted = [re.sub(r"^\+(?=data\.\w+=)", "++", _quoted(word, sweep)) for word in overrides]
    if not any(word.startswith(f"~{LABELS}") for word in overrides):
        quoted = [made for word in quoted for made in _labels(word, sweep)]
    task = words[0] if words else next((word[5:] for word in overrides if word.startswith("task=")), "")
    usual = [word for word in USUAL.get(task, ()) if not _is_given(word.partition("=")[0], overrides)]
    return [*options, *usual, *quoted, *(f"task={task}" for task in words)]


def _is_given(key: str, overrides: Iterable[str]) -> bool:
    return any(word.lstrip("+").startswith(f"{key}=") for word in overrides)


def _labels(override: str, sweep: bool) -> list[str]:
    """Labels that take the place of those of the data set: Hydra would lay one map over the other. Names that its grammar has no
    way to write go through it as a text, see :func:`_plain`."""
    key, _, value = override.partition("=")
    if key.lstrip("+") != LABELS or value[:1] != "{" or value[-1:] != "}":
        return [override]
    as_map = sweep or re.fullmatch(r"\{[A-Za-z0-9_ .:,/+-]*\}", value)
    return [f"~{LABELS}", f"+{LABELS}={value if as_map else _text(value, ids=True)}"]


def _label_map(text: str) -> dict[str, Any]:
    """Labels as typed, ``{central gland: 1, größe: 2}``."""
    pairs = [part.rpartition(":") for part in _parts(text.strip()[1:-1])]
    names = [name.strip() for name, _, _ in pairs]
    values = [value.strip() for _, _, value in pairs]
    return {
        name[1:-1] if QUOTED.fullmatch(name) else name: int(value) if value.isdecimal() else value
        for name, value in zip(names, values, strict=True)
    }


def _quoted(override: str, sweep: bool = False) -> str:
    """An override whose value is a path, a name or other text, as people type it, ``input=scan (1).nii.gz``, in the quotes that
    Hydra's grammar wants round it.

    Args:
        sweep: commas may stand between the values of a sweep.
    """
    key, _, value = override.partition("=")
    name = key.lstrip("+").replace("/", ".").partition("@")[0]
    if name in NESTED:
        return f"{key}={_text(value, ids=True)}"  # a list or a map too, see :func:`as_typed`
    if name == "data.include" and value[:1] == "[" and value[-1:] == "]":  # a list of ids
        return f"{key}=[{','.join(_id(part.strip()) for part in _parts(value[1:-1]))}]"
    is_path = name in PATHS
    there = is_path and os.path.lexists(value)
    if name not in PATHS | GROUPS | NAMES | IDS or (name in PATHS | GROUPS and FUNCTION.fullmatch(value) and not there):
        return override
    if sweep and name not in IDS and not name.startswith("hydra.") and "," in value and not there:
        return f"{key}={','.join(_text(part.strip(), is_path) for part in _parts(value))}"
    return f"{key}={_text(value, is_path, ids=name in IDS)}"


def _id(value: str) -> str:
    """One of a list of ids: a number that is written as Python writes it becomes that text again later."""
    return value if re.fullmatch(r"0|[1-9][0-9]*", value) else _text(value, ids=True)


def _parts(text: str) -> list[str]:
    """A text split at its commas, but those in quotes."""
    return re.findall(rf"(?:{QUOTED.pattern}|[^,])+", text, re.DOTALL)


def _text(value: str, is_path: bool = False, ids: bool = False) -> str:
    """One value so that Hydra takes it for the text that it is. ``null``, what has its quotes, and ``${key}`` stay what they are
    to Hydra, unless there is a file of that name."""
    there = is_path and os.path.lexists(value)
    if is_path and not there and re.match(r"~(/|$)", value):  # the shell leaves it after a key with dots
        value = os.path.expanduser(value)
    if value.lower() in ("", "null") or (not there and QUOTED.fullmatch(value)):
        return value
    if PLAIN.fullmatch(value) and not NO_TEXT.fullmatch(value):
        return value
    if there or ids or not INTERPOLATION.search(value):
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    # a backslash means itself but before a quote
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    data = plain.get("data")
    if isinstance(data, dict) and isinstance(labels := data.get("labels"), str) and labels[:1] == "{":
        data["labels"] = _label_map(labels)
    if isinstance(data, dict):
        for key in (name.partition(".")[2] for name in NESTED):
            if isinstance(value := data.get(key), str):
                data[key] = as_typed(value, lists=key == "image")
    return {str(k): v for k, v in plain.items()}


def run(config: Any) -> None:
    """One job: the composed configuration becomes a plain dict here, and Hydra ends."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    sweep_dir = Path(hydra_config.sweep.dir) if hydra_config.mode == RunMode.MULTIRUN else None
    if sweep_dir is not None and not str(hydra_config.launcher._target_).endswith(".BasicLauncher"):
        sys.argv = ["oasis-monai", *hydra_config.overrides.task]  # joblib, submitit: a process whose own words are none of ours
    with _telling(one_of_many=sweep_dir is not None):
        from oasis_monai.tasks import run_task

        run_task(_plain(config), run_dir, sweep_dir, {} if sweep_dir is None else _swept(sweep_dir, hydra_config.overrides.task))


def _swept(sweep_dir: Path, words: Iterable[str]) -> dict[str, str]:
    """The options that a sweep is run over, and the values of one of its jobs, whose overrides are ``words``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parser = OverridesParser.create()
    asked = OmegaConf.load(sweep_dir / "multirun.yaml").hydra.overrides.task
    own = {one.get_key_element(): one.value() for one in parser.parse_overrides(list(words))}
    keys = [one.get_key_element() for one in parser.parse_overrides(list(asked)) if one.is_sweep_override()]
    return {key.lstrip("+"): str(own.get(key)) for key in keys}


def check_run_folder() -> Any:
    """Make Hydra's callback (``hydra.callbacks`` in ``conf/config.yaml``) that checks the run's folder before it is written to.

    The folder must be writable, and no other run may use it. Of a task whose results go elsewhere Hydra writes nothing.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.experimental.callback import Callback

    def look(config: Any, mode: str) -> None:
        from oasis_monai.tasks import OWN_FOLDER
        from oasis_monai.utils.errors import ConfigError
        from oasis_monai.utils.files import exclusive_folder

        HydraConfig.instance().set_config(config)  # the folder's name may say ${hydra:...}
        key = f"hydra.{mode}.dir"
        with _telling():
            try:
                with exclusive_folder(Path(config.hydra[mode].dir), key):
                    pass  # the task claims it for itself, see oasis_monai.tasks
            except ConfigError:  # two begun in one second have one name: those whose results go elsewhere share it
                if mode != "run" or OWN_FOLDER.get(config.task) == key:
                    raise

    class CheckRunFolder(Callback):
        def on_run_start(self, config: Any, **_: Any) -> None:
            from oasis_monai.tasks import OWN_FOLDER

            asked = any(word.lstrip("+").startswith("hydra.run.dir=") for word in config.hydra.overrides.hydra)
            if asked or OWN_FOLDER.get(config.task) == "hydra.run.dir":
                look(config, "run")
            else:
                _write_nothing(config)

        def on_multirun_start(self, config: Any, **_: Any) -> None:
            look(config, "sweep")

    return CheckRunFolder()


def _write_nothing(config: Any) -> None:
    """Let Hydra make no folder, no record and no log of a job: the working folder may be read-only."""
    from omegaconf import open_dict, read_write

    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.run.dir = "."
        config.hydra.output_subdir = None
        config.hydra.job_logging.root.handlers = ["console"]
        config.hydra.job_logging.handlers.pop("file", None)


@contextlib.contextmanager
def _telling(one_of_many: bool = False) -> Iterator[None]:
    """Turn an error that the input or the machine caused into lines on stderr and exit code 2.

    Args:
        one_of_many: in a job of a sweep, hand the lines to the launcher too, which repeats them after the other jobs.
    """
    try:
        yield
    except Exception as error:
        lines = _explained(error)
        if not lines:
            raise
        text = "\n".join(f"error: {line}" for line in lines)
        print(text, file=sys.stderr)
        if one_of_many:
            from hydra.errors import CompactHydraException

            raise CompactHydraException(text) from None  # Hydra names the job, prints this and no stack; the other jobs go on
        raise SystemExit(2) from None


def _explained(error: Exception) -> list[str]:
    """The message of an error that the input or the machine caused, line by line; empty for an error of the program."""
    from oasis_monai.utils.errors import OasisError, system_error_message
    from oasis_monai.utils.memory import first_line, out_of_memory

    if isinstance(error, OasisError):
        return str(error).splitlines()
    if isinstance(error, OSError) and error.errno:  # a full disk, a folder that cannot be written
        return [system_error_message(error)]
    if out_of_memory(error):
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        remedy = "Lower align_batch, training.batch, workers or preprocessing.size, or close other programs."
        return [f"{where}out of memory ({first_line(error)}). {remedy}"]
    return []


def main() -> None:
    """Entry point of ``oasis-monai``."""
    argv = sys.argv[1:]
    if any(a in ("-h", "--help") for a in argv):
        print(USAGE)
        return
    if not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() or os.environ.get("WORLD_SIZE", "1") == "1":
        _compose_and_run()
        return
    # one of several processes that torchrun started
    from oasis_monai.training import distributed

    with _telling(), distributed.joined() as team:
        if team.is_main:
            _compose_and_run()
        else:
            team.serve()


def _compose_and_run() -> None:
    sys.argv = [sys.argv[0], *_arguments(sys.argv[1:])]
    # the message of a wrong override is Hydra's one line, not its stack
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    try:
        import hydra

        from oasis_monai.data.dataset_yaml import check_data_files
        from oasis_monai.utils import interrupts
        from oasis_monai.utils.config import check_gone, check_renamed

        with _telling():
            for word in sys.argv[1:]:
                if not word.startswith("-"):
                    key, _, value = word.partition("=")
                    name = key.lstrip("+~").replace("/", ".").partition("@")[0]
                    check_renamed(name)
                    check_gone(name, value)
            check_data_files(sys.argv[1:])
        _read_over_byte_order_marks()
        with interrupts.repeated():
            hydra.main(version_base="1.3", config_path="pkg://oasis_monai.conf", config_name="config")(run)()
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue; finished work is kept", file=sys.stderr)
        sys.exit(130)


def _read_over_byte_order_marks() -> None:
    """Hydra looks for ``# @package`` in the first line, and finds none behind the mark that Windows programs put there."""
    from hydra.plugins.config_source import ConfigSource

    read: Any = ConfigSource._get_header_dict
    ConfigSource._get_header_dict = staticmethod(lambda text: read(text.removeprefix("\ufeff")))  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
