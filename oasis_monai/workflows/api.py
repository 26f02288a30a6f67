"""The commands as functions: the same names, the same defaults, the same results. Nothing prints or exits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from oasis_monai.settings import build, composed
from oasis_monai.utils.device import torch_setup
from oasis_monai.utils.errors import Fault
from oasis_monai.utils.files import exclusive_folder
from oasis_monai.utils.presets import lay_over, nested
from oasis_monai.workflows.model import Model, load_model
from oasis_monai.workflows.plan import Planned, plan_settings
from oasis_monai.workflows.segment import SegmentOptions

_LOGGER = logging.getLogger("oasis_monai")


def plan(options: Mapping[str, Any] | None = None, **more: Any) -> Planned:
    """What suits a data set, with reasons: ``oasis-monai plan``. Its scans are read, nothing is trained.

    :func:`train` and :func:`cross_validate` do the same by themselves.

    Args:
        options: settings as on the command line, see :func:`oasis_monai.build_settings`; what they give is not planned.
        more: further settings, which come after ``options``.

    Returns:
        The plan (None where nothing was left to plan, or no labelled scan can be read) and the settings that follow from it.

    Raises:
        DataError: the folder is absent or no data set.
        ConfigError: a setting that cannot work.

    Examples:
        >>> import oasis_monai
        >>> data = {"root": "data/prostate", "layout": "promise12", "labels": {"prostate": 1}}
        >>> planned = oasis_monai.plan(data=data)
        >>> print(planned.plan.lines()[2])
        preprocessing.size=[...] preprocessing.spacing_mm=[...]  # labels reach ...
        >>> planned.settings.preprocessing.size == tuple(planned.plan.values["preprocessing"]["size"])
        True
    """
    return plan_settings(composed({"progress": False, **(options or {})}, more))


def train(
    model: str | Path,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    segments: str | Path | Mapping[str, Any] | None = None,
    **more: Any,
) -> Model:
    """Fit the networks on all cases of a data set, write the model folder, and load it: ``oasis-monai train``.

    Training goes on from its checkpoint in ``cache`` when it was interrupted.

    Args:
        model: the folder to write.
        options: settings as on the command line, see :func:`oasis_monai.build_settings`.
        overwrite: also in the place of a model of other data or settings, or whose library was edited since its training.
        segments: colours and codes of the structures, kept with the model for its results, see
            :func:`oasis_monai.data.segment_table.read_segments`.
        more: further settings, which come after ``options``.

    Returns:
        The model.

    Raises:
        DataError: every fault of the data set.
        ConfigError: a setting that cannot work, or a model with an edited library.
        OasisError: a network did not learn, or memory ran out; the last checkpoint stays.

    Examples:
        >>> import oasis_monai
        >>> data = {"root": "data/prostate", "layout": "promise12", "labels": {"prostate": 1}}
        >>> grid = {"size": [32, 32, 16], "spacing_mm": [3.0, 3.0, 6.0]}
        >>> training = {"iterations": 2, "minutes": None}  # for a real model {"minutes": 20}
        >>> oasis_monai.train("models/small", {"registration": "unet3d"}, data=data, preprocessing=grid, training=training)
        Model(models/small, 7 atlases, {'prostate': 1}, ...)
    """
    from oasis_monai.workflows.train import train_model

    planned = plan(options, **more).told(_LOGGER.info)
    settings = planned.settings
    with exclusive_folder(Path(model), "model"), torch_setup(settings.threads):
        train_model(settings, Path(model), _LOGGER.info, overwrite, planned.plan, segments)
    return load_model(model, settings.device, settings.align_batch)


def adapt(
    model: str | Path, output: str | Path, options: Mapping[str, Any] | None = None, overwrite: bool = False, **more: Any
) -> Model:
    """Train a model on with a few labelled scans of a new centre, write a new model, and load it: ``oasis-monai adapt``.

    The model itself stays as it is. An interrupted training goes on from its checkpoint in ``cache``.

    Args:
        model: the folder of a trained model.
        output: the folder to write the new model to.
        options: ``data``, ``training.minutes`` (2) or ``training.iterations``, and other settings; what made the model travels
            with it.
        overwrite: also in the place of another model.
        more: further settings, which come after ``options``.

    Returns:
        The adapted model.

    Raises:
        DataError: every fault of the scans; or one that is an atlas of the model already.
        ConfigError: a setting that cannot work, or structures of other names.
        OasisError: no model; or training failed: the last checkpoint stays.

    Examples:
        >>> import oasis_monai
        >>> data = {"root": "data/new_centre", "layout": "promise12", "labels": {"prostate": 1}}
        >>> training = {"iterations": 2, "minutes": None}  # for a real model {"minutes": 2}
        >>> model = oasis_monai.adapt("models/prostate", "models/adapted", data=data, training=training)
        >>> model
        Model(models/adapted, 10 atlases, {'prostate': 1}, ...)
    """
    from oasis_monai.workflows.adapt import adapt_model

    given = lay_over(nested(options or {}), nested(more))
    settings = build(composed({"progress": False, "training": "adapt"}, given))
    with exclusive_folder(Path(output), "output"), torch_setup(settings.threads):
        adapt_model(Path(model), Path(output), settings, _LOGGER.info, overwrite)
    return load_model(output, settings.device, settings.align_batch)


def segment(model: str | Path, input: str | Path, output: str | Path, **options: Unpack[SegmentOptions]) -> list[Fault]:
    """Segment one scan or every scan of a folder into files: ``oasis-monai segment``.

    For one scan in memory see :meth:`oasis_monai.Model.segment`.

    Args:
        model: the folder of a trained model.
        input: a scan, a DICOM series or a folder of scans.
        output: another folder: a label, a picture and a JSON file per scan, ``segment.csv`` and ``statistics.csv``.
        options: see :class:`oasis_monai.workflows.segment.SegmentOptions`.

    Returns:
        A fault per scan that could not be segmented; the others are done all the same.

    Raises:
        OasisError: no model, or no scans.
        ConfigError: an unknown option, or one that cannot work with this model.
        OSError: the disk is full or cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> import oasis_monai
        >>> faults = oasis_monai.segment("models/prostate", "scans", "results", n=4)
        >>> [str(fault) for fault in faults]
        []
        >>> sorted(path.name for path in Path("results").glob("first*"))
        ['first.json', 'first.png', 'first_segmentation.nii.gz']
    """
    from oasis_monai.workflows.segment import segment_scans

    with exclusive_folder(Path(output), "output"), torch_setup():
        return segment_scans(model, input, output, _LOGGER.info, **options)


@dataclass(frozen=True)
class Evaluation:
    """A trained model's scores on labelled cases.

    Args:
        folder: with its tables, pictures and page.
    """

    folder: Path

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per case, region and structure: Dice, volume difference, distances in mm."""
        from oasis_monai.evaluation.scores import read_scores

        return read_scores(self.folder / "scores.csv")

    @cached_property
    def quality(self) -> pd.DataFrame:
        """Per structure how well the predicted Dice fits the true one: ``mae``, ``held`` of ``intervals``, ``aurc`` beside
        ``aurc_agreement`` and ``aurc_best``, ``r``."""
        from oasis_monai.workflows.evaluate import quality_summary

        return quality_summary(self.folder)

    @property
    def report(self) -> Path:
        """The page, ``report.html``."""
        return self.folder / "report.html"


