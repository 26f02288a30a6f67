"""The errors that a user sees: one line each, with the case and field, what was expected and found, and what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the input.

    Args:
        case: case id or file name the fault is in; ``""`` when it concerns the whole data set or the configuration.
        field: the header field, file or configuration key.
        expected: what was expected there.
        found: what was found.
        remedy: what the user can do about it.
        severity: ``"error"`` (the case cannot be used) or ``"warning"``.
    """

    case: str
    field: str
    expected: str
    found: str
    remedy: str
    severity: str = "error"

    def __str__(self) -> str:
        where = f"{self.case}: " if self.case else ""
        line = f"{where}{self.field}: expected {self.expected}, found {self.found}; {self.remedy}"
        return " ".join(line.split())  # header bytes may carry line breaks; a fault is one line


class OasisError(Exception):
    """Base of every error that is the input's or the machine's fault, not the program's. Its text is for the user.

    Examples:
        >>> import oasis_monai
        >>> try:
        ...     model = oasis_monai.load_model("models/liver")
        ... except oasis_monai.OasisError as error:
        ...     print(error)
        model: expected a folder written by `oasis-monai train`, found models/liver without a readable model.json; ...
    """


class DataError(OasisError):
    """One or several faults in the input data; its text has one line per fault.

    Args:
        faults: each with ``case``, ``field``, ``expected``, ``found`` and ``remedy``.

    Examples:
        >>> import numpy as np
        >>> import oasis_monai
        >>> model = oasis_monai.load_model("models/prostate")
        >>> try:
        ...     result = model.segment(np.ones((64, 64, 20)))
        ... except oasis_monai.DataError as error:
        ...     print([fault.field for fault in error.faults], error)
        ['affine'] array: affine: expected (4, 4), voxel index -> RAS+ millimetres, found none; give affine=...
    """

    def __init__(self, faults: Fault | Sequence[Fault]) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(str(f) for f in self.faults))

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send exceptions back
        return (type(self), (self.faults,))


class ConfigError(OasisError):
    """A setting that cannot work.

    Args:
        key: the setting, with its groups (``training.lr``).
        expected: what it must be.
        found: what it is.
        remedy: what to do.

    Examples:
        >>> import oasis_monai
        >>> try:
        ...     settings = oasis_monai.build_settings({"data": "promise12", "folds": "random"})
        ... except oasis_monai.ConfigError as error:
        ...     print(error.key, error.found, error.expected, sep=", ")
        folds, random, one of ['patient', 'centre', 'file', 'slice']
    """

    def __init__(self, key: str, expected: str, found: object, remedy: str = "change it in the configuration") -> None:
        self.key, self.expected, self.found, self.remedy = key, expected, found, remedy
        super().__init__(f"{key}: expected {expected}, found {found!r}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.key, self.expected, self.found, self.remedy))


_REMEDIES = {
    errno.ENOSPC: "Free some space and run the same command again; finished work is kept.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.EACCES: "Correct the permissions, or choose another folder.",
    errno.EPERM: "Correct the permissions, or choose another folder.",
}
_REMEDIES |= dict.fromkeys((errno.EDQUOT, errno.EFBIG), _REMEDIES[errno.ENOSPC])


def system_error_message(error: OSError) -> str:
    """Describe what the operating system refused (a full disk, a folder that cannot be written) and what to do, in one line."""
    remedy = _REMEDIES.get(error.errno or 0, "Correct that and run the same command again.")
    line = f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}. {remedy}"
    return " ".join(line.split())


@contextlib.contextmanager
def with_case_in_errors(what: str) -> Iterator[None]:
    """Add the case or network being processed to any error that is not the input's (those name their case themselves)."""
    try:
        yield
    except OasisError:
        raise
    except Exception as error:
        error.add_note(f"while at {what}")
        raise
