"""The porch: the only module that knows Hydra. ``oasis-monai [task] key=value ...``, or ``python -m oasis_monai``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

VALUED = {"--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"}  # Hydra's options that take the next word
VALUED |= {"--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
TASKS = ("crossval", "study", "train", "segment", "library", "bundle", "download", "check", "report", "phantom")
USAGE = """\
oasis-monai: segment medical images from a few labelled scans (atlases), aligned in one pass and fused by label overlap.

  oasis-monai [TASK] [KEY=VALUE ...]     python -m oasis_monai is the same

tasks
  crossval   cross-validate on a labelled data set (default): scores, summary, pictures, a report page
  study      several cross-validations on the same folds, compared   experiment=paper
  train      fit on all cases and write a model folder            model=DIR
  segment    segment a scan or a folder of scans                  model=DIR input=PATH output=DIR [format=nii.gz|mha|mhd]
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
  training.minutes=12                  per fold; or training.iterations=N training.minutes=null (repeatable)
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
        elif "=" in argument or argument.startswith("~"):
            overrides.append(argument)
        else:
            words.append(argument)
    if words and (words[0] not in TASKS or len(words) > 1):
        wrong = words[0] if words[0] not in TASKS else words[1]
        sys.exit(
            f"error: task: expected one of {', '.join(TASKS)}, then KEY=VALUE pairs, found {wrong!r}; see oasis-monai --help"
        )
    return [*options, *overrides, *(f"task={task}" for task in words)]


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def run(config: Any) -> None:
    """One job: the composed configuration becomes a plain dict here, and Hydra ends."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from oasis_monai.errors import OasisError

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    sweep_dir = Path(hydra_config.sweep.dir) if hydra_config.mode == RunMode.MULTIRUN else None
    elsewhere = sweep_dir is not None and not str(hydra_config.launcher._target_).endswith(".BasicLauncher")
    if elsewhere:  # joblib, submitit: a process whose own words are none of ours
        sys.argv = ["oasis-monai", *hydra_config.overrides.task]
    try:
        from oasis_monai.tasks import run_task

        run_task(_plain(config), run_dir, sweep_dir)
    except OasisError as error:
        _refuse(str(error).splitlines(), elsewhere)
    except OSError as error:  # a full disk, a folder that cannot be written
        if error.filename is None:
            raise
        _refuse([f"{error.filename}: expected to read or write it, found {error.strerror}; correct that"], elsewhere)


def _refuse(lines: list[str], elsewhere: bool) -> NoReturn:
    """End the job with its error lines; one that runs ``elsewhere`` sends them to the process that launched it."""
    text = "\n".join(f"error: {line}" for line in lines)
    if elsewhere:
        from hydra.errors import CompactHydraException

        raise CompactHydraException(text) from None  # Hydra names the job, prints this and no stack; the other jobs go on
    print(text, file=sys.stderr)
    raise SystemExit(2) from None


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
    from oasis_monai import distributed
    from oasis_monai.errors import OasisError

    try:
        with distributed.joined() as team:
            if team.leads:
                _compose_and_run()
            else:
                team.serve()
    except OasisError as error:
        _refuse(str(error).splitlines(), elsewhere=False)


def _compose_and_run() -> None:
    import hydra

    sys.argv = [sys.argv[0], *_arguments(sys.argv[1:])]
    # the message of a wrong override is Hydra's one line, not its stack
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    try:
        hydra.main(version_base="1.3", config_path="pkg://oasis_monai.conf", config_name="config")(run)()
    except KeyboardInterrupt:
        print("interrupted: start the same command again, it goes on where it stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
