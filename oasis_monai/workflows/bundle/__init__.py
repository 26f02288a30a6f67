"""Write a trained model as a MONAI bundle: one network with its atlases inside, in the folder that MONAI's tools load."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from oasis_monai.workflows.bundle.estimate_network import EstimateNetwork
    from oasis_monai.workflows.bundle.evaluation_transforms import HideUnlabelledd, ReadReferenced, labelled_scans_in
    from oasis_monai.workflows.bundle.network import OasisNetwork
    from oasis_monai.workflows.bundle.write import scans_in, write_bundle

__getattr__, __dir__, _names = lazy_loader.attach(
    __name__,
    submod_attrs={
        "estimate_network": ["EstimateNetwork"],
        "evaluation_transforms": ["HideUnlabelledd", "ReadReferenced", "labelled_scans_in"],
        "network": ["OasisNetwork"],
        "write": ["scans_in", "write_bundle"],
    },
)

__all__ = [
    "EstimateNetwork",
    "HideUnlabelledd",
    "OasisNetwork",
    "ReadReferenced",
    "labelled_scans_in",
    "scans_in",
    "write_bundle",
]
