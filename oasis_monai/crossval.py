"""Cross-validation: folds -> fold models -> rows of scores. Owns the rule that nothing of a target's label reaches ``segment``.

Everything that takes time is kept under ``cache`` by what it depends on: preprocessed cases, features, fold models (never
keyed by n), fields of every (target, atlas) pair, LOA pairs. A run that is started again therefore goes on where it was, and a
sweep over n pays for training and alignment once.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.align import Aligner, FieldCache, LoaTable
from oasis_monai.errors import ConfigError, DataError, Fault
from oasis_monai.files import digest, write_json
from oasis_monai.folds import Fold, Split, make_split
from oasis_monai.library import AtlasLibrary, build_library
from oasis_monai.metrics import score_case
from oasis_monai.preprocess import PreprocessCache, restore
from oasis_monai.record import run_record
from oasis_monai.segment import Segmenter, needs_alignment
from oasis_monai.settings import Settings
from oasis_monai.tables import read_scores, summarise, write_scores, write_summary
from oasis_monai.training import TRAINING_VERSION, train_stm
from oasis_monai.types import Case, Preprocessed, Segmentation

Log = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A data set ready for atlas work.

    Args:
        cases: all cases, by id.
        targets: the preprocessed cases **without labels**: what ``segment`` may see.
        library: every image of every case as an atlas, with labels and features.
        content: case id -> digest of its files.
        scans: case id -> digest of its image's files alone.
    """

    cases: dict[str, Case]
    targets: dict[str, Preprocessed]
    library: AtlasLibrary
    content: dict[str, str]
    scans: dict[str, str]

    def rows(self, case: str) -> torch.Tensor:
        """Rows of the library that are this case's, in slice order."""
        return torch.tensor([i for i, name in enumerate(self.library.cases) if name == case])


class Clock:
    """Seconds spent per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def find_and_check(settings: Settings, cache: Path | None, log: Log) -> list[Case]:
    """The cases of the data set, after all of its faults have been looked for; errors raise together, warnings are logged.

    A data set that was found without error is not read again for it while its files stay the same.
    """
    from oasis_monai.cases import find_cases
    from oasis_monai.checks import check_cases

    data = settings.data
    cases = find_cases(data.root, data.layout)
    if data.only:
        absent = sorted(set(data.only) - {case.id for case in cases})
        if absent:
            raise DataError(
                [Fault(case, "data.only", "an id of the data set", "no such case", "correct the list") for case in absent]
            )
        cases = [case for case in cases if case.id in data.only]
    stamp = digest(
        [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for case in cases for f in _files(case)] + [list(data.label_values)]
    )
    checked = cache / "checked" / f"{stamp}.json" if cache else None
    if checked is None or not checked.exists():
        faults = check_cases(cases, data.label_values)
        errors = [f for f in faults if f.severity == "error"]
        for fault in faults:
            if fault.severity != "error":
                log(f"warning: {fault}")
        if errors:
            raise DataError(errors)
        if checked:
            write_json(checked, {"faults": [str(f) for f in faults]})
    return cases


def _files(case: Case) -> list[Path]:
    from oasis_monai.headers import data_files

    files: list[Path] = []
    for path in (case.image, case.label):
        if path is not None:
            try:
                files += data_files(path)
            except DataError:  # the check that follows tells it, with all other faults
                files.append(path)
    return [file for file in files if file.exists()]


def prepare(settings: Settings, cases: list[Case], cache: Path | None, log: Log) -> Prepared:
    """Preprocess and embed all cases (from the cache where it holds them)."""
    from oasis_monai.features import embedder

    store = PreprocessCache(cache / "preprocessed" if cache else None, settings.preprocessing, settings.data.label_values)
    embed = embedder(settings.features.name, settings.features.weights, resolve_device(settings.device))
    if cache:
        embed = replace(embed, cache=cache / "features")
    items = [store.get(case) for case in cases]
    for fault in store.faults():
        log(f"warning: {fault}")
    library = build_library(items, settings.spatial_dims, embed, settings.data.classes)
    targets = {item.case: replace(item, label=None) for item in items}
    content = {c.id: digest([store.content(p) for p in (c.image, c.label) if p is not None]) for c in cases}
    scans = {c.id: store.content(c.image) for c in cases}
    return Prepared({c.id: c for c in cases}, targets, library, content, scans)


def resolve_device(name: str) -> str:
    """``auto`` is the GPU where there is one. A GPU asked for but absent is an error, not a slow run."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConfigError("device", "cpu, auto, or a GPU this machine has", name, f"set device=auto ({reason})") from error
    return name


