"""A private name of the package is used only in the tests of the module that defines it: others go through what is public."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "oasis_monai"
PATCHES = ("setattr", "delattr", "setitem", "getattr", "hasattr")


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_replace"  # of a named tuple


def defined(text):
    """Private names that a module's text defines: functions, classes, constants, fields, and what it sets on ``self``."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def used(text):
    """(line, private name) of each that a test imports, reads of anything but ``self``, or replaces by its name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in PATCHES:
            for word in (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)):
                yield from ((node.lineno, part) for part in word.split("."))


def is_own(test, module):
    """Whether ``test`` (of tests/) is a test of ``module`` (of the package): ``a/test_b*.py`` of ``a/b.py`` or ``a/b/c.py``."""
    *folders, name = test.with_suffix("").parts
    *packages, last = module.with_suffix("").parts
    return any(
        folders == packages[:depth] and f"{name}_".startswith(f"test_{([*packages, last][depth]).strip('_')}_")
        for depth in range(len(packages) + 1)
    )


OWNERS: dict[str, set[Path]] = {}
for _path in PACKAGE.rglob("*.py"):
    for _name in defined(_path.read_text()):
        OWNERS.setdefault(_name, set()).add(_path.relative_to(PACKAGE))


def foreign(test, text):
    """Every use of a private name in ``test`` that belongs to another module than the one it tests."""
    return [
        f"{test}:{line}: {name} of {', '.join(map(str, sorted(OWNERS[name])))}"
        for line, name in used(text)
        if is_private(name) and name in OWNERS and not any(is_own(test, module) for module in OWNERS[name])
    ]


def test_no_test_uses_a_private_name_of_another_module():
    found = [f for path in sorted(TESTS.rglob("*.py")) for f in foreign(path.relative_to(TESTS), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "from oasis_monai.utils.processes import _raise_named",
        "processes._raise_named(tmp_path)",
        "monkeypatch.setattr(processes, '_raise_named', 1)",
        "monkeypatch.setattr('oasis_monai.utils.processes._raise_named', 1)",
    ],
)
def test_a_use_is_found_wherever_it_is_no_test_of_that_module(line):
    assert "_raise_named" in defined((PACKAGE / "utils/processes.py").read_text())
    for place in ("utils/test_files.py", "system/test_processes.py", "helpers/runs.py", "utils/test_processesx.py"):
        assert len(foreign(Path(place), line)) == 1, place
    for place in ("utils/test_processes.py", "utils/test_processes_killed.py"):
        assert foreign(Path(place), line) == []