def evaluate(
    model: str | Path,
    output: str | Path,
    options: Mapping[str, Any] | None = None,
    training_cases: bool = False,
    overwrite: bool = False,
    **more: Any,
) -> Evaluation:
    """Score a trained model on labelled cases: ``oasis-monai evaluate``.

    Args:
        model: the folder of a trained model.
        output: the folder for tables, pictures and page.
        options: ``data``, ``n``, ``methods`` (one) and other settings; what made the model travels with it.
        training_cases: score the model's own atlases as well; by default they are left out.
        overwrite: also in the place of the results of other data or settings.
        more: further settings, which come after ``options``.

    Raises:
        DataError: every fault of the data set; or no case is left.
        ConfigError: a setting that cannot work.
        OasisError: no model.

    Examples:
        >>> import oasis_monai
        >>> data = {"root": "data/prostate", "layout": "promise12", "labels": {"prostate": 1}}
        >>> found = oasis_monai.evaluate("models/prostate", "outputs/own", data=data, n=2, training_cases=True)
        >>> found.quality.columns.tolist()
        ['label', 'cases', 'mae', 'held', 'intervals', 'aurc', 'aurc_agreement', 'aurc_best', 'r']
    """
    from oasis_monai.evaluation.report import write_report
    from oasis_monai.workflows.evaluate import evaluate_model

    config = composed({"progress": False, **(options or {})}, more)
    settings = build(config)
    method = settings.methods[0] if config.get("methods") is not None else None
    n = None if config.get("n") is None else settings.n[0]
    with exclusive_folder(Path(output), "output"), torch_setup(settings.threads):
        loaded = load_model(model, settings.device, settings.align_batch, config.get("views"), config.get("views_below"))
        args = (loaded, settings.data, Path(output), _LOGGER.info, n, method, settings, training_cases, overwrite)
        evaluate_model(*args)
        write_report(output)
    return Evaluation(Path(output))


