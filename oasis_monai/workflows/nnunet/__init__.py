"""Hand over to nnU-Net v2 (Isensee et al., Nature Methods 2021): the data set, its folds, and the results of a cross-validation.

Public names: :func:`export_nnunet`, :class:`Exported`, :data:`FOLDERS`.
"""

from oasis_monai.workflows.nnunet.export import FOLDERS, Exported, export_nnunet

__all__ = ["FOLDERS", "Exported", "export_nnunet"]
