"""Words of the command line before Hydra sees them, and errors after the task has failed."""

import re
import typing
from pathlib import Path

import pytest

from oasis_monai.__main__ import IDS, NAMES, PATHS, _arguments, _explained, _plain
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.settings import GROUPS, Settings
from oasis_monai.workflows.crossval import crossval


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], []),
        (["n=2"], ["n=2"]),
        (["train", "n=2"], ["n=2", "task=train"]),
        (["n=2", "check"], ["n=2", "task=check"]),
        (["export-nnunet", "output=out"], ["output=out", "task=export-nnunet"]),
        (["export_nnunet", "output=out"], ["output=out", "task=export-nnunet"]),
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


HARD = [
    *("scan (1).nii.gz", "it's.mha", "a=b.nii", "{x}.mhd", "[1].mhd", "größe", "größe 2.nii", "日本", "#1", "a;b", "^", "%", "!"),
    *("a\\ b.nii", "a\\'.nii", "c\\ (d)\\", "\\\\server\\x", "C:\\Daten\\neu", "a\\\\'b", '"', "'", "''a", "a'b\"c", '"q" x'),
    *("~x", "~", "$", "a$b", "$HOME", "${x", "a${", "}", "a  b", "- x", "a: b", "x:y", "1:30", "@x", "*.nii", "a|b", "..", "&"),
    *("1", "1.5", "1e3", "007", "1_000", "true", "No", "nan", "-inf", "+5", "0x1f", "nullset", "(a)", "glob", "a, b.nii", "a,b"),
]
TYPED = [*sorted(PATHS), "data", "experiment", "data.name", "data.citation", "case", "remove", "+model", "download.url"]


