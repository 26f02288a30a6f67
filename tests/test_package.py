"""The front door of the package: quick to import, complete, and the same by every way of importing."""

import pytest

import oasis_monai
from tests.helpers.command import python

HEAVY = ("torch", "monai", "numpy", "pandas", "hydra", "itk", "nibabel", "matplotlib", "scipy")


def test_the_import_takes_no_time_and_no_torch():
    code = (
        "import time; start = time.perf_counter(); import oasis_monai; seconds = time.perf_counter() - start\n"
        f"import sys; print(seconds, *(name for name in {HEAVY} if name in sys.modules))"
    )
    found = [python(code).split() for _ in range(3)]
    assert found[0][1:] == []
    assert min(float(seconds) for seconds, *_ in found) < 0.1  # a busy machine may be late, but not three times


def test_every_name_is_listed_and_found():
    assert set(oasis_monai.__all__) <= {*dir(oasis_monai), "__version__"}
    assert len(oasis_monai.__all__) == len(set(oasis_monai.__all__)) > 20
    for name in oasis_monai.__all__:
        assert getattr(oasis_monai, name) is not None
    for name in oasis_monai.transforms.__all__:
        assert callable(getattr(oasis_monai.transforms, name))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = oasis_monai.no_such_name


def test_a_fresh_interpreter_finds_names_and_sub_packages():
    code = (
        "import oasis_monai\n"
        "print(oasis_monai.errors.ConfigError is oasis_monai.ConfigError, 'load_model' in dir(oasis_monai))\n"
        "print(oasis_monai.transforms.LoadVolume.__name__)"
    )
    assert python(code).split() == ["True", "True", "LoadVolume"]


def test_import_star():
    code = "from oasis_monai import *; print(callable(train), callable(load_model), issubclass(ConfigError, OasisError))"
    assert python(code).split() == ["True"] * 3
