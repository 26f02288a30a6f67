"""The exceptions that the library raises. :class:`OasisError` is the base class of the two others.

Examples:
    >>> import oasis_monai
    >>> from oasis_monai import errors
    >>> try:
    ...     model = oasis_monai.load_model("models/prostate", device="cuda:99")
    ... except errors.OasisError as error:
    ...     print(error)
    device: expected cpu, auto, or a GPU this machine has, found 'cuda:99'; set device=auto (...)
"""

from oasis_monai.utils.errors import ConfigError, DataError, Fault, OasisError

__all__ = ["ConfigError", "DataError", "Fault", "OasisError"]
