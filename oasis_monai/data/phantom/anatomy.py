"""Draw the anatomy of a phantom patient without noise: pelvis, prostate with two zones, neighbouring organs.

Proportions follow textbook anatomy and the look of T2-weighted scans; nothing is taken from real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from oasis_monai.data.phantom.patient import Patient
from oasis_monai.data.phantom.shapes import Box, Culler, Frame, Points, ellipsoid, inside, paint, rod, shell


@dataclass(frozen=True)
class Picture:
    """Noise-free relative signal and truth on one grid.

    Args:
        signal: (x, y, z) float32, about 0..1.2.
        gland: (x, y, z) bool, the whole prostate.
        central: (x, y, z) bool, the central gland within it.
        coil_mm: (x, y, z) float32, distance to the axis of the rectum, where an endorectal coil would lie.
    """

    signal: np.ndarray
    gland: np.ndarray
    central: np.ndarray
    coil_mm: np.ndarray


def draw_picture(patient: Patient, frame: Frame, rng: np.random.Generator) -> Picture:
    """Render the patient on a grid. ``rng`` fixes the free-form part of the shapes, the textures and the nodules."""
    soft = max(1.4, frame.pixel_mm)
    # every soft-tissue organ follows one smooth random displacement: the "statistical" part of the shape variation
    x, y, z = (a + np.float32(s) * frame.field(rng, 36) for a, s in zip(frame.points, (2.2, 2.6, 2.6), strict=True))
    p = (x, y, z)
    fine, mid, coarse = frame.field(rng, 2.6), frame.field(rng, 5), frame.field(rng, 14)
    culler = Culler(p)
    canvas = _pelvis(patient, p, culler, soft, fine, mid, coarse)
    coil_mm = _rectum(patient, p, canvas, soft, fine, mid, coarse)
    _bladder(patient, p, canvas, soft, coarse)
    gland_mm, central_mm = _gland_distances(patient, p, frame.field(rng, 13), frame.field(rng, 11), frame.voxel_ml)
    _neighbours(patient, p, canvas, soft, gland_mm, mid, fine, frame.field(rng, 3.6))
    _prostate(patient, p, canvas, soft, gland_mm, central_mm, fine, mid, coarse, culler, rng)
    gland = gland_mm < 0
    return Picture(canvas, gland, gland & (central_mm < 0), coil_mm)


# right-sided shapes, painted on both sides: ellipsoids (centre, half axes, turn in degrees) and rods (two ends, radius)
_MUSCLES: tuple[tuple[Any, ...], ...] = (
    ("ellipsoid", (49, -4, 8), (10.5, 36, 48), 10),  # obturator internus
    ("ellipsoid", (70, -70, 5), (54, 24, 90), 26),  # gluteus maximus
    ("ellipsoid", (92, -30, 10), (17, 34, 60), 25),  # gluteus medius, external rotators
    ("rod", (16, 55, -14), (84, 28, -4), 17),  # obturator externus, pectineus
    ("rod", (13, 48, -32), (64, -12, -46), 14),  # adductors, transverse perineal muscle
    ("rod", (34, 72, -24), (90, 52, -34), 18),  # anterior thigh
    ("ellipsoid", (20, 66, 36), (27, 6, 34), 0),  # rectus abdominis
    ("ellipsoid", (84, 60, 20), (26, 19, 44), 15),  # iliopsoas
)
_BONES: tuple[tuple[Any, ...], ...] = (
    ("ellipsoid", (88, 14, 24), (33, 36, 34), 0),  # acetabulum
    ("rod", (11, 51, -10), (66, 26, 12), 9),  # superior pubic ramus
    ("rod", (9, 44, -16), (48, -26, -44), 6),  # inferior pubic ramus
    ("ellipsoid", (62, -34, -12), (11, 15, 32), -25),  # ischium
)


def _boxed(p: Points, culler: Culler, shape: tuple[Any, ...], side: int) -> tuple[Box, np.ndarray]:
    """Part of the grid near a shape (mirrored for side = -1) and the signed distance to it there."""
    kind, *rest = shape
    if kind == "ellipsoid":
        centre, radii, turn = rest
        centre = (side * centre[0], *centre[1:])
        reach = np.array([max(radii[:2])] * 2 + [radii[2]]) if turn else np.array(radii)
        box = culler.box(tuple(centre - reach), tuple(centre + reach))
        return box, ellipsoid((p[0][box], p[1][box], p[2][box]), centre, radii, side * turn)
    start, end, radius = rest
    start, end = ((side * q[0], *q[1:]) for q in (start, end))
    box = culler.box(tuple(np.minimum(start, end) - radius), tuple(np.maximum(start, end) + radius))
    return box, rod((p[0][box], p[1][box], p[2][box]), start, end) - np.float32(radius)


def _pelvis(
    patient: Patient, p: Points, culler: Culler, soft: float, fine: np.ndarray, mid: np.ndarray, coarse: np.ndarray
) -> np.ndarray:
    """Fat, muscles and bones around the organs."""
    tone = patient.signal
    x, y, z = p
    # zero crossings of a smooth field look like fibrous septa; the second field breaks them up into strands
    septa = np.clip(np.abs(coarse + 0.25 * mid) * 9 + np.clip(1.5 * mid, 0, 1), 0.55, 1)
    canvas = np.float32(tone["fat"]) * septa * (1 + 0.07 * mid + 0.05 * fine)
    meat = np.float32(tone["muscle"]) * (1 + 0.14 * mid + 0.12 * fine + 0.3 * np.clip(coarse - 1, 0, 1))
    marrow = np.float32(tone["marrow"]) * (1 + 0.10 * mid + 0.10 * coarse)
    for shape in _MUSCLES:
        for side in (1, -1):
            box, distance = _boxed(p, culler, shape, side)
            paint(canvas[box], inside(distance + 1.2 * mid[box], soft), meat[box])
    for shape in _BONES:
        for side in (1, -1):
            box, distance = _boxed(p, culler, shape, side)
            paint(canvas[box], inside(distance, soft), marrow[box])
            paint(canvas[box], shell(distance, 2.4, soft), tone["cortex"])
    for side in (1, -1):
        box, head = _boxed(p, culler, ("ellipsoid", (88, 14, 24), (24, 24, 24), 0), side)
        paint(canvas[box], shell(head - 1, 4.5, soft), tone["cortex"])
        paint(canvas[box], inside(head, soft), 1.15 * marrow[box])
        box, vessel = _boxed(p, culler, ("rod", (50, 60, -60), (56, 52, 60), 5.5), side)
        paint(canvas[box], inside(vessel, soft), tone["gas"] + 0.05)  # artery: flow void
        box, vessel = _boxed(p, culler, ("rod", (59, 66, -60), (64, 58, 60), 4.5), side)
        paint(canvas[box], inside(vessel, soft), tone["plexus"])
    box, coccyx = _boxed(p, culler, ("ellipsoid", (0, -72, 26), (13, 8, 26), 0), 1)
    paint(canvas[box], inside(coccyx, soft), marrow[box])
    paint(canvas[box], shell(coccyx, 2.2, soft), tone["cortex"])
    box, symphysis = _boxed(p, culler, ("ellipsoid", (0, 50, -10), (3.2, 12, 19), 0), 1)
    paint(canvas[box], inside(symphysis, soft), tone["muscle"])
    # the levator ani hangs like a funnel round gland and rectum and closes to the anal sphincter
    a, b, _ = patient.gland_mm
    level = np.clip((z + 48) / 62, 0.12, 1)
    funnel = np.sqrt((x / (a + 7)) ** 2 + ((y + 0.9 * b) / (b + 26)) ** 2) - np.sqrt(level)
    sling = shell(funnel * np.float32(a + 7) + 1.3 * mid, 4.0, soft) * inside(z - 14, 10) * inside(y - 0.55 * b, 10)
    paint(canvas, sling, meat * 1.1)
    return canvas


def _rectum(
    patient: Patient, p: Points, canvas: np.ndarray, soft: float,
    fine: np.ndarray, mid: np.ndarray, coarse: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Paint rectum and anal canal; returns the distance to their axis."""
    tone = patient.signal
    x, y, z = p
    _, b, c = patient.gland_mm
    rise = z / np.float32(c)
    # lumen: closed in the anal canal, widening above the apex; a balloon ends again above the base
    open_ = 1 / (1 + np.exp(-(z + 0.95 * c) / 3.0))
    radius = patient.rectum_mm * open_
    if patient.coil:
        radius = np.maximum(radius * inside(z - (c + 10), 16), 5 * open_)
    else:
        radius = radius * (0.85 + 0.22 * np.tanh(rise) + 0.14 * np.sin(0.09 * z + 3 * patient.enlarged))
    axis_y = -(b * np.clip(1.0 - 0.28 * np.maximum(-rise, 0), 0.5, 1) + 4.5 + radius) - 3 * np.maximum(rise, 0) ** 2
    wobble = 2.5 * np.sin(0.06 * z + 10 * patient.enlarged)
    away = np.hypot((x - wobble) / np.float32(1.08), y - axis_y)
    distance = away - radius + (1.6 if patient.coil else 2.4) * coarse * open_  # no lumen is round
    paint(canvas, inside(distance - 9, soft) * (1 - open_), tone["muscle"] * (1 + 0.25 * mid))  # sphincter
    paint(canvas, inside(distance - 4.5, soft), tone["rectal wall"] * (1 + 0.22 * mid))
    paint(canvas, shell(distance - 4.2, 1.4, soft) * 0.8, tone["muscle"])
    paint(canvas, inside(distance - 2.0 + mid, soft) * (1 - open_), tone["rectal wall"] * 1.7)  # mucosal folds
    filling: np.ndarray | float = tone[patient.content]
    if patient.content == "stool":
        filling = np.clip(tone["stool"] * (0.75 + 0.8 * mid + 0.5 * fine), 0.02, 0.8)
    paint(canvas, inside(distance, soft), filling)
    if patient.coil == "gel":  # the shaft and its loop inside the gel
        paint(canvas, inside(away - 3.2, soft) * open_, tone["gas"])
    elif patient.coil == "balloon":
        paint(canvas, inside(np.hypot(x - wobble, y - axis_y + 3) - 4, soft) * open_, 0.5 * tone["stool"])
    return away


