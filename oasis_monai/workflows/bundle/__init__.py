"""Write a trained model as a MONAI bundle: one network with its atlases inside, in the folder that MONAI's tools load."""

from __future__ import annotations

from oasis_monai.workflows.bundle.network import OasisNetwork
from oasis_monai.workflows.bundle.write import scans_in, write_bundle

__all__ = ["OasisNetwork", "scans_in", "write_bundle"]
