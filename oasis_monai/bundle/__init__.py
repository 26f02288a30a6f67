"""A trained model as a MONAI bundle: one ordinary network with its atlases inside, and the folder that MONAI's tools load."""

from oasis_monai.bundle.network import OasisNetwork
from oasis_monai.bundle.write import scans_in, write_bundle

__all__ = ["OasisNetwork", "scans_in", "write_bundle"]