def _bladder(patient: Patient, p: Points, canvas: np.ndarray, soft: float, coarse: np.ndarray) -> None:
    tone = patient.signal
    _, b, c = patient.gland_mm
    rx, ry, rz = patient.bladder_mm
    centre = (0.0, 0.45 * b + 0.25 * ry, 0.55 * c + 0.85 * rz)
    distance = ellipsoid(p, centre, (rx, ry, rz)) + 2.2 * coarse
    wall = 3.0 + 40 / rx  # an empty bladder has a thick wall
    paint(canvas, inside(distance - wall, soft), tone["bladder wall"] * (1 + 0.1 * coarse))
    settled = 1 - 0.16 * np.tanh((p[1] - centre[1]) / 9)  # fresh and old urine in layers
    paint(canvas, inside(distance, soft), tone["urine"] * settled)


def _gland_distances(
    patient: Patient, p: Points, bumps: np.ndarray, inner_bumps: np.ndarray, voxel_ml: float
) -> tuple[np.ndarray, np.ndarray]:
    """Approximate signed distances (mm) to the surface of the whole gland and of the central gland."""
    a, b, c = (np.float32(v) for v in patient.gland_mm)
    x, y, z = p
    t = np.clip(z / c, -1.4, 1.4)
    taper = 1.02 + 0.13 * t - 0.10 * t * t  # the apex is narrower than the base
    groove = np.exp(-((x / (0.45 * a)) ** 2)) * np.clip(-y / b, 0, 1)
    v: np.ndarray = y + (0.16 if patient.coil else 0.10) * b * groove  # median groove of the back wall, deeper over a balloon
    # the front narrows to a ridge, the back is broad: a heart rather than an ellipse
    u = x / (a * taper * (1 - 0.20 * np.clip(v / b, -0.8, 1.2)))
    v = v / (b * taper)
    k = (np.abs(u) ** 2.3 + np.abs(v) ** 2.3 + np.abs(t) ** 2.3) ** np.float32(1 / 2.3)
    mean = float(a * b * c) ** (1 / 3)
    whole = (k - 1) * np.float32(mean) + 0.9 * bumps
    # the free-form part swells or shrinks the gland by up to a quarter; the level set that holds its volume undoes that
    count = min(max(round(patient.volume_ml / voxel_ml), 1), whole.size - 1)
    whole -= np.partition(whole.ravel(), count)[count]
    grow = patient.enlarged
    central = ellipsoid(
        p, (0, float(b) * 0.16, float(c) * 0.14),
        (float(a) * (0.67 + 0.19 * grow), float(b) * (0.71 + 0.14 * grow), float(c) * (0.80 + 0.12 * grow)),
    )  # fmt: skip
    return whole, central + 1.1 * inner_bumps


