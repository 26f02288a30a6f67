"""Does a joint model know when it fails? Predicted against true DSC of test scans that were corrupted on purpose.

    python benchmarks/failures.py [--output docs/results/quality] [--n 6] experiment=accuracy data.root=PATH cache=DIR

Takes the fold models of a cross-validation (trains what ``cache`` lacks) and segments every test case of the honest patient
folds as it is and after each of :data:`oasis_monai.corruptions.CORRUPTIONS`. The prediction is calibrated as it is shipped: on
the untouched cases of the other folds and on the corrupted copies that a cross-validation makes of them, but those of the very
corruption that is tested. ``--untouched`` calibrates on untouched cases alone. Writes ``failures.csv`` (a row per scan and
structure), ``failures.md`` and ``failures.png``.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_monai import flags
from oasis_monai.corruptions import CORRUPTIONS, UNTOUCHED, drawn
from oasis_monai.features import embedder, target_features
from oasis_monai.files import atomic_path, write_text
from oasis_monai.fold_models import FoldModels
from oasis_monai.fusion import decide
from oasis_monai.grids import inside
from oasis_monai.metrics import score_case
from oasis_monai.prepare import find_and_check, prepare, split_of
from oasis_monai.preprocess import restore
from oasis_monai.quality import FAILURE, SOURCES, correlation, fit, known_sources, overlaps
from oasis_monai.segment import result_keys
from oasis_monai.settings import Settings, build
from oasis_monai.volumes import read_volume, to_canonical

CONF = Path(__file__).resolve().parents[1] / "conf"


def settings_of(overrides: list[str], n: int) -> Settings:
    """The top level of the composed configuration (of a study: what its arms start from), for OASIS-joint with n atlases."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides), resolve=True)
    assert isinstance(config, dict)
    names = set(Settings.__dataclass_fields__)
    return build({**{str(k): v for k, v in config.items() if k in names}, "methods": ["OASIS-joint"], "n": n, "threads": 1})


