"""Segment medical images from a few labelled scans: atlases aligned in one pass and fused by label overlap (OASIS), on MONAI.

Names are imported when they are first used, so that ``import oasis_monai`` takes no time and no torch.

Examples:
    >>> import oasis_monai
    >>> model = oasis_monai.load_model("models/prostate")
    >>> result = model.segment("scan.nii.gz")
    >>> result.save("label.nii.gz")
    PosixPath('label.nii.gz')
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from oasis_monai import errors, transforms
    from oasis_monai.atlases.library import AtlasLibrary
    from oasis_monai.data.io import read_volume, write_label
    from oasis_monai.data.types import Case, Geometry, Segmentation, Volume
    from oasis_monai.evaluation.metrics import score_case
    from oasis_monai.networks.losses import RegistrationLoss
    from oasis_monai.networks.registration import SpatialTransformModel
    from oasis_monai.segmentation.methods import METHODS
    from oasis_monai.segmentation.segmenter import Segmenter
    from oasis_monai.settings import Settings, build_settings
    from oasis_monai.utils.errors import ConfigError, DataError, OasisError
    from oasis_monai.workflows.api import adapt, cross_validate, evaluate, plan, segment, train
    from oasis_monai.workflows.bundle.network import OasisNetwork
    from oasis_monai.workflows.bundle.write import scans_in
    from oasis_monai.workflows.model import Model, load_model
    from oasis_monai.workflows.scan_result import ScanResult

__version__ = "0.2.0"

_PUBLIC = {
    "atlases.library": ["AtlasLibrary"],
    "data.io": ["read_volume", "write_label"],
    "data.types": ["Case", "Geometry", "Segmentation", "Volume"],
    "evaluation.metrics": ["score_case"],
    "networks.losses": ["RegistrationLoss"],
    "networks.registration": ["SpatialTransformModel"],
    "segmentation.methods": ["METHODS"],
    "segmentation.segmenter": ["Segmenter"],
    "settings": ["Settings", "build_settings"],
    "utils.errors": ["ConfigError", "DataError", "OasisError"],
    "workflows.api": ["adapt", "cross_validate", "evaluate", "plan", "segment", "train"],
    "workflows.bundle.network": ["OasisNetwork"],
    "workflows.bundle.write": ["scans_in"],
    "workflows.model": ["Model", "load_model"],
    "workflows.scan_result": ["ScanResult"],
}
__getattr__, __dir__, _names = lazy_loader.attach(__name__, submodules=["errors", "transforms"], submod_attrs=_PUBLIC)

__all__ = [
    "METHODS",
    "AtlasLibrary",
    "Case",
    "ConfigError",
    "DataError",
    "Geometry",
    "Model",
    "OasisError",
    "OasisNetwork",
    "RegistrationLoss",
    "ScanResult",
    "Segmentation",
    "Segmenter",
    "Settings",
    "SpatialTransformModel",
    "Volume",
    "__version__",
    "adapt",
    "build_settings",
    "cross_validate",
    "errors",
    "evaluate",
    "load_model",
    "plan",
    "read_volume",
    "scans_in",
    "score_case",
    "segment",
    "train",
    "transforms",
    "write_label",
]
