"""Paint a slab of the CT phantom: attenuation in HU without noise, and the labels.

Structures are painted from back to front. Labels follow the shapes, not the noise: a voxel is a structure's if its centre lies in
it. Only what a slab shows of a shape is computed, so that a scan of any size takes the memory of a slab.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oasis_monai.data.phantom.abdomen import WALL_MM, Abdomen, Kidney
from oasis_monai.data.phantom.shapes import Box, Culler, Frame, Points, Triple, ellipsoid, inside, paint, rod, shell

LABELS = {"right_kidney": 1, "left_kidney": 2, "aortic_lumen": 3, "aortic_wall": 4, "lesion": 5}
"""Structure -> value in the label."""
AIR = -1000.0
MARGIN_MM = 24.0
"""So far beyond its shape an organ may bulge or fade: what a slab leaves out is nowhere painted, so slabs do not show."""
VERTEBRA_MM = 22.0  # radius of a vertebral body
VERTEBRA_Y = -62.0  # its centre
_GLANDS: tuple[tuple[Triple, Triple, float], ...] = (
    ((36, -4, 2), (-20, 2, 14), 11),
    ((-20, 2, 14), (-78, -24, 40), 10),
    ((44, -6, 18), (40, -4, -42), 12),
)


@dataclass
class _Slab:
    """A slab that is being painted.

    Args:
        hu, label: what is painted.
        p: its voxels in the bent patient.
        spine: the same less the curve of the spine.
        body: (x, y, z) distance to the skin in mm, negative within.
        soft: width over which a boundary blends.
    """

    hu: np.ndarray
    label: np.ndarray
    p: Points
    spine: Points
    body: np.ndarray
    soft: float
    near: Culler
    near_spine: Culler

    def ellipsoid(self, centre: Triple, radii: Triple, turn: float = 0.0, spine: bool = False) -> tuple[Box, np.ndarray]:
        """The part of the slab near an ellipsoid, and the distance to it there."""
        reach = np.array([max(radii[:2])] * 2 + [radii[2]]) if turn else np.array(radii)
        box, q = self._at(tuple(np.array(centre) - reach), tuple(np.array(centre) + reach), spine)
        return box, ellipsoid(q, centre, radii, turn)

    def rod(self, start: Triple, end: Triple, radius: float, spine: bool = False) -> tuple[Box, np.ndarray]:
        """The same of a rod."""
        box, q = self._at(tuple(np.minimum(start, end) - radius), tuple(np.maximum(start, end) + radius), spine)
        return box, rod(q, start, end) - np.float32(radius)

    def _at(self, low: Triple, high: Triple, spine: bool) -> tuple[Box, Points]:
        box = (self.near_spine if spine else self.near).box(low, high, MARGIN_MM)
        x, y, z = self.spine if spine else self.p
        return box, (x[box], y[box], z[box])

    def paint(self, box: Box, distance: np.ndarray, value: float | np.ndarray) -> None:
        paint(self.hu[box], inside(distance, self.soft), value)


def paint_slab(patient: Abdomen, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Attenuation (x, y, z) float32 in HU and labels (x, y, z) uint8, see :data:`LABELS`, of a slab of the scan."""
    x, y, z = (a + np.float32(s) * b.at(frame.axes) for a, s, b in zip(frame.points, (3.0, 3.0, 3.5), patient.bend, strict=True))
    texture = {name: lattice.at(frame.axes) for name, lattice in patient.textures.items()}
    p, spine = (x, y, z), _along_spine(patient, (x, y, z))
    a, b = (np.float32(r) for r in patient.trunk_mm)
    k = (np.abs(x / a) ** np.float32(2.5) + np.abs(y / b) ** np.float32(2.5)) ** np.float32(1 / 2.5)
    slab = _Slab(
        np.full(x.shape, AIR, np.float32), np.zeros(x.shape, np.uint8), p, spine, (k - 1) * np.sqrt(a * b),
        max(1.0, frame.pixel_mm), Culler(p), Culler(spine),
    )  # fmt: skip
    _trunk(patient, slab, texture)
    _bowel(patient, slab, texture)
    _skeleton(patient, slab, texture)
    _upper_organs(patient, slab, texture)
    _chest(patient, slab, texture)
    for number, kidney in enumerate(patient.kidneys, 1):
        _kidney(patient, slab, texture, kidney, number)
    _vessels(patient, slab, texture)
    _lesion(patient, slab, texture)
    return slab.hu, slab.label


