"""Draw a phantom patient at random: organ sizes, position, rectal content, tissue signals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from oasis_monai.data.phantom.shapes import Triple

Coil = Literal["balloon", "gel", ""]
# relative T2-weighted signal; a centre changes the contrast with a gamma and jitter per case
SIGNAL = {
    "fat": 0.74, "muscle": 0.15, "marrow": 0.48, "cortex": 0.05, "urine": 1.0, "bladder wall": 0.22, "gas": 0.02,
    "stool": 0.24, "rectal wall": 0.36, "gel": 1.1, "central": 0.42, "peripheral": 0.72, "capsule": 0.22,
    "stroma": 0.2, "vesicle": 0.62, "plexus": 0.66, "nerve": 0.55,
}  # fmt: skip


@dataclass(frozen=True)
class Patient:
    """What is drawn at random once per case, whatever the grid.

    Args:
        gland_mm: half axes of the gland: lateral, front-back, apex-base.
        volume_ml: volume of the gland.
        shift_mm: position of the gland's centre relative to the image centre, right-front-head.
        angles_deg: rotation of the pelvis about the x, y and z axes.
        bladder_mm: half axes of the bladder.
        rectum_mm: radius of the rectum (or of the balloon of the coil in it).
        content: what fills the rectum.
        enlarged: 0..1, how far the central gland has grown (hyperplasia).
        coil: kind of endorectal coil, empty for none.
        signal: relative tissue signals of this patient.
    """

    gland_mm: Triple
    volume_ml: float
    shift_mm: Triple
    angles_deg: Triple
    bladder_mm: Triple
    rectum_mm: float
    content: str
    enlarged: float
    coil: Coil
    signal: dict[str, float]


def draw_patient(rng: np.random.Generator, coil: Coil) -> Patient:
    """Draw one patient. Gland volume is log-normal (median 42 ml) within 23..82 ml."""
    volume = float(np.clip(42 * np.exp(0.42 * rng.standard_normal()), 23, 82))
    ratio = np.array([1.26, 0.92, 1.08]) * np.exp(np.clip(rng.standard_normal(3), -1.5, 1.5) * [0.06, 0.09, 0.10])
    if coil:  # the balloon presses the gland flat against the pubis
        ratio *= [1.05, 0.90, 1.0]
    radius = (volume * 1000 / (4.19 * 1.17 * np.prod(ratio))) ** (1 / 3)  # 1.17: the shape against its ellipsoid
    a, b, c = _triple(ratio * radius)
    room = min(10.0, 37 - c)  # a large gland still ends inside the slices
    shift = np.clip(rng.normal([0, -2, 0], [4.0, 7.0, 6.5]), [-9, -15, -room], [9, 10, room])
    angles = np.clip(rng.normal(0, [7.0, 3.0, 3.5]), -14, 14)
    fill = rng.uniform(0.55, 1.25)
    bladder = fill * np.array([34, 24, 26]) * np.exp(rng.normal(0, 0.10, 3))
    content = ("gas", "stool", "gel")[rng.choice(3, p=[0.45, 0.45, 0.10])]
    rectum = float(rng.uniform(8, 17))
    if coil:
        content, rectum = (
            ("gas", "gel")[coil == "gel"],
            float(rng.uniform(15, 18.5) if coil == "balloon" else rng.uniform(12, 15)),
        )
    signal = {name: float(value * np.exp(rng.normal(0, 0.09))) for name, value in SIGNAL.items()}
    return Patient(
        (a, b, c), volume, _triple(shift), _triple(angles), _triple(bladder),
        rectum, content, float(np.clip((volume - 25) / 50 + rng.normal(0, 0.2), 0, 1)), coil, signal,
    )  # fmt: skip


def _triple(values: np.ndarray) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
