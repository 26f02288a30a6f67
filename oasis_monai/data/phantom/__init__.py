"""Synthetic scans with reference labels, for the demo, the tests and measurements of memory and time only.

They must never support a claim about patients. There are two kinds: multi-centre T2-weighted prostate MR, and CT of the abdomen.
A patient is drawn at random (:mod:`.patient`, :mod:`.anatomy`; :mod:`.abdomen`, :mod:`.abdomen_slab`), imaged by one of four
scanners (:mod:`.scanner`; :mod:`.ct`) and written in the layout of PROMISE12: ``CaseNN.mhd/.raw`` and
``CaseNN_segmentation.mhd/.raw`` (:mod:`.folder`).
"""

from __future__ import annotations

from oasis_monai.data.phantom.abdomen_slab import LABELS
from oasis_monai.data.phantom.ct import CT_SIZES, PROTOCOLS, Protocol
from oasis_monai.data.phantom.folder import write_phantom
from oasis_monai.data.phantom.make import KINDS, Phantom, make_phantom
from oasis_monai.data.phantom.patient import Patient
from oasis_monai.data.phantom.scanner import CENTRES, SIZES, Centre

__all__ = [
    "CENTRES",
    "CT_SIZES",
    "KINDS",
    "LABELS",
    "PROTOCOLS",
    "SIZES",
    "Centre",
    "Patient",
    "Phantom",
    "Protocol",
    "make_phantom",
    "write_phantom",
]
