"""Synthetic multi-centre T2-weighted prostate MR with reference labels, for the demo and the tests only.

It must never support a claim about patients. A patient is drawn at random (:mod:`.patient`, :mod:`.anatomy`), imaged by one of
four scanners (:mod:`.scanner`) and written in the layout of PROMISE12: ``CaseNN.mhd/.raw`` and
``CaseNN_segmentation.mhd/.raw`` (:mod:`.folder`).
"""

from __future__ import annotations

from oasis_monai.data.phantom.folder import write_phantom
from oasis_monai.data.phantom.make import Phantom, make_phantom
from oasis_monai.data.phantom.patient import Patient
from oasis_monai.data.phantom.scanner import CENTRES, SIZES, Centre

__all__ = ["CENTRES", "SIZES", "Centre", "Patient", "Phantom", "make_phantom", "write_phantom"]
