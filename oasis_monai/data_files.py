"""What a data set's YAML may say: it can come from someone else, so it describes, and names no program and no place to write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from oasis_monai.errors import ConfigError

GROUPS = ("preprocessing", "features", "registration", "loss", "training", "augmentation", "network", "estimator")
DIRECTORY = ("--config-dir", "-cd")  # Hydra's option: a folder of the user's own settings

HEADER = re.compile(r"\s*#+\s*@\s*package\b\s*(\S*)")


def check_data_files(words: Sequence[str]) -> None:
    """Look at every YAML file below ``data`` of the folder that a command line names with ``--config-dir``.

    In the package ``_global_`` such a file has the keys ``data``, ``spatial_dims`` and :data:`GROUPS`; else it is what goes
    under ``data``. Its ``defaults`` name other data sets, or choose within these groups. A key ``_target_`` or another package
    is refused. What is no YAML is left to Hydra to tell.

    Raises:
        ConfigError: naming the file and the key.
    """
    for folder in _folders(words):
        for path in sorted((folder / "data").rglob("*.yaml")):
            _check(path)


def _folders(words: Sequence[str]) -> Iterator[Path]:
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option in DIRECTORY:
            yield Path(value if equals else after)


def _check(path: Path) -> None:
    import yaml

    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = yaml.load(text, yaml.BaseLoader)  # keys and strings, it builds nothing else
    except yaml.YAMLError:
        return
    packages = [found[1] for line in text.splitlines() if (found := HEADER.match(line))]
    if any(name != "_global_" for name in packages):
        raise ConfigError(str(path), "the package _global_, or none", packages[0])
    if packages and not HEADER.match(text.lstrip()):  # Hydra reads no header after another line
        raise ConfigError(str(path), "# @package _global_ in the first line", "it further down", "move it up")
    if not isinstance(content, dict):
        return
    for key in _keys(content):
        if key.startswith("_target_"):
            raise ConfigError(str(path), "a description of a data set, which names no program", key, "leave it out")
    allowed = {"data", "spatial_dims", "defaults", *GROUPS}
    if packages and (others := sorted(key for key in content if key not in allowed)):
        raise ConfigError(str(path), f"the keys {', '.join(sorted(allowed))}", others[0], "give it on the command line")
    entries = content.get("defaults", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        if not _chooses(entry):
            expected = f"names of data sets, or override /GROUP: NAME with one of {', '.join(GROUPS)}"
            raise ConfigError(f"{path}: defaults", expected, entry)


def _chooses(entry: Any) -> bool:
    """Whether an entry of ``defaults`` is another data set, or an option of one of :data:`GROUPS`."""
    if isinstance(entry, dict):
        return len(entry) == 1 and next(iter(entry)) in {f"override /{name}" for name in GROUPS}
    return isinstance(entry, str) and re.fullmatch(r"\w[\w./-]*", entry) is not None


def _keys(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield str(key)
            yield from _keys(value)
    elif isinstance(content, list):
        for value in content:
            yield from _keys(value)
