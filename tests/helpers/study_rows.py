"""Score rows of an invented study, made by formula: every number a test expects can be worked out by hand."""

import tempfile
from pathlib import Path

import pandas as pd

from oasis_monai.evaluation.scores import read_scores, write_scores
from oasis_monai.networks.segmentation import NETWORKS

CASES = [f"Case{i:02d}" for i in range(10)]
GROUPS = {case: i % 5 for i, case in enumerate(CASES)}


def row(case, method, n, dsc, protocol="patient", region="whole", label="prostate", status="ok", **more):
    numbers = {"rvd_percent": 2.0, "arvd_percent": 2.0, "hd_mm": 9.0, "hd95_mm": 5.0, "abd_mm": 1.0}
    place = {"protocol": protocol, "fold": GROUPS.get(case, 0) if protocol == "patient" else -1, "case": case, "label": label}
    place |= {"patient": case, "centre": ""}
    rest = {"reference_ml": 40.0, "volume_ml": 41.0, "status": status}
    return place | {"region": region, "method": method, "n": n, "dsc": dsc} | numbers | rest | more


def frame(rows):
    """As read back from a file: typed, checked and sorted."""
    with tempfile.TemporaryDirectory() as folder:
        write_scores(Path(folder) / "scores.csv", rows)
        return read_scores(Path(folder) / "scores.csv")


def study(methods, ns=(1, 2, 4), protocols=("patient",), dsc=None, labels=("prostate",)):
    """Every method at every n (networks at 0) on every case and region; ``dsc(method, n, case number, protocol)``."""
    dsc = dsc or (lambda method, n, i, protocol: 0.5 + 0.01 * i)
    rows = []
    for protocol in protocols:
        for method in methods:
            for n in (0,) if method in NETWORKS else ns:
                for i, case in enumerate(CASES):
                    for label in labels:
                        rows += [
                            row(case, method, n, dsc(method, n, i, protocol), protocol, region, label)
                            for region in ("whole", "apex", "base")
                        ]
    return frame(rows)


def learning(sizes=(4, 8), methods=("OASIS 3D", "U-Net3D"), dsc=None):
    dsc = dsc or (lambda method, size, i: 0.6 + 0.01 * size + 0.02 * (method == "OASIS 3D") + 0.001 * i)
    rows = []
    for size in sizes:
        for method in methods:
            n = 0 if method in NETWORKS else 6
            rows += [{"train_cases": size, **row(case, method, n, dsc(method, size, i))} for i, case in enumerate(CASES)]
    return pd.DataFrame(rows)
