"""What MONAI's Model Zoo asks of a bundle beyond MONAI's own specification: a telling name, and a list of its large files.

(CONTRIBUTING.md of the Model Zoo; its other rules, keys and files, are met by :mod:`.configs` and :mod:`.write`.)
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from oasis_monai.utils.files import write_text

LARGEST = 25_000_000  # bytes of a file that the Model Zoo takes into its repository
LIST = "large_files.yml"
_NAME = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*_segmentation")
_OTHER = ("deepedit", "deepgrow", "detection", "classification")
"""Words by which MONAI Label takes a bundle for one of another kind; it looks for them before ``segmentation``."""


def name_note(name: str) -> str | None:
    """What is to be told of the name of a bundle's folder; None if the Model Zoo and MONAI Label take it for what it is.

    Examples:
        >>> from oasis_monai.workflows.bundle.zoo import name_note
        >>> name_note("prostate_mr_segmentation") is None
        True
    """
    if _NAME.fullmatch(name) and not any(word in name.lower() for word in _OTHER):
        return None
    return (
        f"note: the Model Zoo and MONAI Label want a folder called STRUCTURE_MODALITY_segmentation, such as "
        f"prostate_mr_segmentation, not {name}; rename it before you pass it on"
    )


def list_large_files(folder: Path) -> list[str]:
    """Write :data:`LIST` where files of a bundle are larger than :data:`LARGEST`, with their checksums. Their addresses are empty
    until somebody has uploaded them; MONAI downloads none that is there.

    Returns:
        Their paths within the bundle.
    """
    large = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > LARGEST)
    if not large:
        return []
    lines = [
        f"# Files of more than {LARGEST // 10**6} MB, which the Model Zoo does not take: upload each, and write its address here."
    ]
    lines.append("large_files:")
    for path in large:
        with path.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size / 10**6
        lines += [f'  - path: "{path.relative_to(folder).as_posix()}"  # {size:.1f} MB', '    url: ""']
        lines += [f'    hash_val: "{checksum}"', '    hash_type: "sha256"']
    write_text(folder / LIST, "\n".join(lines) + "\n")
    return [path.relative_to(folder).as_posix() for path in large]