def segment_fold(settings: Settings, index: int) -> list[dict[str, Any]]:
    """Every test case of a fold, untouched and changed; -> rows without predictions."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cache, log = Path(settings.cache), print
    prepared = prepare(settings, find_and_check(settings, cache, log), cache, log)
    split = split_of(settings, prepared)
    fold = split.folds[index]
    segmenter = FoldModels(settings, prepared, split, cache, log).segmenter(fold)
    embed = embedder(settings.features.name, settings.features.weights)
    limit = flags.reach(segmenter.library, settings.features.distance)
    names, key = list(settings.data.labels), result_keys(("OASIS-joint",), settings.n)[0]
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(sorted(fold.test)):
        read = read_volume(prepared.cases[case], settings.data.label_values)
        for change, corrupt in {UNTOUCHED: lambda volume, seed: volume, **CORRUPTIONS}.items():
            volume = corrupt(read, 100 * index + number)
            assert volume.label is not None
            target = settings.preprocessing.apply(replace(volume, label=None))
            features = target_features(target, settings.spatial_dims, embed)
            results, chosen = segmenter(target, features, key[:1], key[1:])
            result = results[key]
            found = restore(result.probability, target.geometry, target.native, False, case)
            label, spacing_mm = to_canonical(found.label.numpy(), volume.geometry.affine)
            truth, _ = to_canonical(volume.label[0].numpy(), volume.geometry.affine)
            assert result.agreement is not None
            told = overlaps(result.agreement)
            seen = inside(target.native, target.geometry)
            doubts = [
                flags.unlike_atlases(chosen.distances[:, 0], limit),
                flags.empty(found.label, names),
                flags.cut(decide(result.probability), seen, names),
            ]
            others = " ".join(flag.name for flag in doubts if flag is not None)
            for score in score_case(label, truth, spacing_mm, names, ("whole",), case=case):
                values = dict(zip(SOURCES, map(float, told[names.index(score.label)]), strict=True))
                row = {"fold": index, "case": case, "corruption": change, "label": score.label, "dsc": score.dsc}
                rows.append(row | values | {"flags": others})
        print(f"fold {index}: {number + 1} of {len(fold.test)} cases", flush=True)
    return rows


def predicted(rows: pd.DataFrame, copies: int, seed: int) -> pd.DataFrame:
    """Add ``predicted_dsc`` and ``unsure``, calibrated on the other folds: their untouched cases and ``copies`` of each, none of
    the corruption that is predicted."""
    rows = rows.copy()
    rows["predicted_dsc"], rows["unsure"] = float("nan"), True
    names = {case: {name for name, _ in drawn(case, copies, seed)} for case in rows["case"].unique()}
    kept = np.array([c == UNTOUCHED or c in names[case] for case, c in zip(rows["case"], rows["corruption"], strict=True)])
    for (label, fold, corruption), own in rows.groupby(["label", "fold", "corruption"]):
        others = kept & (rows["label"] == label) & (rows["fold"] != fold)
        others &= (rows["corruption"] != corruption) | (rows["corruption"] == UNTOUCHED)
        known = rows[others].dropna(subset=["dsc"])
        model = fit(known_sources(known[list(SOURCES)].to_numpy().tolist()), known["dsc"].to_numpy())
        for i, row in own.iterrows():
            expected = model.predict([row[s] for s in SOURCES])
            rows.loc[i, ["predicted_dsc", "unsure"]] = [expected, model.flag(expected)]
    return rows


def table(rows: pd.DataFrame) -> str:
    """Markdown: a line per change, and what all of it says together."""
    head = ["scans", "cases", "true DSC", "predicted", "mean error", "r", "DSC under 70 %"]
    head += ["of these unsure", "others unsure", "of these with any flag", "others with any flag"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    order = [UNTOUCHED, *(name for name in CORRUPTIONS if (rows["corruption"] == name).any())]
    for name, part in [*((name, rows[rows["corruption"] == name]) for name in order), ("**all**", rows)]:
        bad, unsure = part["dsc"] < FAILURE, part["unsure"].astype(bool)
        error = (part["predicted_dsc"] - part["dsc"]).abs()
        cells = [name, len(part), *(f"{100 * v.mean():.1f}" for v in (part["dsc"], part["predicted_dsc"], error))]
        cells += [f"{correlation(part['predicted_dsc'], part['dsc']):.2f}", bad.sum()]
        for told in (unsure, unsure | (part["flags"] != "")):
            cells += [(bad & told).sum(), f"{(~bad & told).sum()} of {(~bad).sum()}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def plot(rows: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.6, 4.2), layout="constrained")
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
    axes.axhline(100 * FAILURE, color="0.6", linewidth=0.8, linestyle=":")
    colours = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for i, change in enumerate([UNTOUCHED, *CORRUPTIONS]):
        part = rows[rows["corruption"] == change]
        style = (
            {"color": "black", "marker": "o"} if change == UNTOUCHED else {"color": colours[2 * i % 20], "marker": "os^Dv"[i % 5]}
        )
        axes.scatter(100 * part["predicted_dsc"], 100 * part["dsc"], s=13, label=change, alpha=0.8, linewidths=0, **style)
    axes.set_xlabel("predicted DSC %")
    axes.set_ylabel("true DSC %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    figure.legend(fontsize="small", loc="outside right upper", frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results" / "quality")
    parser.add_argument("--n", type=int, default=6, help="atlases to fuse")
    parser.add_argument("--untouched", action="store_true", help="calibrate on untouched cases alone")
    parser.add_argument("overrides", nargs="+", help="what the cross-validation was run with: experiment=accuracy data.root=PATH")
    given = parser.parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    folds = range(settings.k) if settings.fold is None else [settings.fold]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        parts = list(pool.map(segment_fold, [settings] * len(folds), folds))
    rows = pd.DataFrame([row for part in parts for row in part])
    rows = predicted(rows, 0 if given.untouched else settings.corruptions, settings.seed)
    write_text(given.output / "failures.csv", rows.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    write_text(given.output / "failures.md", table(rows))
    plot(rows, given.output / "failures.png")
    print(table(rows))


if __name__ == "__main__":
    main()
