"""The curves of trainings: read, named and drawn as they are."""

import numpy as np
import pandas as pd
import pytest

from oasis_monai.evaluation.training_curves import parts_of_name, read_histories, training_curves
from oasis_monai.utils.errors import DataError


def write(folder, name, **more):
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame({"step": [10, 20, 30], "seconds": [1, 2, 3], "lr": 0.1, "loss": [3.0, 2.0, 1.0], **more})
    table.to_csv(folder / f"{name}.csv", index=False)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("registration_network", ("registration network", None, "")),
        ("fold12-slice_network-member3", ("slice network", 12, "member3")),
        ("fold1-U-Net3D", ("U-Net3D", 1, "")),
        ("fold2-self-training-round1-slice_network", ("self-training", 2, "round1-slice_network")),
    ],
)
def test_names_tell_network_fold_and_part(name, parts):
    assert parts_of_name(name) == parts


def test_every_network_has_a_panel_and_every_fold_a_line(tmp_path):
    assert read_histories(tmp_path / "nothing") == {}
    assert training_curves({}) is None
    for fold in (1, 2):
        write(tmp_path / "t", f"fold{fold}-volume_network", validation_dice=[np.nan, 0.5, 0.25 * fold])
        write(tmp_path / "t", f"fold{fold}-U-Net3D")
        write(tmp_path / "t", f"fold{fold}-slice_network-member0")
    figure = training_curves(read_histories(tmp_path / "t"))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown if axes.get_title()] == ["U-Net3D", "slice network", "volume network"]
    assert len(shown) == 6
    (volume,) = [axes for axes in shown if axes.get_title() == "volume network"]
    assert [line.get_ydata().tolist() for line in volume.lines] == [[3, 2, 1]] * 2
    drawn = [line.get_xydata().tolist() for axes in shown if axes.get_ylim() == (0, 100) for line in axes.lines]
    assert drawn == [[[20, 50], [30, 25]], [[20, 50], [30, 50]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fold 1", "fold 2"]


def test_without_a_held_out_dice_there_is_only_the_loss(tmp_path):
    write(tmp_path / "t", "slice_network")
    figure = training_curves(read_histories(tmp_path / "t"))
    assert len(figure.axes) == 1
    assert not figure.legends


@pytest.mark.parametrize("text", ["", "case,dsc\na,1\n", "step,seconds,loss\n"])
def test_a_file_that_is_no_history_is_named(tmp_path, text):
    (tmp_path / "fold1-x.csv").write_text(text)
    with pytest.raises(DataError, match=r"fold1-x\.csv"):
        read_histories(tmp_path)
