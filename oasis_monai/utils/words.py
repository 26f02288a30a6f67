"""Lists of names in messages of one line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

SHOWN = 8
"""As many names are read in a line; of more, the first ones are given and the others counted."""
LONGEST = 400  # characters of one remark


def listed(words: Iterable[str], most: int = SHOWN) -> str:
    """Join words with commas; where there are many, the first ones and how many more there are.

    Examples:
        >>> listed(["liver", "spleen"]), listed(["liver", "spleen", "aorta", "colon"], 2)
        ('liver, spleen', 'liver, spleen and 2 more')
    """
    every = list(words)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def natural(text: str) -> str:
    """A key that sorts texts with numbers in them as people count.

    Examples:
        >>> sorted(["label_103", "label_13", "aorta"], key=natural)
        ['aorta', 'label_13', 'label_103']
    """
    return re.sub(r"\d+", lambda number: number[0].zfill(12), text)


def shortened(text: str, where: str, most: int = LONGEST) -> str:
    """The beginning of a remark that is too long for a line, and where the rest is to be found.

    Examples:
        >>> shortened("empty: no voxel of liver, spleen, aorta", "scan.json", 40)
        'empty: no voxel of liver, spleen, aorta'
        >>> shortened("empty: no voxel of liver, spleen, aorta", "scan.json", 36)
        'empty: no ... (more in scan.json)'
    """
    return textwrap.shorten(text, most, placeholder=f" ... (more in {where})")
