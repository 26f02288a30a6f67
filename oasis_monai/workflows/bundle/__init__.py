"""Write a trained model as a MONAI bundle: one network with its atlases inside, in the folder that MONAI's tools load."""

from __future__ import annotations

from oasis_monai.workflows.bundle.estimate_network import EstimateNetwork
from oasis_monai.workflows.bundle.evaluation import HideUnlabelledd, ReadReferenced, labelled_scans_in
from oasis_monai.workflows.bundle.network import OasisNetwork
from oasis_monai.workflows.bundle.write import scans_in, write_bundle

__all__ = [
    "EstimateNetwork",
    "HideUnlabelledd",
    "OasisNetwork",
    "ReadReferenced",
    "labelled_scans_in",
    "scans_in",
    "write_bundle",
]