def taken(word, key):
    """The value that Hydra and OmegaConf make of a word, alone and as a sweep hands it to its jobs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    (found,) = OverridesParser.create().parse_overrides([word])
    (again,) = OverridesParser.create().parse_overrides([f"{key}={found.get_value_element_as_str()}"])
    values = [OmegaConf.create({"a": one.value()}).a for one in (found, again)]
    assert values[0] == values[1]
    return values[0]


@pytest.mark.parametrize("key", TYPED)
def test_a_path_a_name_and_a_text_are_taken_as_they_are_typed(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in HARD:
        if text == "~" and key.lstrip("+") in PATHS:
            continue
        (word,) = _arguments([f"{key}={text}"])
        assert taken(word, key) == text
        if "," not in text:
            _, word = _arguments(["-m", f"{key}={text}"])
            assert taken(word, key) == text


def test_a_path_that_is_there_is_no_interpolation_no_sweep_and_no_quotation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("${task}", "a,b", "'a'", "glob(x)", "~"):
        Path(text).mkdir()
        _, word = _arguments(["-m", f"input={text}"])
        assert taken(word, "input") == text


def test_a_home_folder_is_found_where_the_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me (1)")
    (word,) = _arguments(["data.root=~/scans"])
    assert taken(word, "data.root") == "/home/me (1)/scans"


def test_values_of_a_sweep_are_quoted_one_by_one():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    _, word = _arguments(["-m", "data.root=a (1),'b,c',größe"])
    (found,) = OverridesParser.create().parse_overrides([word])
    assert [value.text for value in found.sweep_iterator()] == ["a (1)", "b,c", "größe"]


def test_ids_in_a_list_are_texts():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (word,) = _arguments(["data.include=[007, 12, 1e3, Pat 01 (v2), p=3, 'a,b', größe]"])
    (found,) = OverridesParser.create().parse_overrides([word])
    assert found.value() == ["007", 12, "1e3", "Pat 01 (v2)", "p=3", "a,b", "größe"]


def test_every_setting_that_is_a_text_is_typed_as_it_is_or_is_one_of_a_few_words():
    """A new one has to be put into one of these."""
    words = {
        "folds",
        "device",
        "preprocessing.name",
        "preprocessing.intensity",
        "features.name",
        "features.distance",
        "data.layout",
        "preprocessing.slice_axis",
        "postprocessing",
        "self_training.views",
        "tracking",
        "views",
    }
    words |= {"registration.body", "joint.fusion", "loss.similarity", "loss.smooth", "joint.volume_network", "training.schedule"}
    found = set()
    for group, kind in [("", Settings), *GROUPS.items()]:
        hints = typing.get_type_hints(kind)
        found |= {f"{group}.{key}".lstrip(".") for key, hint in hints.items() if hint in (str, str | None)}
    assert found == words | (found & (PATHS | NAMES | IDS))
    assert {"data.root", "cache", "features.weights", "data.name"} <= found


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("data.image={patient}/{scan}_t2.nii.gz", "image", "{patient}/{scan}_t2.nii.gz"),
        ("data.image={case}", "image", "{case}"),
        ("data.image={T2: {p}/t2.nii, ADC: {p}/adc.nii}", "image", {"T2": "{p}/t2.nii", "ADC": "{p}/adc.nii"}),
        ("data.image={T2: '{p}/t2, x.nii', ADC: {p}/adc.nii}", "image", {"T2": "{p}/t2, x.nii", "ADC": "{p}/adc.nii"}),
        ("data.image=[{p}/t2.nii, {p}/adc (1).nii]", "image", ["{p}/t2.nii", "{p}/adc (1).nii"]),
        ("data.label={p}/Größe (1)/${x}.nii", "label", "{p}/Größe (1)/${x}.nii"),
        (r"data.patient=^([^_]+)_\d{1,2}$", "patient", r"^([^_]+)_\d{1,2}$"),
        ("data.centre=([A-Z]+)", "centre", "([A-Z]+)"),
        ("data.centre=[A-C](.)[x]", "centre", "[A-C](.)[x]"),
        (r"data.centre={A: Case(0[1-9]|1\d{1,2})$, B b: x\,y}", "centre", {"A": r"Case(0[1-9]|1\d{1,2})$", "B b": r"x\,y"}),
        ("data.channels=[T2,ADC]", "channels", ["T2", "ADC"]),
        ("data.patient=null", "patient", None),
    ],
)
@pytest.mark.parametrize("options", [[], ["data=promise12"]])
def test_templates_and_regular_expressions_are_taken_as_typed(word, key, value, options):
    from hydra import compose, initialize_config_module

    with initialize_config_module("oasis_monai.conf", version_base="1.3"):
        made = compose("config", overrides=_arguments([*options, word]))
    assert _plain(made)["data"][key] == value
    sweep = ["-m", *options, word]
    assert _arguments(sweep) == ["-m", *_arguments([*options, word])]


def test_what_is_no_plain_path_is_left_as_it_is():
    words = ["input=a/b-1_2.nii.gz", "input='x (1)'", "n=[1,2]", "cache=null", "name=(x)", "methods=[FwoW]"]
    assert _arguments(words) == words
    assert _arguments(["-m", "data=glob(*)", "model=a,b"]) == ["-m", "data=glob(*)", "model=a,b"]
    assert _arguments(["cache=${oc.env:HOME}/x (1)"]) == ["cache='${oc.env:HOME}/x (1)'"]


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["data.labels={gland: 1}"], {"gland": 1}),
        (["data.labels={central gland:1,cyst:3}"], {"central gland": 1, "cyst": 3}),
        (["data.labels={größe: 2, 'a, b': 1, T2 (links): 3}"], {"größe": 2, "a, b": 1, "T2 (links)": 3}),
        (["+data.labels={gland: 1}"], {"gland": 1}),
        (["++data.labels={gland: 1}"], {"gland": 1}),
        (["data=phantom", "+data.labels.cyst=2"], {"prostate": 1, "cyst": 2}),
        (["~data.labels", "+data.labels={gland: 1}"], {"gland": 1}),
        (["data=hippocampus", "data.labels={hippocampus: 1}"], {"hippocampus": 1}),
        (["data.labels={gland: 1}", "data.labels={a: 1}"], {"a": 1}),
        (["data=phantom", "data.labels.prostate=2"], {"prostate": 2}),
        (["data.labels={gland: x}"], {"gland": "x"}),
    ],
)
def test_labels_of_the_command_line_take_the_place_of_those_of_the_data_set(words, labels):
    from hydra import compose, initialize_config_module

    with initialize_config_module("oasis_monai.conf", version_base="1.3"):
        made = compose("config", _arguments(words))
    assert _plain(made)["data"]["labels"] == labels


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
            f"{note}: out of memory (MemoryError). Lower align_batch, training.batch, workers or preprocessing.size, "
            "or close other programs."
        ],
    ]
