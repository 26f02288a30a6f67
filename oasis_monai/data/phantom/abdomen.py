"""Draw a patient of the CT phantom at random: organ sizes and places, fat, attenuation of tissues, the lesion.

Proportions follow textbook anatomy; nothing is taken from real scans. Millimetres run to the patient's right, front and head from
the middle of the trunk at the height of the kidneys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oasis_monai.data.phantom.shapes import Lattice, Triple

HALF_MM = (215.0, 215.0, 215.0)
"""Half of the largest field of view."""
WALL_MM = 3.0
"""Thickness of the aortic wall."""
# HU in the portal venous phase, weakly enhanced: neighbours differ by 20 to 40 HU
TISSUE = {
    "fat": -98.0, "muscle": 52.0, "bone": 190.0, "cortex": 520.0, "lung": -840.0, "liver": 68.0, "spleen": 74.0, "bowel": 34.0,
    "stomach": 22.0, "pancreas": 58.0, "kidney": 92.0, "vein": 84.0, "lumen": 98.0, "wall": 66.0, "cyst": 9.0,
}  # fmt: skip
SPREAD = 5.0  # standard deviation of a tissue between patients, in HU
FIELDS = {"fine": 2.4, "mid": 5.0, "loops": 17.0, "coarse": 34.0}
"""Random textures with their correlation lengths in mm."""


@dataclass(frozen=True)
class Kidney:
    """One kidney.

    Args:
        centre_mm: its centre.
        radii_mm: half axes: lateral, front-back, along.
        lean_deg: by how much its upper pole leans to the middle.
        turn_deg: about the long axis.
    """

    centre_mm: Triple
    radii_mm: Triple
    lean_deg: float
    turn_deg: float


@dataclass(frozen=True)
class Abdomen:
    """What is drawn at random once per case, whatever the grid.

    Args:
        trunk_mm: half axes of the body: lateral, front-back.
        fat_mm: thickness of the fat under the skin, and round a kidney.
        spine_mm: amplitudes of the spine's curve to the side and to the front.
        curve: phases of the curves of spine and aorta.
        aorta_mm: radius of the lumen, how much an aneurysm adds, its height, and where the aorta ends below.
        kidneys: right and left.
        liver_mm: centre of the liver, and its half axes.
        dome_mm: height of the diaphragm.
        lesion_mm: centre of the lesion and its radius.
        lesion_in: ``right kidney``, ``left kidney`` or ``liver``.
        lesion_hu: its attenuation less that of the organ.
        cysts_mm: centres and radii of cysts in kidneys, which belong to them.
        shift_mm, angles_deg: how the patient lies in the scanner, as of :class:`.Patient`.
        hu: attenuation of this patient's tissues.
        bend: three smooth displacements that every organ follows.
        textures: by name of :data:`FIELDS`.
    """

    trunk_mm: tuple[float, float]
    fat_mm: tuple[float, float]
    spine_mm: tuple[float, float]
    curve: Triple
    aorta_mm: tuple[float, float, float, float]
    kidneys: tuple[Kidney, Kidney]
    liver_mm: tuple[Triple, Triple]
    dome_mm: float
    lesion_mm: tuple[Triple, float]
    lesion_in: str
    lesion_hu: float
    cysts_mm: tuple[tuple[Triple, float], ...]
    shift_mm: Triple
    angles_deg: Triple
    hu: Mapping[str, float]
    bend: tuple[Lattice, Lattice, Lattice]
    textures: Mapping[str, Lattice]


def draw_abdomen(rng: np.random.Generator, shape_rng: np.random.Generator) -> Abdomen:
    """Draw one patient; ``shape_rng`` fixes the displacements and the textures."""
    trunk = (float(np.clip(rng.normal(163, 13), 135, 190)), float(np.clip(rng.normal(117, 10), 95, 140)))
    fat = (float(rng.uniform(7, 30)), float(np.clip(rng.normal(7, 4), 1, 16)))
    kidneys = (_draw_kidney(rng, 1), _draw_kidney(rng, -1))
    swollen = float(rng.uniform(3, 12)) if rng.random() < 0.3 else 0.0
    aorta = (float(rng.uniform(8, 12.5)), swollen, float(rng.uniform(-70, 10)), float(rng.uniform(-112, -84)))
    grown = float(np.exp(rng.normal(0, 0.09)))
    liver = ((62 + rng.normal(0, 6), 14 + rng.normal(0, 6), 74 + rng.normal(0, 8)), (92 * grown, 78 * grown, 72 * grown))
    host = ("right kidney", "left kidney", "liver")[rng.choice(3, p=[0.35, 0.35, 0.3])]
    radius = 7.5 * float(rng.uniform(0.85, 1.15))
    place = _in_liver(rng, liver) if host == "liver" else _in_kidney(rng, kidneys[host == "left kidney"], host != "left kidney")
    hu = {name: value + float(np.clip(rng.normal(0, SPREAD), -9, 9)) for name, value in TISSUE.items()}
    cysts = tuple(
        (_in_kidney(rng, kidneys[side], side == 0), float(rng.uniform(4, 14))) for side in (0, 1) if rng.random() < 0.35
    )
    return Abdomen(
        trunk, fat, (float(rng.normal(0, 5)), float(rng.uniform(4, 14))), _triple(rng.uniform(0, 2 * np.pi, 3)), aorta, kidneys,
        (_triple(np.array(liver[0])), liver[1]), float(np.clip(rng.normal(112, 12), 90, 140)), (place, radius), host,
        -float(rng.uniform(22, 38)), cysts,
        _triple(np.clip(rng.normal(0, [7, 9, 16]), -30, 30)), _triple(np.clip(rng.normal(0, [2.5, 3.5, 4.5]), -9, 9)), hu,
        (Lattice.drawn(shape_rng, 48, HALF_MM), Lattice.drawn(shape_rng, 48, HALF_MM), Lattice.drawn(shape_rng, 48, HALF_MM)),
        {name: Lattice.drawn(shape_rng, pitch, HALF_MM) for name, pitch in FIELDS.items()},
    )  # fmt: skip


def _draw_kidney(rng: np.random.Generator, side: int) -> Kidney:
    """``side``: 1 right, -1 left; the right one lies lower."""
    scale = float(np.exp(np.clip(rng.normal(0, 0.11), -0.25, 0.22)))
    centre = (side * (62 + rng.normal(0, 5)), -42 + rng.normal(0, 6), (-14 if side > 0 else 2) + rng.normal(0, 14))
    radii = _triple(scale * np.array([27, 24, 53]) * np.exp(rng.normal(0, 0.05, 3)))
    return Kidney(_triple(np.array(centre)), radii, float(rng.normal(14, 6)), float(side * rng.normal(35, 10)))


def _in_kidney(rng: np.random.Generator, kidney: Kidney, right: bool) -> Triple:
    """A place in the outer half of a kidney, up to its surface; not at the hilum, which faces the middle."""
    angle, height = rng.uniform(-0.45 * np.pi, 0.45 * np.pi), rng.uniform(-0.6, 0.6)
    away = rng.uniform(0.55, 0.95) * np.sqrt(1 - height**2)
    side = 1 if right else -1
    a, b, c = kidney.radii_mm
    offset = np.array([side * a * away * np.cos(angle), b * away * np.sin(angle), 0.9 * c * height])
    return _triple(np.array(kidney.centre_mm) + offset)


def _in_liver(rng: np.random.Generator, liver: tuple[tuple[float, ...], tuple[float, ...]]) -> Triple:
    """A place well within the liver, below the diaphragm."""
    offset = rng.uniform([-0.25, -0.4, -0.55], [0.5, 0.5, 0.1])
    return _triple(np.array(liver[0]) + offset * np.array(liver[1]))


def _triple(values: np.ndarray) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
