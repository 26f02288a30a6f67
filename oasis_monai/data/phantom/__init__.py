"""Synthetic multi-centre prostate T2 MR with its truth: for the demo and the tests, never for a claim about patients.

A patient is drawn (:mod:`.patient`, :mod:`.anatomy`), put into one of four scanners (:mod:`.scanner`) and written in the
layout of PROMISE12: ``CaseNN.mhd/.raw`` and ``CaseNN_segmentation.mhd/.raw``.
"""

from __future__ import annotations

from oasis_monai.data.phantom.folder import write_phantom
from oasis_monai.data.phantom.make import Phantom, make_phantom
from oasis_monai.data.phantom.patient import Patient
from oasis_monai.data.phantom.scanner import CENTRES, SIZES, Centre

__all__ = ["CENTRES", "SIZES", "Centre", "Patient", "Phantom", "make_phantom", "write_phantom"]
