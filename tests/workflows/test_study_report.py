"""What a study reports of its learning curve."""

from oasis_monai.workflows import study_report as module
from tests.helpers import study_rows


def test_the_whole_fold_stands_for_a_size_that_asks_for_as_many():
    frame = study_rows.learning(sizes=(0, 4, 8))  # 10 cases, 5 folds: 8 train
    sized = module._sized(frame, 8)
    assert sorted(set(sized["train_cases"])) == [4, 8]
    at8 = sized[(sized["train_cases"] == 8) & (sized["method"] == "U-Net3D")]
    assert at8["dsc"].tolist() == frame[(frame["train_cases"] == 0) & (frame["method"] == "U-Net3D")]["dsc"].tolist()
