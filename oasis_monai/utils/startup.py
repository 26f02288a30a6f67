"""Import MONAI faster, without the optional packages that a command does not use."""

from __future__ import annotations

import sys

UNUSED = ("ignite", "mlflow", "torch.utils.tensorboard", "matplotlib.pyplot", "pandas", "scipy.signal", "scipy.stats")
"""What MONAI imports wherever it is installed, for its training engines and what they record, pictures, tables, filters and
statistics: two thirds of the time of its import. It does without where one is absent."""


def import_monai_lightly() -> None:
    """Import MONAI as if :data:`UNUSED` were not installed.

    Only for the process of a command, which ends: parts of MONAI that need one of these packages stay unusable in it. The
    packages themselves can be imported afterwards.
    """
    if "monai" in sys.modules:
        return
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import raises ModuleNotFoundError
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
