"""The phantom with a second channel: an ADC map beside T2, in nnU-Net's folders, some labels incomplete."""

import json
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Geometry

NAMES = ("T2", "ADC")
UNKNOWN = 9
"""Value in the label files of voxels that nobody labelled."""


def adc(case, label, noise=0.05, seed=0):
    """A map that is low in the structure and varies smoothly elsewhere; ``noise`` in units of that contrast."""
    random = np.random.default_rng([seed, *case.encode()])
    x, y, z = np.ogrid[tuple(slice(0, n) for n in label.shape)]
    around = 0.1 * np.sin(x / 5) + 0.1 * np.cos(y / 7) + 0 * z
    return (2 - 1.0 * (label > 0) + around + noise * random.standard_normal(label.shape)).astype(np.float32)


def write_two_channels(folder, phantom, cases=7, unknown=()):
    """Write ``imagesTr``, ``labelsTr`` and ``dataset.json``; -> the cases.

    Args:
        phantom: of :func:`oasis_monai.data.phantom.write_phantom`.
        unknown: ids of cases of which nobody labelled the upper half of the slices.
    """
    folder, made = Path(folder), []
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        case = f"Case{number:02d}"
        volume = read_volume(Case(case, phantom / f"{case}.mhd", phantom / f"{case}_segmentation.mhd"), (0, 1))
        label = volume.label[0].numpy().astype(np.int16)
        images = [folder / "imagesTr" / f"{case}_{i:04d}.nii.gz" for i in (0, 1)]
        grid = Geometry(volume.geometry.shape, volume.geometry.affine)
        write_array(images[0], volume.image[0].numpy(), grid)
        write_array(images[1], adc(case, label), grid)
        if case in unknown:
            label[..., label.shape[2] // 2 :] = UNKNOWN
        write_array(folder / "labelsTr" / f"{case}.nii.gz", label, grid)
        made.append(Case(case, images[0], folder / "labelsTr" / f"{case}.nii.gz", channels=((images[1],),)))
    about = {
        "channel_names": dict(zip("01", NAMES, strict=True)),
        "labels": {"background": 0, "gland": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    return made