def _neighbours(
    patient: Patient, p: Points, canvas: np.ndarray, soft: float,
    gland_mm: np.ndarray, mid: np.ndarray, fine: np.ndarray, tubes: np.ndarray,
) -> None:  # fmt: skip
    """Look-alikes that carry no label: seminal vesicles, venous plexus, nerve bundles."""
    tone = patient.signal
    a, b, c = patient.gland_mm
    m = (np.abs(p[0]), p[1], p[2])
    vesicle = ellipsoid(m, (0.55 * a, -0.62 * b, 1.02 * c + 3), (0.62 * a, 6.5, 9.5), 14) + 1.2 * mid
    paint(canvas, inside(vesicle, soft), tone["vesicle"] * (1 + 0.55 * np.tanh(3 * tubes)))
    plexus = inside(gland_mm - 8, 4) * inside(-p[1] - 0.1 * b, 8) * inside(p[2] - 0.9 * c, 8)
    paint(canvas, plexus * 0.75, tone["plexus"] * (1 + 0.55 * np.tanh(2 * tubes)))
    nerves = inside(ellipsoid(m, (0.78 * a, -0.82 * b, 0), (4.5, 4, 0.9 * c)), soft)
    paint(canvas, nerves, tone["nerve"] * (1 + 0.5 * fine))


