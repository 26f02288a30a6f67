"""The porch: the only module that knows Hydra. ``oasis-monai [task] key=value ...``, or ``python -m oasis_monai``."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUED = {"--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"}  # Hydra's options that take the next word
VALUED |= {"--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
TASKS = ("crossval", "study", "train", "segment", "library", "bundle", "download", "check", "report", "phantom")
PATHS = {"model", "input", "output", "add", "label", "cache", "data.root", "features.weights", "hydra.run.dir", "hydra.sweep.dir"}
NAMES = {"case", "remove"}  # ids of cases, which may be called anything
USAGE = """\
oasis-monai: segment medical images from a few labelled scans (atlases), aligned in one pass and fused by label overlap.

  oasis-monai [TASK] [KEY=VALUE ...]     python -m oasis_monai is the same

tasks
  crossval   cross-validate on a labelled data set (default): scores, summary, pictures, a report page
  study      several cross-validations on the same folds, compared   experiment=paper
  train      fit on all cases and write a model folder            model=DIR
  segment    segment a scan or a folder of scans                  model=DIR input=PATH output=DIR [format=nii.gz|nii|mha|mhd]
  library    list a model's atlases, or edit them                 model=DIR [add=IMAGE label=LABEL [case=ID] | remove=CASE]
  bundle     write a model as a MONAI bundle                      model=DIR output=DIR
  download   fetch a public data set                              data=promise12|hippocampus or msd=Task09_Spleen   output=DIR
  check      list every fault of a data set at once
  report     write report.html for a finished run                 output=RUN_DIR
  phantom    write the synthetic data set                         data.root=DIR

the knobs people turn
  data=phantom|promise12|hippocampus   data.root=DIR
  spatial_dims=3|2                     an atlas is a volume (3) or an axial slice (2, the paper)
  n=6                                  atlases to fuse; also n=[1,2,4,6]
  folds=patient|slice  k=5  fold=null  honest folds or the paper's; all folds or one
  methods=[FwoW,FWAL,OASIS,OASIS-joint]  also OASIS-consensus, OASIS-conditioned, majority, STAPLE, estimate
  training.minutes=20                  per fold; or training.iterations=N training.minutes=null (repeatable)
  device=auto  seed=0

examples
  oasis-monai data=promise12 data.root=/data/promise12
  oasis-monai -m n=2,4,6,8 fold=0,1,2,3,4 data=promise12 data.root=/data/promise12
  oasis-monai train data=promise12 data.root=/data/promise12 model=models/prostate
  oasis-monai segment model=models/prostate input=scan.mhd output=results

  -m, --multirun   sweep over comma-separated values; the jobs' scores are joined
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
            words.append(argument)
    if words and (words[0] not in TASKS or len(words) > 1):
        wrong = words[0] if words[0] not in TASKS else words[1]
        sys.exit(
            f"error: task: expected one of {', '.join(TASKS)}, then KEY=VALUE pairs, found {wrong!r}; see oasis-monai --help"
        )
    return [*options, *map(_quoted, overrides), *(f"task={task}" for task in words)]


def _quoted(override: str) -> str:
    """A path as people type it, ``input=scan (1).nii.gz``, in the quotes that Hydra's grammar wants round its brackets."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in PATHS | NAMES or re.fullmatch(r"[\w/.:+%@\\-]*", value) or value[:1] in "'\"" or "${" in value:
        return override
    if "," in value and key not in NAMES and not Path(value).exists():  # values of a sweep
        return override
    # a backslash means itself but before a quote
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
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

        run_task(_plain(config), run_dir, sweep_dir)


def check_run_folder() -> Any:
    """A callback of Hydra's (``hydra.callbacks`` in ``conf/config.yaml``): before Hydra writes into the run's folder, see to it
    that this can be done and that no other run is at work there."""
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
            look(config, "run")

        def on_multirun_start(self, config: Any, **_: Any) -> None:
            look(config, "sweep")

    return CheckRunFolder()


@contextlib.contextmanager
def _telling(one_of_many: bool = False) -> Iterator[None]:
    """An error that is the input's or the machine's fault becomes lines on stderr and exit code 2; of a sweep's job they go
    to what launched it as well, which tells them again when the other jobs have ended."""
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
    """What an error that is the input's or the machine's fault says to the user; nothing for one of the program's own."""
    from oasis_monai.utils.errors import OasisError, system_fault
    from oasis_monai.utils.memory import first_line, out_of_memory

    if isinstance(error, OasisError):
        return str(error).splitlines()
    if isinstance(error, OSError) and error.errno:  # a full disk, a folder that cannot be written
        return [str(system_fault(error))]
    if out_of_memory(error):
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        remedy = "lower align_batch, training.batch, workers or preprocessing.size, or end other programs"
        return [f"{where}memory: expected enough for this, found none left ({first_line(error)}); {remedy}"]
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
        from oasis_monai.utils.config import check_renamed

        with _telling():
            for word in sys.argv[1:]:
                if not word.startswith("-"):
                    check_renamed(word.partition("=")[0].lstrip("+~").replace("/", ".").partition("@")[0])
            check_data_files(sys.argv[1:])
        _read_over_byte_order_marks()
        with interrupts.repeated():
            hydra.main(version_base="1.3", config_path="pkg://oasis_monai.conf", config_name="config")(run)()
    except KeyboardInterrupt:
        print("interrupted: give the same command again to go on; what was finished is kept", file=sys.stderr)
        sys.exit(130)


def _read_over_byte_order_marks() -> None:
    """Hydra looks for ``# @package`` in the first line, and finds none behind the mark that Windows programs put there."""
    from hydra.plugins.config_source import ConfigSource

    read: Any = ConfigSource._get_header_dict
    ConfigSource._get_header_dict = staticmethod(lambda text: read(text.removeprefix("\ufeff")))  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
