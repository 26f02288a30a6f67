"""Values of the command line with any signs in them, as people type them."""

from __future__ import annotations

import re
from typing import Any

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
"""A text in quotes."""
MAP = re.compile(r"\{\s*[^{}:,]+?\s*:.*\}", re.DOTALL)  # a template such as {patient}/{scan} is none


def as_typed(text: str, lists: bool) -> Any:
    """A template or regular expression as people type it, or the map or list of some that it is.

    Args:
        text: the value of an option.
        lists: whether ``[a, b]`` is a list; else it is a regular expression.

    Examples:
        >>> from oasis_monai.utils.typed import as_typed
        >>> as_typed("{T2: {id}_t2.nii, ADC: {id}_adc.nii}", lists=True)
        {'T2': '{id}_t2.nii', 'ADC': '{id}_adc.nii'}
        >>> as_typed("{patient}/{scan}_t2.nii", lists=True)
        '{patient}/{scan}_t2.nii'
    """
    text = text.strip()
    if MAP.fullmatch(text):
        pairs = [part.partition(":") for part in outer_parts(text[1:-1])]
        return {_bare(key): _bare(value) for key, _, value in pairs}
    if lists and text[:1] == "[" and text[-1:] == "]":
        return [_bare(part) for part in outer_parts(text[1:-1])]
    return text


def outer_parts(text: str) -> list[str]:
    """A text split at its commas, but those in quotes or brackets."""
    parts, depth = [""], 0
    for token in re.findall(rf"{QUOTED.pattern}|\\.|.", text, re.DOTALL):
        depth += (token in "([{") - (token in ")]}")
        if token == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += token
    return [part for part in parts if part.strip()]


def _bare(text: str) -> str:
    text = text.strip()
    return text[1:-1] if QUOTED.fullmatch(text) else text
