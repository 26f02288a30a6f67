"""Tell from names and places whether structures are on one side of the body: then left and right must not be exchanged."""

from __future__ import annotations

import re

import numpy as np

from oasis_monai.workflows.fingerprint import Fingerprint

SIDE_WORDS = {"left", "right", "lt", "rt", "lh", "rh", "sin", "sinister", "sinistra", "dex", "dexter", "dextra"}
SIDED = 0.9  # fraction of scans in which a structure has to lie on one side
TWIN_VOLUMES = 1.25  # the largest ratio of the volumes of a left and a right structure, in the median scan


def sided(fingerprint: Fingerprint) -> str:
    """Why left and right must not be exchanged; empty where they may."""
    words = [set(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())) for name in fingerprint.names]
    both = any("l" in w for w in words) and any("r" in w for w in words)  # one letter alone may mean anything
    for name, own in zip(fingerprint.names, words, strict=True):
        if own & SIDE_WORDS or (both and own & {"l", "r"}):
            return f"{name} has a side by its name"
    present = fingerprint.present
    for number, one in enumerate(present):
        for other in present[number + 1 :]:
            if _are_twins(fingerprint, one, other):
                names = f"{fingerprint.name_of(one)} and {fingerprint.name_of(other)}"
                return f"{names} are of one size and lie side by side: a left and a right one"
    for index in present:
        if side := _one_side(fingerprint, index):
            return f"{fingerprint.name_of(index)} lies on the {side} of the images"
    return ""


def _are_twins(fingerprint: Fingerprint, one: int, other: int) -> bool:
    """Whether two structures are of equal size, and apart from left to right alone, always the same one left."""
    pairs = [(s.structures[one], s.structures[other]) for s in fingerprint.labelled if {one, other} <= set(s.structures)]
    if not pairs:
        return False
    ratio = float(np.median([a.volume_ml / b.volume_ml for a, b in pairs]))
    apart = np.array([np.subtract(a.centre_mm, b.centre_mm) for a, b in pairs])
    width = np.median([np.add(a.width_mm, b.width_mm) / 2 for a, b in pairs], 0)
    x, y, z = np.abs(np.median(apart, 0)) / width
    same_sign = max((apart[:, 0] > 0).mean(), (apart[:, 0] < 0).mean()) >= SIDED
    return bool(1 / TWIN_VOLUMES < ratio < TWIN_VOLUMES and x > 0.8 and max(y, z) < 0.3 and same_sign)


def _one_side(fingerprint: Fingerprint, index: int) -> str:
    """``left`` or ``right`` where a structure lies clear of the images' middle in nearly all scans."""
    scans = [s for s in fingerprint.labelled if index in s.structures]
    clear = [s.structures[index].centre_mm[0] / s.structures[index].width_mm[0] for s in scans]
    if np.mean(np.array(clear) > 0.5) >= SIDED:
        return "right"
    return "left" if np.mean(np.array(clear) < -0.5) >= SIDED else ""
