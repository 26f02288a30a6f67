"""What was found in label files is kept: read once while the files stay as they are, and found anew after any change."""

import pytest

from oasis_monai.data.label_cache import find_once


@pytest.fixture
def asked(tmp_path):
    """Asks for the numbers of a file; how often it was read is the length of ``read``."""
    file, read = tmp_path / "label", []
    file.write_text("1 2")

    def find():
        read.append(file.read_text())
        return [int(number) for number in file.read_text().split()]

    return lambda *more, cache=tmp_path / "cache": find_once([file], find, cache, more), file, read


def test_files_are_read_once_while_they_stay(asked):
    ask, file, read = asked
    assert ask() == ask() == [1, 2]
    assert len(read) == 1
    file.write_text("3 2 3")
    assert ask() == [2, 3]
    assert ask("other labels") == [2, 3]
    assert len(read) == 3
    assert ask(cache=None) == [2, 3]
    assert len(read) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sets": [7]}', '{"values": null}'])
def test_what_another_version_kept_is_found_anew(asked, tmp_path, text):
    ask, _, read = asked
    ask()
    (kept,) = (tmp_path / "cache" / "labels").iterdir()
    kept.write_text(text)
    assert ask() == [1, 2]
    assert len(read) == 2
    assert ask() == [1, 2]
    assert len(read) == 2