def _along_spine(patient: Abdomen, p: Points) -> Points:
    """The points less the curve of the spine there."""
    x, y, z = p
    side, front = (np.float32(v) for v in patient.spine_mm)
    return (
        x - side * np.sin(z / np.float32(110) + np.float32(patient.curve[0])),
        y - front * np.cos(z / np.float32(125) + np.float32(0.2 * patient.curve[1])),
        z,
    )


def _trunk(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray]) -> None:
    """Table, skin, fat and the muscles of the wall."""
    hu, fat, soft = patient.hu, patient.fat_mm[0], slab.soft
    x, y, _ = slab.p
    back = np.float32(patient.trunk_mm[1] + 9)
    paint(slab.hu, shell(y + back - (x / 95) ** 2, 4, soft) * inside(np.abs(x) - 200, 4), 30.0)
    paint(slab.hu, inside(slab.body, soft), hu["fat"] + 5 * texture["mid"] + 4 * texture["coarse"])
    paint(slab.hu, shell(slab.body + 1.2, 2.2, soft), 35.0)
    meat = hu["muscle"] + 6 * texture["mid"] + 4 * texture["fine"]
    paint(slab.hu, shell(slab.body + (fat + 6) + 2 * texture["coarse"], 11, soft), meat)


def _bowel(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray]) -> None:
    """Loops of bowel in front: content, wall and gas, with mesentery between them; nothing else has such values everywhere."""
    hu = patient.hu
    _, y, z = slab.p
    loops, mid = texture["loops"], texture["mid"]
    where = inside(slab.body + patient.fat_mm[0] + 16, 6) * inside(-y - 12, 10) * inside(z - 38, 16)
    content = hu["bowel"] + 18 * texture["coarse"] + 7 * mid
    content = np.where(loops + 0.3 * texture["coarse"] > 1.35, -640 + 80 * mid, content)
    paint(slab.hu, where * np.clip(2.2 * loops + 0.6, 0, 1), content)
    rim = np.clip(1 - 7 * np.abs(loops + 0.1), 0, 1)
    paint(slab.hu, where * rim, hu["muscle"] + 14)


def _skeleton(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray]) -> None:
    """Psoas and back muscles, vertebrae with their canal, ribs, iliac bones."""
    hu, soft = patient.hu, slab.soft
    marrow = hu["bone"] + 45 * texture["mid"] + 25 * texture["fine"]
    meat = hu["muscle"] + 7 * texture["mid"]
    for side in (1, -1):
        for start, end, radius in (
            ((side * 26, -52, 25), (side * 58, -22, -150), 15.5),  # psoas
            ((side * 33, -94, -215), (side * 33, -94, 215), 21),  # erector spinae
            ((side * 66, -76, -120), (side * 58, -74, 20), 14),  # quadratus lumborum
        ):
            box, distance = slab.rod(start, end, radius, spine=True)
            slab.paint(box, distance + 1.2 * texture["mid"][box], meat[box])
        box, wing = slab.ellipsoid((side * 84, -34, -176), (44, 52, 58), side * 20)
        paint(slab.hu[box], shell(wing, 13, soft), marrow[box])
        paint(slab.hu[box], shell(np.abs(wing) - 6, 2.5, soft), hu["cortex"])
    box, bodies = slab.rod((0, VERTEBRA_Y, -230), (0, VERTEBRA_Y, 230), VERTEBRA_MM, spine=True)
    z = slab.spine[2][box]
    disc = np.abs(np.mod(z + 17, 34) - 17)  # 0 in the middle of a disc
    slab.paint(box, bodies, np.where(disc < 4.5, hu["muscle"] + 28, marrow[box]))
    paint(slab.hu[box], shell(bodies + 1, 2, soft) * inside(4.5 - disc, 2), hu["cortex"])
    box, canal = slab.rod((0, VERTEBRA_Y - 30, -230), (0, VERTEBRA_Y - 30, 230), 9, spine=True)
    paint(slab.hu[box], shell(canal - 4, 7, soft), marrow[box] + 130)
    slab.paint(box, canal, 25.0)
    box, process = slab.rod((0, VERTEBRA_Y - 44, -230), (0, VERTEBRA_Y - 62, -230), 5, spine=True)
    slab.paint(box, process, marrow[box] + 60)
    x, y, z = slab.p
    ring = shell(slab.body + patient.fat_mm[0] + 7, 8, soft) * inside(-z + 8 + 0.25 * y, 4)
    bars = np.clip(3 * np.sin((z + 0.35 * y + 0.15 * np.abs(x)) * np.float32(2 * np.pi / 27)) - 1.2, 0, 1)
    paint(slab.hu, ring * bars, 340.0)