class FoldModels:
    """Trains or loads the STM of a fold and wires the fold's library to it."""

    def __init__(self, settings: Settings, prepared: Prepared, split: Split, cache: Path, log: Log) -> None:
        self.settings, self.prepared, self.split, self.cache, self.log = settings, prepared, split, cache, log

    def library(self, fold: Fold) -> AtlasLibrary:
        """The training atlases of a fold: a copy that holds nothing of its test images."""
        whole = self.prepared.library
        numbers = (whole.slices.clamp_min(0)).tolist()  # a volume is image 0 of its case
        keep = [i for i, case in enumerate(whole.cases) if numbers[i] in set(fold.train.get(case, ()))]
        return whole.subset(torch.tensor(keep))

    def folder(self, fold: Fold) -> Path:
        """Where the fold's model lives: named by all that decides its weights."""
        content = {case: self.prepared.content[case] for case in fold.train}
        identity = {**self.settings.identity(), "split": fold.key(), "content": content, "version": TRAINING_VERSION}
        identity |= {"labels": list(self.settings.data.label_values), "protocol": self.split.protocol}
        return self.cache / "models" / digest(identity)

    def trained(self, fold: Fold) -> bool:
        """Whether the fold's model is finished."""
        from oasis_monai.files import load_if_whole

        stored = load_if_whole(self.folder(fold) / "stm.safetensors")
        return stored is not None and bool(stored[1].get("done"))

    def segmenter(self, fold: Fold) -> Segmenter:
        """The fold's library with its STM, trained if need be."""
        settings, library = self.settings, self.library(fold)
        if not needs_alignment(settings.methods):
            return Segmenter(library, distance=settings.features.distance)
        folder = self.folder(fold)
        with locked(folder):  # jobs of one sweep may want the same fold at the same time
            if not self.trained(fold):  # what was aligned by a model that was lost or damaged is no longer true
                (folder / "loa.safetensors").unlink(missing_ok=True)
                shutil.rmtree(folder / "fields", ignore_errors=True)
            model = train_stm(
                library,
                self._spacing_mm(),
                settings.registration,
                settings.loss,
                settings.training,
                settings.seed + fold.index,
                folder,
                resolve_device(settings.device),
                same_case=self.split.protocol == "slice",
                distance=settings.features.distance,
                augmentation=settings.augmentation,
                progress=settings.progress,
                name=f"STM fold {fold.index}",
            )
        aligner = Aligner(model, resolve_device(settings.device), settings.align_batch)
        loa = LoaTable(library, aligner, folder / "loa.safetensors")
        return Segmenter(library, aligner, loa, settings.features.distance, settings.temperature)

    def fields(self, fold: Fold, case: str) -> FieldCache:
        """Where the fields onto a test case of the fold are kept: the fold's model, the scan, and how atlases are chosen."""
        features = self.settings.features
        chosen = digest([features.name, features.weights, features.distance, fold.index, self.prepared.scans[case]])
        return FieldCache(self.folder(fold) / "fields", chosen)

    def _spacing_mm(self) -> tuple[float, ...]:
        geometry = next(iter(self.prepared.targets.values())).geometry
        return geometry.spacing_mm[: self.settings.spatial_dims]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in ``folder``; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not a POSIX system: parallel jobs there may train a fold twice, with the same result
        yield
        return
    with open(folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def crossval(settings: Settings, run_dir: Path, log: Log = print) -> Path:
    """Run the folds asked for and write ``scores.csv``, ``summary.csv``, ``split.json``, ``run.json``, pictures and
    segmentations into ``run_dir``.

    Under slice folds a case is scored in 3D once *all* folds that hold its slices have a model; a job that runs one fold of a
    sweep trains it, and the job that finds the others finished scores every case.

    Returns:
        The path of ``scores.csv``.
    """
    resolve_device(settings.device)  # an absent GPU is told at once
    cache, clock = Path(settings.cache), Clock()
    run_dir.mkdir(parents=True, exist_ok=True)
    with clock("check and read"):
        cases = find_and_check(settings, cache, log)
        prepared = prepare(settings, cases, cache, log)
    counts = {case: int((prepared.rows(case)).numel()) for case in prepared.targets}
    split = make_split(counts, settings.k, settings.seed, settings.folds, settings.spatial_dims)
    available = min(sum(map(len, fold.train.values())) for fold in split.folds)
    if max(settings.n) > available:  # said before hours of training, not after
        raise ConfigError("n", f"1 to {available}, the atlases of the smallest fold", list(settings.n), "lower n or add cases")
    write_json(run_dir / "split.json", split.to_json())
    models = FoldModels(settings, prepared, split, cache, log)
    wanted = [fold for fold in split.folds if settings.fold in (None, fold.index)]
    segmenters: dict[int, Segmenter] = {}
    for fold in wanted:
        with clock("train"):
            segmenters[fold.index] = models.segmenter(fold)
    if split.protocol == "slice" and needs_alignment(settings.methods):
        missing = [fold.index for fold in split.folds if fold not in wanted and not models.trained(fold)]
        if missing:
            log(f"folds {missing} have no model yet: slice folds are scored in 3D by the job that finds all of them trained")
            wanted = []
    if split.protocol == "slice" and wanted:
        for fold in split.folds:
            if fold.index not in segmenters:
                segmenters[fold.index] = models.segmenter(fold)
        wanted = list(split.folds)
    rows, shown = _score_folds(settings, prepared, split, wanted, segmenters, models, run_dir, clock, log)
    write_scores(run_dir / "scores.csv", rows)
    if rows:
        write_summary(run_dir / "summary.csv", summarise(read_scores(run_dir / "scores.csv")))
        with clock("pictures"):
            _overlays(settings, prepared, rows, shown, run_dir)
    write_json(run_dir / "run.json", run_record("crossval", settings, split, len(cases), clock.seconds))
    return run_dir / "scores.csv"


def _score_folds(
    settings: Settings,
    prepared: Prepared,
    split: Split,
    folds: list[Fold],
    segmenters: Mapping[int, Segmenter],
    models: FoldModels,
    run_dir: Path,
    clock: Clock,
    log: Log,
) -> tuple[list[dict[str, Any]], dict[tuple[str, str, int], bytes]]:
    """Segment and score every case of ``folds``; -> rows, and where the label of each (case, method, n) is kept."""
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []
    kept: dict[tuple[str, str, int], bytes] = {}
    tested = {case for fold in folds for case in fold.test}
    for case in tqdm(sorted(tested), desc="segment", disable=not settings.progress):
        target = prepared.targets[case]
        features = prepared.library.features[prepared.rows(case)]
        fused: dict[tuple[str, int], torch.Tensor] = {}
        for fold in folds:
            if case not in fold.test:
                continue
            only = torch.tensor(fold.test[case]) if settings.spatial_dims == 2 else None
            # under patient folds the fold's library has nothing of this case; that it is excluded as well costs nothing
            exclude = case if split.protocol == "patient" else None
            with clock("align and fuse"):
                fields = models.fields(fold, case) if needs_alignment(settings.methods) else None
                results, _ = segmenters[fold.index](
                    target,
                    features,
                    settings.methods,
                    settings.n,
                    fields,
                    exclude,
                    only,
                )
                for name, result in results.items():
                    fused[name] = _merge(fused.get(name), result.probability, only)
        with clock("score"):
            volume = _reference(settings, prepared.cases[case])
            for (method, n), probability in fused.items():
                back = restore(probability, target.geometry, target.native, settings.save_probability, case)
                kept[case, method, n] = _keep(settings, run_dir, back, method, n)
                fold_index = next(f.index for f in folds if case in f.test) if split.protocol == "patient" else -1
                rows += _rows(settings, split.protocol, fold_index, back, volume, method, n)
    for segmenter in segmenters.values():
        if segmenter.loa is not None:
            segmenter.loa.save()
    return rows, kept


@torch.inference_mode()  # what a segmenter gives may not be written to otherwise
def _merge(before: torch.Tensor | None, new: torch.Tensor, only: torch.Tensor | None) -> torch.Tensor:
    """Put the slices a fold segmented into the case's probability map."""
    if before is None or only is None:
        return new
    before[..., only] = new[..., only]
    return before


def _reference(settings: Settings, case: Case) -> np.ndarray:
    """The target's reference label on its native grid, read again and only here, after segmentation."""
    from oasis_monai.volumes import read_volume

    label = read_volume(case, settings.data.label_values).label
    assert label is not None
    return label[0].numpy()


def _rows(
    settings: Settings, protocol: str, fold: int, result: Segmentation, reference: np.ndarray, method: str, n: int
) -> list[dict[str, Any]]:
    from oasis_monai.volumes import to_canonical

    label, spacing_mm = to_canonical(result.label.numpy(), result.geometry.affine)
    truth, _ = to_canonical(reference, result.geometry.affine)
    regions: Any = settings.data.regions
    scores = score_case(label, truth, spacing_mm, list(settings.data.labels), regions, case=result.case)
    return [
        {"protocol": protocol, "fold": fold, "case": result.case, "method": method, "n": n, **asdict(score)} for score in scores
    ]


def _keep(settings: Settings, run_dir: Path, result: Segmentation, method: str, n: int) -> bytes:
    """Write label and probability where asked for; -> the label packed small, for the pictures drawn at the end."""
    from oasis_monai.volumes import write_label, write_probability

    path = run_dir / "segmentations" / f"{result.case}__{method}-{n}.nii.gz"
    if settings.save_segmentations:
        write_label(path, result.label, result.geometry, settings.data.label_values)
    if settings.save_probability and result.probability is not None:
        write_probability(path.with_name(f"{result.case}__{method}-{n}_probability.nii.gz"), result.probability, result.geometry)
    return zlib.compress(result.label.numpy().tobytes(), 1)


def _overlays(
    settings: Settings, prepared: Prepared, rows: list[dict[str, Any]], kept: Mapping[tuple[str, str, int], bytes], run_dir: Path
) -> None:
    """Draw the cases at even ranks from the last method's worst to its best, for every method and n."""
    from oasis_monai.overlays import overlay
    from oasis_monai.volumes import read_volume, to_canonical

    whole = [r for r in rows if r["region"] == settings.data.regions[0] and r["method"] == settings.methods[-1]]
    dsc: dict[str, list[float]] = defaultdict(list)
    for row in whole:
        dsc[row["case"]].append(0.0 if np.isnan(row["dsc"]) else row["dsc"])
    ranked = sorted(dsc, key=lambda case: (float(np.mean(dsc[case])), case))
    ranks = np.linspace(0, len(ranked) - 1, min(settings.overlays, len(ranked))).round().astype(int)
    names = dict(enumerate(settings.data.labels, 1))
    scores = {(r["case"], r["method"], r["n"], r["label"]): r["dsc"] for r in rows if r["region"] == settings.data.regions[0]}
    for case in dict.fromkeys(ranked[rank] for rank in ranks):
        volume = read_volume(prepared.cases[case], settings.data.label_values)
        assert volume.label is not None
        image, spacing_mm = to_canonical(volume.image[0].numpy(), volume.geometry.affine)
        truth, _ = to_canonical(volume.label[0].numpy(), volume.geometry.affine)
        for method in settings.methods:
            for n in settings.n:
                packed = np.frombuffer(zlib.decompress(kept[case, method, n]), np.uint8).reshape(volume.geometry.shape)
                label, _ = to_canonical(packed, volume.geometry.affine)
                values = [scores[case, method, n, name] for name in settings.data.labels]
                title = f"{case}  {method}-{n}  DSC " + ", ".join(f"{100 * v:.1f} %" for v in values)
                path = run_dir / "overlays" / f"{case}__{method}-{n}.png"
                overlay(path, image, truth, label, spacing_mm, title, labels=names)


def join_jobs(sweep_dir: Path) -> Path | None:
    """Join the scores of a sweep's jobs (folders with a ``scores.csv`` below ``sweep_dir``) into one table and summary there.

    Returns:
        The joined ``scores.csv``, or None while no job has any scores.
    """
    from oasis_monai.tables import join_scores

    paths = [p for p in sorted(sweep_dir.glob("*/scores.csv")) if len(read_scores(p))]
    if not paths:
        return None
    joined = join_scores(paths)
    write_scores(sweep_dir / "scores.csv", joined.to_dict("records"))
    write_summary(sweep_dir / "summary.csv", summarise(joined))
    return sweep_dir / "scores.csv"