def _prostate(
    patient: Patient, p: Points, canvas: np.ndarray, soft: float, gland_mm: np.ndarray, central_mm: np.ndarray,
    fine: np.ndarray, mid: np.ndarray, coarse: np.ndarray, culler: Culler, rng: np.random.Generator,
) -> None:  # fmt: skip
    tone = patient.signal
    x, y, z = p
    a, b, c = patient.gland_mm
    gland = inside(gland_mm, soft)
    body = tone["peripheral"] * (1 + 0.09 * fine + 0.08 * mid + 0.08 * coarse)
    core = inside(central_mm, soft)
    paint(body, core, tone["central"] * (1 + 0.22 * mid + 0.14 * fine))
    for _ in range(int(rng.integers(2, 5) + 6 * patient.enlarged)):  # nodules of hyperplasia
        centre = rng.normal(0, 0.36, 3) * (a, b, c) + (0, 0.15 * b, 0.15 * c)
        radius = float(rng.uniform(0.12, 0.32) * a)
        level = float(rng.uniform(0.5, 1.75)) * tone["central"]
        stretch = np.exp(rng.normal(0, 0.18, 3)) * radius
        box, distance = _boxed(p, culler, ("ellipsoid", tuple(centre), tuple(stretch), 0), 1)
        distance += 0.8 * mid[box]
        paint(body[box], inside(distance, soft) * core[box], level * (1 + 0.2 * fine[box]))
        paint(body[box], shell(distance, 1.0, soft) * core[box] * 0.7, 0.6 * tone["central"])
    paint(body, shell(central_mm, 1.3, soft) * 0.75, tone["capsule"])  # surgical capsule
    front = inside(0.62 * b - y + 0.012 * x * x, 8)
    paint(body, front * 0.8, tone["stroma"])  # anterior fibromuscular stroma
    urethra = rod(p, (0, 0.05 * b, -1.3 * c), (0, 0.1 * b, -0.1 * c))
    paint(body, inside(urethra - 3.2, soft) * 0.7, 1.1 * tone["peripheral"])
    if rng.random() < 0.6:  # a dark lesion in the peripheral zone, sometimes up to the edge
        side, height = rng.choice([-1, 1]), rng.uniform(-0.5, 0.5)
        lesion = ellipsoid(p, (side * 0.6 * a, -0.5 * b, height * c), (0.28 * a, 0.22 * b, 0.3 * c)) + mid
        paint(body, inside(lesion, 3) * 0.85, 0.9 * tone["central"])
    paint(canvas, gland, body)
    # the capsule is a thin dark line that is missing on parts of the surface, most of all towards apex and bladder neck
    seen = np.clip(0.55 + 0.6 * coarse - 0.5 * np.abs(z / c) ** 3, 0, 1)
    paint(canvas, shell(gland_mm, 1.2, soft) * seen, tone["capsule"])
