"""Every command that the documentation and the benchmarks' own docstrings name exists and takes the options that are shown."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if "__main__" in path.read_text()]


def commands(path):
    """Every ``python -m benchmarks...`` of a file, as words; the brackets round what may be left out are removed."""
    found = re.findall(r"python -m (benchmarks\.[^`\n]*)", path.read_text())
    return [shlex.split(re.sub(r"[][]", "", text), comments=True) for text in found]


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


IN_PAGES = [(path.name, words) for path in PAGES for words in commands(path)]


@pytest.mark.parametrize("words", [words for _, words in IN_PAGES], ids=[f"{name}-{words[0]}" for name, words in IN_PAGES])
def test_a_command_of_a_page_takes_its_options(words):
    parser = importlib.import_module(words[0]).parser()
    if len(words) > 1:  # some sentences name the command only
        parser.parse_args(words[1:])


@pytest.mark.parametrize("path", SCRIPTS, ids=module_name)
def test_a_benchmark_says_first_how_it_is_run(path):
    module = importlib.import_module(module_name(path))
    line = module.__doc__.splitlines()[2]
    assert line.startswith(f"    python -m {module.__name__} ")
    module.parser().parse_args(shlex.split(re.sub(r"[][]", "", line))[3:])
