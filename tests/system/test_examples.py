"""The examples in the docstrings of the public names, each run as it stands, in a folder with scans and a trained model."""

import ast
import doctest
import inspect
import itertools
import pkgutil
import sys

import nibabel
import pytest

import oasis_monai
import oasis_monai.transforms
from oasis_monai.data.phantom import make_phantom, write_phantom
from tests.conftest import CASES, JOINT, TINY, merged

# a dictionary transform is an array transform under another name: the example of the sub-package shows how they are used
ARRAY_TRANSFORMS = [name for name in oasis_monai.transforms.__all__ if f"{name}Dict" in oasis_monai.transforms.__all__]
NAMES = [
    "oasis_monai",
    *(f"oasis_monai.{name}" for name in oasis_monai.__all__ if not name.startswith("_")),
    *(f"oasis_monai.transforms.{name}" for name in ARRAY_TRANSFORMS),
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(name):
    """The doctests of a public name, and of the methods of a class."""
    found = pkgutil.resolve_name(name)
    if not (inspect.isclass(found) or inspect.isfunction(found) or inspect.ismodule(found)):
        parsed = doctest.DocTestParser().get_doctest(documentation_of_value(name, found), {}, name, None, 0)
        return [parsed] if parsed.examples else []
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=inspect.isclass(found))
    return [test for test in finder.find(found, name, module=False, globs={}) if test.examples]


def documentation_of_value(name, value):
    """The text after the assignment of a module's value, where Python keeps none."""
    short = name.rpartition(".")[2]
    for module in [m for key, m in sys.modules.items() if key.startswith("oasis_monai.") and vars(m).get(short) is value]:
        lines = ast.parse(inspect.getsource(module)).body
        for line, after in itertools.pairwise(lines):
            own = getattr(line, "targets", [getattr(line, "target", None)])
            if any(getattr(target, "id", None) == short for target in own) and isinstance(after, ast.Expr):
                return ast.literal_eval(after.value)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the examples speak of: ``data/prostate`` and ``data/new_centre`` (labelled), ``scan.nii.gz``, two more in ``scans``,
    ``models/prostate``."""
    base = tmp_path_factory.mktemp("examples")
    write_phantom(base / "data/prostate", cases=CASES, size="tiny")
    write_phantom(base / "data/new_centre", cases=3, size="tiny", seed=5)
    (base / "scans").mkdir()
    for index, path in ((20, "scan.nii.gz"), (21, "scans/first.nii.gz"), (22, "scans/second.nii.gz")):
        scan = make_phantom(index, size="tiny")
        nibabel.save(nibabel.Nifti1Image(scan.image, scan.affine), base / path)
    data = {"root": str(base / "data/prostate"), "layout": "promise12", "labels": {"prostate": 1}}
    options = merged(TINY, JOINT, {"data": data, "cache": str(base / "outputs/cache")})
    oasis_monai.train(base / "models/prostate", {k: v for k, v in options.items() if k not in ("n", "methods")})
    return base


def test_every_public_name_has_an_example():
    assert [name for name in NAMES if not any(test.name == name for test in examples(name))] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    told = []
    for test in examples(name):
        assert not any(doctest.SKIP in example.options for example in test.examples)
        doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=told.append)
    assert "".join(told) == ""


def test_an_example_that_is_wrong_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(wrong, out=lambda _: None).failed == 1