def _upper_organs(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray]) -> None:
    """Liver with its veins, spleen, stomach, pancreas."""
    hu, soft = patient.hu, slab.soft
    wall = slab.body + np.float32(patient.fat_mm[0] + 14)
    coarse, mid, fine = texture["coarse"], texture["mid"], texture["fine"]
    centre, radii = patient.liver_mm
    box, liver = slab.ellipsoid(centre, radii)
    liver = np.maximum(liver + 4 * coarse[box], wall[box])
    slab.paint(box, liver, hu["liver"] + 3 * mid[box] + 2 * fine[box] + 3 * coarse[box])
    veins = np.clip(1 - 9 * np.abs(texture["loops"][box]), 0, 1) * np.clip(1 - 3 * np.abs(coarse[box]), 0, 1)
    paint(slab.hu[box], veins * inside(liver + 6, soft), hu["vein"] + 6)
    box, spleen = slab.ellipsoid((-98, -36, 62), (36, 27, 50), 25)
    slab.paint(box, np.maximum(spleen + 3 * coarse[box], wall[box]), hu["spleen"] + 5 * mid[box])
    box, stomach = slab.ellipsoid((-52, 34, 66), (46, 40, 44), -20)
    stomach = np.maximum(stomach + 5 * coarse[box], wall[box])
    slab.paint(box, stomach, hu["muscle"] + 16)
    filling = np.where(slab.p[1][box] > 48, -900, hu["stomach"] + 16 * mid[box])
    slab.paint(box, stomach + 5, filling)
    # head and tail of the pancreas, duodenum
    for start, end, radius in _GLANDS:
        box, gland = slab.rod(start, end, radius)
        slab.paint(box, gland + 2.4 * mid[box], hu["pancreas"] + 9 * mid[box] - 8 * np.clip(texture["loops"][box], 0, 2))


def _chest(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray]) -> None:
    """Lungs over the diaphragm, with what lies between them."""
    x, y, z = slab.p
    if z.max() < patient.dome_mm - 200:
        return
    hu = patient.hu
    dome = patient.dome_mm - np.float32(0.0045) * (np.abs(x) - 66) ** 2 - np.float32(0.006) * (y - 12) ** 2
    lungs = np.maximum(slab.body + np.float32(patient.fat_mm[0] + 16), dome - z)
    lungs = np.maximum(lungs, 34 + 4 * texture["coarse"] - np.abs(x))
    between = inside(np.maximum(np.abs(x) - 36, dome - z + 12), slab.soft) * inside(slab.body + patient.fat_mm[0] + 16, 2)
    paint(slab.hu, between * inside(-y - 18, 6), hu["muscle"] - 6)
    slab.paint((slice(None),) * 3, lungs - 3, hu["muscle"])  # the diaphragm
    vessels = np.clip(1 - 6 * np.abs(texture["loops"]), 0, 1) * np.clip(1 - 2 * np.abs(texture["mid"]), 0, 1)
    slab.paint((slice(None),) * 3, lungs, hu["lung"] + 40 * texture["mid"] + 700 * vessels)


