"""Words of the command line before Hydra sees them, and errors after the task has failed."""

import re
from pathlib import Path

import pytest

from oasis_monai.__main__ import _arguments, _explained
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.workflows.crossval import crossval


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], []),
        (["n=2"], ["n=2"]),
        (["train", "n=2"], ["n=2", "task=train"]),
        (["n=2", "check"], ["n=2", "task=check"]),
        (["-m", "crossval", "n=1,2"], ["-m", "n=1,2", "task=crossval"]),
        (["--cfg", "job", "train"], ["--cfg", "job", "task=train"]),
        (["--config-dir", "train", "train"], ["--config-dir", "train", "task=train"]),
        (["-cn", "other"], ["-cn", "other"]),
        (["data=x", "-m", "n=1,2"], ["-m", "data=x", "n=1,2"]),
        (["n=3", "--cfg", "job", "k=2"], ["--cfg", "job", "n=3", "k=2"]),
        (["n=3", "--config-dir", "train", "train"], ["--config-dir", "train", "n=3", "task=train"]),
        (["+a=1", "~data", "report"], ["+a=1", "~data", "task=report"]),
    ],
)
def test_the_bare_word_is_the_task(words, found):
    from hydra._internal.utils import get_args_parser

    assert _arguments(words) == found
    overrides = get_args_parser().parse_args(found).overrides  # Hydra takes the order we give
    assert set(overrides) == {w for w in found if "=" in w or w.startswith("~")}


@pytest.mark.parametrize(
    "name",
    [
        "scan (1).nii.gz",
        "it's.mha",
        "a=b.nii",
        "{x}.mhd",
        "[1].mhd",
        "größe 2.nii",
        "a\\ b.nii",
        "a\\'.nii",
        "c\\ (d)\\",
        "a, b.nii",
    ],
)
def test_a_path_is_typed_as_it_is(name, tmp_path, monkeypatch):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    words = _arguments([f"input={name}", f"+model={name}"])
    assert [o.value() for o in OverridesParser.create().parse_overrides(words)] == [name, name]


def test_a_case_may_be_called_anything():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    names = ["Pat 01 (v2)", "p[9]", "p,11", "a=6", "o'neil"]
    words = _arguments([f"remove={name}" for name in names])
    assert [o.value() for o in OverridesParser.create().parse_overrides(words)] == names


def test_what_is_no_plain_path_is_left_as_it_is():
    words = ["input=a/b-1_2.nii.gz", "input='x (1)'", "model=a b,c d", "n=[1,2]", "cache=${oc.env:HOME}/x (1)", "name=(x)"]
    assert _arguments(words) == words


@pytest.mark.slow
def test_what_nobody_foresaw_names_its_case_and_memory_is_one_line_on_the_command_line(settings, tmp_path, monkeypatch):
    """An error of ours keeps its stack, with the case in it; memory that runs out anywhere is the machine's, and one line."""
    asked = settings(
        {"methods": ["FWAL"], "n": [1], "k": 2, "fold": 0, "data": {"include": ["Case00", "Case01", "Case02", "Case03"]}}
    )
    told = []
    for error in (RuntimeError("shapes differ"), MemoryError()):

        def broken(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Aligner, "fields", broken)
            with pytest.raises(type(error)) as caught:
                crossval(asked, tmp_path / "r", lambda _: None)
        (note,) = caught.value.__notes__
        assert re.fullmatch(r"while at Case0\d", note)
        told.append(_explained(caught.value))
    assert told == [
        [],
        [
            f"{note}: memory: expected enough for this, found none left (MemoryError); lower align_batch, training.batch, "
            "workers or preprocessing.size, or end other programs"
        ],
    ]
