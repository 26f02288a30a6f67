"""What a user tells of structures for the formats that name them: colours and codes, in a mapping or a YAML or JSON file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from oasis_monai.data.formats.structure import ANATOMICAL, TISSUE, Code, Colour, Look
from oasis_monai.utils.errors import ConfigError

KEYS = ("color", "code", "category")
HEX = re.compile(r"#[0-9a-fA-F]{6}")
CODE = "[VALUE, SCHEME, MEANING], such as [41216001, SCT, Prostate]"


def read_segments(given: str | Path | Mapping[str, Any] | None) -> dict[str, Look]:
    """Colours and codes by structure.

    Args:
        given: structure -> mapping with any of ``color`` (``[red, green, blue]`` of 0 to 255, or ``"#e69f00"``), ``code`` and
            ``category`` (``[value, scheme, meaning]`` of a code in DICOM, such as one of SNOMED CT); or the path of a YAML or
            JSON file with that. None: nothing is told. An entry may also be a :class:`.Look`.

    Raises:
        ConfigError: an absent or unreadable file, an unknown key, a value that is no colour or code.

    Examples:
        >>> looks = read_segments({"prostate": {"color": "#e69f00", "code": [41216001, "SCT", "Prostate"]}})
        >>> looks["prostate"].color, looks["prostate"].code.value
        ((230, 159, 0), '41216001')
    """
    content = _content(Path(given)) if isinstance(given, str | Path) else {} if given is None else given
    if not isinstance(content, Mapping):
        raise ConfigError("segments", "a map of each structure to its color, code and category", type(content).__name__)
    return {str(name): _look(f"segments.{name}", entry) for name, entry in content.items()}


def plain_segments(looks: Mapping[str, Look]) -> dict[str, dict[str, Any]]:
    """What :func:`read_segments` gave, as plain values that it reads again."""
    return {
        name: {
            "color": None if look.color is None else list(look.color),
            "code": list(astuple(look.code)),
            "category": list(astuple(look.category)),
        }
        for name, look in looks.items()
    }


def _content(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))  # JSON is YAML
    except FileNotFoundError:
        raise ConfigError("segments", "a YAML or JSON file", f"no file {path}", "correct the path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())[:160]
        raise ConfigError("segments", "a YAML or JSON file in UTF-8", f"{path.name}: {found}", "correct the file") from error


def _look(key: str, entry: Any) -> Look:
    if isinstance(entry, Look):
        return entry
    if not isinstance(entry, Mapping):
        raise ConfigError(key, f"a map with any of {', '.join(KEYS)}", entry)
    if unknown := [name for name in entry if name not in KEYS]:
        raise ConfigError(f"{key}.{unknown[0]}", f"one of {', '.join(KEYS)}", "an unknown key", "correct or remove it")
    color, code, category = (entry.get(name) for name in KEYS)
    return Look(
        None if color is None else _color(f"{key}.color", color),
        TISSUE if code is None else _code(f"{key}.code", code),
        ANATOMICAL if category is None else _code(f"{key}.category", category),
    )


def _color(key: str, value: Any) -> Colour:
    if isinstance(value, str) and HEX.fullmatch(value):
        value = [int(value[at : at + 2], 16) for at in (1, 3, 5)]
    whole = isinstance(value, list | tuple) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
    if not whole:
        raise ConfigError(key, "[red, green, blue] of 0 to 255, or #RRGGBB in quotes", value)
    return value[0], value[1], value[2]


def _code(key: str, value: Any) -> Code:
    words = [str(word).strip() for word in value] if isinstance(value, list | tuple) else []
    fits = len(words) == 3 and all(words) and len(words[0]) <= 16 and len(words[1]) <= 16 and len(words[2]) <= 64
    if not fits or any(mark in word for word in words for mark in "\\^~|\r\n"):
        raise ConfigError(key, f"{CODE} of up to 16, 16 and 64 characters", value)
    return Code(*words)