def _kidney(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray], kidney: Kidney, number: int) -> None:
    """Fat round a kidney, its parenchyma, and the sinus, which belongs to it."""
    side = 1 if number == LABELS["right_kidney"] else -1
    a, b, c = kidney.radii_mm
    reach = max(kidney.radii_mm) + patient.fat_mm[1] + 3
    x0, y0, z0 = kidney.centre_mm
    box, q = slab._at((x0 - reach, y0 - reach, z0 - reach), (x0 + reach, y0 + reach, z0 + reach), spine=False)
    x, y, z = (v - np.float32(m) for v, m in zip(q, kidney.centre_mm, strict=True))
    lean = np.deg2rad(side * kidney.lean_deg)
    cos, sin = np.float32(np.cos(lean)), np.float32(np.sin(lean))
    own = (cos * x + sin * z, y, cos * z - sin * x)
    mid, coarse, hu = texture["mid"][box], texture["coarse"][box], patient.hu
    distance = ellipsoid(own, (0, 0, 0), (a, b, c), kidney.turn_deg) + 1.1 * texture["loops"][box] + 0.5 * mid
    turn = np.deg2rad(kidney.turn_deg)
    medial = (-side * np.cos(turn), -side * np.sin(turn), 0.0)
    hilum = ellipsoid(own, (medial[0] * 1.05 * a, medial[1] * 1.05 * a, 0), (13, 13, 17)) + 0.8 * mid
    distance = np.maximum(distance, -hilum)
    paint(slab.hu[box], inside(distance - np.float32(patient.fat_mm[1]), 4), hu["fat"] + 6 * mid)
    layers = hu["kidney"] + 5 * np.tanh(2 * texture["loops"][box]) + 3 * mid + 3 * coarse
    slab.paint(box, distance, layers)
    sinus = ellipsoid(own, (medial[0] * 0.35 * a, medial[1] * 0.35 * a, 0), (0.4 * a, 0.3 * b, 0.5 * c)) + 2 * mid
    paint(slab.hu[box], inside(sinus, slab.soft) * inside(distance, slab.soft), 0.6 * hu["fat"] + 25 * mid)
    slab.label[box][distance < 0] = number
    for centre, radius in patient.cysts_mm:
        if side * centre[0] > 0:
            there, ball = slab.ellipsoid(centre, (radius, radius, radius))
            slab.paint(there, ball, hu["cyst"])
            slab.label[there][ball < 0] = number


def _vessels(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray]) -> None:
    """Renal veins and arteries, the inferior vena cava, iliac arteries, and the aorta with its wall."""
    hu, mid = patient.hu, texture["mid"]
    radius, swollen, height, end = patient.aorta_mm
    front = VERTEBRA_Y + VERTEBRA_MM + WALL_MM + radius + 2.0
    for kidney, side in zip(patient.kidneys, (1, -1), strict=True):
        across, y0, z0 = kidney.centre_mm
        for start, wide, value in (((16, front + 2, z0 + 6), 5.5, hu["vein"]), ((-10, front, z0 - 2), 3.2, hu["lumen"])):
            box, vessel = slab.rod(start, (across - side * 20, y0 + 10, z0), wide, spine=True)
            slab.paint(box, vessel, value)
    box, cava = slab.rod((19, front - 2, -125), (24, front + 12, 150), 11, spine=True)
    slab.paint(box, cava + 1.5 * mid[box], hu["vein"] + 3 * mid[box])
    for side in (1, -1):
        box, iliac = slab.rod((-10, front, end), (side * 42, front + 6, end - 80), 6.5, spine=True)
        slab.paint(box, iliac - 2, hu["wall"])
        slab.paint(box, iliac, hu["lumen"])
    # where it winds: smooth functions of the height, the wall as thick everywhere
    widest = radius + swollen + WALL_MM + 8
    box, (x, y, z) = slab._at((-13 - widest, front - widest, end - 8), (-9 + widest, front + widest, 230), spine=True)
    if not x.size:
        return
    wound = 4 * np.sin(z / np.float32(46) + np.float32(patient.curve[2]))
    width = radius + swollen * np.exp(-(((z - height) / 24) ** 2))
    lumen = np.hypot(x + 11 - wound, y - front - 0.8 * (width - radius)) - width
    lumen = np.maximum(lumen, np.float32(end) - z)
    outside = np.maximum(lumen - np.float32(WALL_MM), np.float32(end) - z)
    slab.paint(box, outside, hu["wall"] + 3 * mid[box])
    slab.paint(box, lumen, hu["lumen"] + 2 * mid[box])
    slab.label[box][outside < 0] = LABELS["aortic_wall"]
    slab.label[box][lumen < 0] = LABELS["aortic_lumen"]


def _lesion(patient: Abdomen, slab: _Slab, texture: dict[str, np.ndarray]) -> None:
    """A ball of about 15 mm, a little darker than the organ it grows in."""
    centre, radius = patient.lesion_mm
    box, ball = slab.ellipsoid(centre, (radius, radius, radius))
    ball = ball + 0.4 * texture["mid"][box]
    organ = patient.hu["liver" if patient.lesion_in == "liver" else "kidney"]
    slab.paint(box, ball, organ + patient.lesion_hu + 3 * texture["mid"][box])
    slab.label[box][ball < 0] = LABELS["lesion"]
