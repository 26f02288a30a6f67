"""Check the YAML files that describe data sets, before Hydra reads them.

Such a file can come from someone else. It may describe data, but name no program and no place to write to.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from oasis_monai.utils.config import check_renamed
from oasis_monai.utils.errors import ConfigError

GROUPS = ("preprocessing", "features", "registration", "loss", "training", "augmentation", "network", "joint")
DIRECTORY = ("--config-dir", "-cd")  # Hydra's option: a folder of the user's own settings
HEADER = re.compile(r"\s*#+\s*@\s*package\b\s*(\S*)")


def check_data_files(words: Sequence[str]) -> None:
    """Look at every YAML file below ``data`` of the folder that a command line names with ``--config-dir``, and below those of
    :data:`GROUPS` there, which such a file may choose from.

    In the package ``_global_`` a data set's file has the keys ``data``, ``spatial_dims`` and :data:`GROUPS`; all others go
    under the key of their folder. Its ``defaults`` name other data sets, or choose within these groups. A key ``_target_``,
    another package or a file elsewhere is refused; so is, where the command line chooses it, a file that is no YAML in UTF-8 or
    that has keys out of place or of an older version.

    Raises:
        ConfigError: naming the file and the key.
    """
    for folder in _folders(words):
        for group in ("data", *GROUPS):
            for path in _below(folder / group):
                _check(path, group, any(_names(word.partition("=")[2], path.stem) for word in words))


def _folders(words: Sequence[str]) -> Iterator[Path]:
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if len(option) > len("--config-") and DIRECTORY[0].startswith(option):  # argparse takes what is left of a word
            option = DIRECTORY[0]
        if option in DIRECTORY:
            yield Path(value if equals else after)


def _below(folder: Path) -> list[Path]:
    """The YAML files of a folder and of those below it, links followed as Hydra follows them."""
    return sorted(
        Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names if name.endswith(".yaml")
    )


def _names(value: str, name: str) -> bool:
    """Whether an override's value chooses a file of this name, alone or among others."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", value) is not None


def _check(path: Path, group: str, chosen: bool) -> None:
    import yaml

    text = _text(path, chosen)
    try:
        content = yaml.load(text, yaml.BaseLoader)  # keys and strings, it builds nothing else
    except yaml.constructor.ConstructorError as error:  # well-formed, so it might be something to another reader
        raise ConfigError(str(path), "plain values", error.problem or "others") from error
    except yaml.YAMLError as error:
        if not chosen:  # nothing reads it
            return
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = f"{getattr(error, 'problem', None) or 'something else'}{where}"
        raise ConfigError(str(path), "YAML", problem, "correct that line, its indentation or its brackets") from error
    packages = [found[1] for line in text.splitlines() if (found := HEADER.match(line))]
    if any(name != "_global_" or group != "data" for name in packages):
        raise ConfigError(str(path), "the package _global_, or none" if group == "data" else "no package", packages[0])
    if packages and not HEADER.match(text.lstrip()):  # Hydra reads no header after another line
        raise ConfigError(str(path), "# @package _global_ in the first line", "it further down", "move it up")
    if not isinstance(content, dict):
        return
    for key in _dotted(content if packages else {group: content}) if chosen else ():
        try:
            check_renamed(key.removeprefix("override /").removeprefix("override "))
        except ConfigError as error:
            raise ConfigError(f"{path}: {key}", error.expected, error.found, error.remedy) from None
    for key in _keys(content, set()):
        if key.startswith("_target_"):
            raise ConfigError(str(path), "a description of a data set, which names no program", key, "leave it out")
    if chosen and group == "data" and not packages and (misplaced := sorted({"data", *GROUPS} & set(content))):
        raise ConfigError(
            str(path), f"# @package _global_ in the first line, as there is {misplaced[0]}", "none", "add that line"
        )
    allowed = {"data", "spatial_dims", "defaults", *GROUPS}
    if packages and (others := sorted(key for key in content if key not in allowed)):
        raise ConfigError(str(path), f"the keys {', '.join(sorted(allowed))}", others[0], "give it on the command line")
    entries = content.get("defaults", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        if not _chooses(entry):
            expected = f"names of data sets, or override /GROUP: NAME with one of {', '.join(GROUPS)}"
            raise ConfigError(f"{path}: defaults", expected, entry)


def _text(path: Path, chosen: bool) -> str:
    """A file's text without the byte-order mark that Windows programs put before it.

    Raises:
        ConfigError: the command line chooses the file, and it is not UTF-8.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if chosen:
            utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            found = "UTF-16" if utf16 else f"another byte in line {data[: error.start].count(10) + 1}"
            raise ConfigError(str(path), "text in UTF-8", found, "save the file again as UTF-8 in your editor") from error
        return data.decode("utf-8", "replace")


def _chooses(entry: Any) -> bool:
    """Whether an entry of ``defaults`` is another data set, or an option of one of :data:`GROUPS`."""
    name = entry
    if isinstance(entry, dict):
        if len(entry) != 1 or next(iter(entry)) not in {f"override /{name}" for name in GROUPS}:
            return False
        (name,) = entry.values()
    return isinstance(name, str) and re.fullmatch(r"(?!.*\.\.)\w[\w./-]*", name) is not None


def _dotted(content: dict[str, Any]) -> Iterator[str]:
    """The keys of a file's groups and of what they hold, as on the command line, and the groups its ``defaults`` choose from."""
    for group, values in content.items():
        yield str(group)
        if isinstance(values, dict):
            yield from (f"{group}.{key}" for key in values)
    defaults = content.get("defaults", [])
    for entry in defaults if isinstance(defaults, list) else []:
        yield from map(str, entry if isinstance(entry, dict) else ())


def _keys(content: Any, seen: set[int]) -> Iterator[str]:
    """All keys; a part that an alias repeats is looked at once."""
    if id(content) in seen or not isinstance(content, dict | list):
        return
    seen.add(id(content))
    for value in content.values() if isinstance(content, dict) else content:
        yield from _keys(value, seen)
    yield from map(str, content if isinstance(content, dict) else ())