@dataclass(frozen=True)
class CrossValidationResult:
    """A finished cross-validation.

    Args:
        run_dir: the folder with its tables, pictures and page.
    """

    run_dir: Path

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per case, region, structure, method and n: Dice, volume difference, distances in mm."""
        from oasis_monai.evaluation.scores import read_scores

        return read_scores(self.run_dir / "scores.csv")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Means with standard deviation and 95 % interval by method, n, structure and region."""
        from oasis_monai.evaluation.scores import summarise

        return summarise(self.scores)

    @property
    def report(self) -> Path:
        """The page, ``report.html``."""
        return self.run_dir / "report.html"


def cross_validate(
    run_dir: str | Path, options: Mapping[str, Any] | None = None, overwrite: bool = False, **more: Any
) -> CrossValidationResult:
    """Cross-validate on a labelled data set: ``oasis-monai crossval``.

    A run that is started again goes on where it was.

    Args:
        run_dir: the folder for tables, pictures and page.
        options: settings as on the command line, see :func:`oasis_monai.build_settings`.
        overwrite: also in the place of the results of other data or settings.
        more: further settings, which come after ``options``.

    Returns:
        The tables of scores as pandas data frames, and where the page is.

    Raises:
        DataError: every fault of the data set.
        ConfigError: a setting that cannot work, or a folder with the results of other data or settings.
        OasisError: a network did not learn, or memory ran out; the last checkpoint stays.

    Examples:
        >>> import oasis_monai
        >>> data = {"root": "data/prostate", "layout": "promise12", "labels": {"prostate": 1}}
        >>> grid = {"size": [32, 32, 16], "spacing_mm": [3.0, 3.0, 6.0]}
        >>> run = oasis_monai.cross_validate("outputs/run", data=data, preprocessing=grid, k=2, n=2, methods=["FwoW"])
        >>> run.scores.groupby("region")["dsc"].mean()
        region
        apex     0...
        base     0...
        mid      0...
        whole    0...
        Name: dsc, dtype: float64
        >>> run.report
        PosixPath('outputs/run/report.html')
    """
    from oasis_monai.evaluation.report import write_report
    from oasis_monai.workflows.crossval import crossval

    planned, folder = plan(options, **more).told(_LOGGER.info), Path(run_dir)
    settings = planned.settings
    with exclusive_folder(folder, "run_dir"), torch_setup(settings.threads):
        result = CrossValidationResult(crossval(settings, folder, _LOGGER.info, overwrite, plan=planned.plan).parent)
        if len(result.scores):
            write_report(folder)
    return result
