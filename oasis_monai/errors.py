"""The exceptions a user of the library may meet; see :mod:`oasis_monai.utils.errors`."""

from oasis_monai.utils.errors import ConfigError, DataError, Fault, OasisError

__all__ = ["ConfigError", "DataError", "Fault", "OasisError"]
