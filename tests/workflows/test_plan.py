"""The rules of the plan on made-up measures, the tuned values on real data, and what a run makes of a plan."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.segmentation.pipeline import number_of_atlases
from oasis_monai.settings import build, build_settings, composed
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.transforms.spatial import SLICE_AXES
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.planned import UNPLANNED, open_keys, without_nulls
from oasis_monai.workflows.fingerprint import Fingerprint, ScanMeasures, Structure
from oasis_monai.workflows.plan import Plan, plan_for, plan_settings, read_plan
from oasis_monai.workflows.plan_choice import Asked
from oasis_monai.workflows.plan_fine import FINE_VOXELS, kept_by
from oasis_monai.workflows.plan_grid import ANISOTROPIC, THIN_VOXELS, VOXELS, working_grid
from oasis_monai.workflows.plan_rules import choose
from oasis_monai.workflows.plan_sides import sided
from oasis_monai.workflows.plan_time import LEAST_STEPS, steps_within
from tests.helpers.command import run
from tests.helpers.real import real_data

BALL = Structure(30.0, (0.0, 0.0, 0.0), (30.0, 30.0, 30.0), 8.0, 100.0, 300.0)


def scan(spacing, shape, reach, **more):
    values = {"lowest": 0.0, "constant": 0.01, "bias": 0.05, "channels": 1, "structures": {1: BALL}}
    values.update(more)
    return ScanMeasures(tuple(map(float, spacing)), tuple(shape), tuple(map(float, reach)), **values)


def structure(**changes):
    return dataclasses.replace(BALL, **changes)


def found(*scans, names=("thing",), memory=24.0):
    return Fingerprint(tuple(scans), tuple(names), len(scans), memory, 2)


PROSTATES = [
    scan((0.55, 0.55, 2.2), (256, 256, 47), (31, 35, 35), bias=0.4),
    scan((0.7, 0.7, 3.0), (256, 256, 23), (29, 27, 28), bias=0.2),
    scan((1.25, 1.25, 3.6), (160, 160, 24), (42, 39, 43), bias=0.25),
    scan((1.25, 1.25, 3.6), (160, 160, 20), (30, 30, 32), bias=0.15),
]
CROPS = [scan((1, 1, 1), (35, 51, 35), (13, 20, 14), bias=0.1), scan((1, 1, 1), (43, 59, 47), (15, 24.5, 18.5), bias=0.15)]
BRAINS = [
    scan(
        (0.94, 1.5, 0.94), (256, 128, 256), (71, 96, 79), constant=0.87,
        structures={n: structure(thickness_mm=mm, width_mm=(140, 190, 150)) for n, mm in ((1, 2.3), (2, 2.8))},
    )
]  # fmt: skip
SPLEENS = [
    scan(
        (0.8, 0.8, 5), (512, 512, 100), (150, 120, 140), lowest=-1020.0,
        structures={1: structure(centre_mm=(-90, 10, 50), width_mm=(90, 100, 110), thickness_mm=14, low=-20, high=180)},
    )
]  # fmt: skip
KNEES = [scan((0.4, 0.4, 0.4), (384, 384, 160), (60, 60, 32))]
TINY = [scan((2, 2, 4), (64, 64, 12), (20, 18, 20)) for _ in range(3)]

FINE = {"volume_network": "DynU-Net3D", "volume_stride": [1, 1, 1]}
CHEAP = {"volume_network": "DynU-Net3D", "volume_stride": [2, 2, 2]}
USUAL = {"volume_network": "U-Net3D", "volume_stride": [2, 2, 1]}
TABLE = {  # scans, dims -> size, spacing, intensity, field stride, joint
    "prostates": (PROSTATES, 3, [96, 96, 32], [1, 1, 3], "local", [4, 4, 1], USUAL),
    "hippocampi": (CROPS, 3, [48, 64, 48], [1, 1, 1], "zscore", [2, 2, 2], FINE),
    "brains": (BRAINS, 3, [80, 80, 96], [2, 2, 2], "zscore", [2, 2, 2], CHEAP),
    "slices": (PROSTATES, 2, [96, 96], [1, 1], "local", [4, 4], {"atlases": 2, "slice_budget": 0.9, "volume_budget": 0.0}),
}


def config(*options, **more):
    return composed({"data.root": "nowhere", **(dict(options[0]) if options else {})}, more)


@pytest.mark.fast
@pytest.mark.parametrize("name", TABLE)
def test_what_was_tuned_by_hand_comes_out_of_the_rules(name):
    scans, dims, size, spacing, intensity, stride, joint = TABLE[name]
    plan = plan_for(found(*scans), config(spatial_dims=dims)).plan
    assert plan.values["preprocessing"]["size"] == size
    assert plan.values["preprocessing"]["spacing_mm"] == spacing
    assert plan.values["preprocessing"]["intensity"] == intensity
    assert plan.values["registration"]["field_stride"] == stride
    assert joint.items() <= plan.values["joint"].items()
    assert plan.values["augmentation"]["flip"] == 0.5
    assert all(choice.reason for choice in plan.choices)
    assert len(plan.lines()) <= 10


@pytest.mark.fast
def test_a_grid_on_which_true_labels_are_lost_gets_a_fine_one():
    asked = []

    def kept(dice):
        return lambda preprocessing: asked.append(preprocessing) or {"grey": 0.99, "csf": dice}

    brains = found(*BRAINS, names=("csf", "grey"))
    made = plan_for(brains, config(), kept=kept(0.896))
    assert (asked[0].size, asked[0].spacing_mm, asked[0].slice_axis) == ((80, 80, 96), (2.0, 2.0, 2.0), "coronal")
    values = made.plan.values["preprocessing"]
    assert values["fine_factor"] == [2, 2, 2]
    assert np.divide(values["spacing_mm"], values["fine_factor"]).tolist() == [1.0, 1.0, 1.5]
    assert made.settings.preprocessing.fine_size == (160, 160, 128)
    joint = made.settings.joint
    assert (joint.slice_budget, joint.volume_budget, joint.estimate_weight) == (0.65, 0.2, 1.0)
    (line,) = (line for line in made.plan.lines() if "fine_factor" in line)
    assert "the true label csf keeps a Dice of 89.6%, so slices are seen and labels fused in voxels of 1 x 1 x 1.5 mm" in line
    plain = plan_for(brains, config()).plan
    assert plan_for(brains, config()).settings.joint.estimate_weight == 0.75
    given = config({"joint.estimate_weight": 0.5})
    assert plan_for(brains, given, kept=kept(0.896)).settings.joint.estimate_weight == 0.5
    assert plan_for(brains, config(), kept=kept(0.986)).plan == plan_for(brains, config(), kept=lambda _: {}).plan == plain


@pytest.mark.fast
def test_no_fine_grid_is_laid_where_it_is_not_asked_for():
    """Nothing is even measured where structures are thick, and where the user has said what the grid is."""

    def never(_):
        raise AssertionError("measured")

    assert "fine_factor" not in plan_for(found(*PROSTATES), config(), kept=never).plan.values["preprocessing"]
    for given in ({"size": [64, 64, 64]}, {"spacing_mm": [2.0, 2.0, 2.0]}, {"fine_factor": [2, 1, 1]}):
        asked = config({f"preprocessing.{key}": value for key, value in given.items()})
        planned = plan_for(found(*BRAINS), asked, kept=never)
        assert planned.settings.preprocessing.fine_factor == (tuple(given["fine_factor"]) if "fine_factor" in given else None)
    plan_for(found(*PROSTATES), config(spatial_dims=2), kept=never)


@pytest.mark.fast
def test_a_fine_grid_has_no_more_voxels_than_memory_takes():
    wall = {1: structure(thickness_mm=1.0, width_mm=(200, 200, 200))}
    large = scan((0.3, 0.3, 0.3), (800, 800, 800), (110, 110, 110), structures=wall)
    planned = plan_for(found(large), config(), kept=lambda _: {"wall": 0.5}).settings.preprocessing
    assert 0.4 * FINE_VOXELS < np.prod(planned.fine_size) < 1.5 * FINE_VOXELS  # sides are rounded to what networks can halve


def abdomen(width_mm, voxel_mm=0.8):
    """Kidneys so wide, and a thin wall between them, in CT of 410 x 410 x 400 mm."""
    parts = {
        n: structure(centre_mm=(mm, -20, 0), width_mm=width_mm, thickness_mm=10.0, low=40.0, high=160.0)
        for n, mm in ((1, 62), (2, -62))
    }
    parts[3] = structure(centre_mm=(0, -10, 0), width_mm=(30, 30, 300), thickness_mm=2.2, low=40.0, high=160.0)
    shape = (round(410 / voxel_mm),) * 2 + (200,)
    return scan((voxel_mm, voxel_mm, 2.0), shape, (110, 90, 160), structures=parts, lowest=-1000.0)


@pytest.mark.fast
def test_boxes_are_laid_where_structures_take_up_a_small_part_of_many_voxels():
    """Counted by hand: two boxes of 84 x 84 x 144 mm and one of 54 x 54 x 324 mm, which overlap by little, in the view."""
    names, lost = ("right_kidney", "left_kidney", "wall"), lambda _: {"wall": 0.8}
    made = plan_for(found(abdomen((60, 60, 120)), names=names), config(), kept=lost)
    values, joint = made.plan.values["preprocessing"], made.settings.joint
    assert "fine_factor" not in values
    assert np.allclose(np.divide(values["spacing_mm"], values["box_factor"]), [0.8, 0.8, 2.0])
    assert np.prod(values["size"]) <= 1.2 * THIN_VOXELS * VOXELS[3]
    assert (joint.slice_budget, joint.volume_budget, joint.box_budget, joint.estimate_weight) == (0.3, 0.2, 0.4, 1.0)
    (line,) = (line for line in made.plan.lines() if "box_factor" in line)
    view_mm = np.multiply(values["size"], values["spacing_mm"])
    share = (2 * 84 * 84 * 144 + 54 * 54 * 324) / np.prod(view_mm)
    assert "the true label wall keeps a Dice of 80.0%" in line
    told = float(line.partition("round the structures show ")[2].partition("%")[0]) / 100
    assert 0.7 * share < told < 1.4 * share

    large = plan_for(found(abdomen((100, 150, 290)), names=names), config(), kept=lost)
    assert large.settings.preprocessing.fine_factor is not None
    assert large.settings.joint.box_budget == 0
    (line,) = (line for line in large.plan.lines() if "fine_factor" in line)
    assert "the whole view in windows" in line
    coarse = plan_for(found(abdomen((60, 60, 120), 1.5), names=names), config(), kept=lost)
    assert coarse.settings.preprocessing.box_factor is None, "few enough voxels for the whole view"


@pytest.mark.fast
def test_boxes_are_laid_or_left_as_the_user_says():
    names, lost = ("right_kidney", "left_kidney", "wall"), lambda _: {"wall": 0.8}
    kidneys = found(abdomen((60, 60, 120)), names=names)
    for given in ({"preprocessing.fine_factor": [2, 2, 1]}, {"joint.box_budget": 0}):
        assert plan_for(kidneys, config(given), kept=lost).settings.preprocessing.box_factor is None
    asked = plan_for(kidneys, config({"preprocessing.box_factor": [3, 3, 1]}), kept=lambda _: {"wall": 1.0}).settings
    assert asked.preprocessing.box_factor == (3, 3, 1)
    assert asked.joint.box_budget == 0.4
    alone = config({"registration.joint": False})
    assert plan_for(kidneys, alone, kept=lost).settings.preprocessing.box_factor is None


@pytest.mark.fast
def test_what_a_grid_keeps_is_measured_on_labels_and_kept(tmp_path, monkeypatch):
    """A board of one voxel in four is lost in voxels of twice the size, not in its own."""
    label = np.zeros((16, 16, 8), np.uint8)
    label[4:12:4, 4:12] = 1
    for name, array in (("image", label.astype(np.float32)), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = Case("one", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    data = DataSettings(root=str(tmp_path), labels={"board": 1, "absent": 2})
    kept = kept_by([case, case.without_label()], data, tmp_path / "cache", str)
    own = Preprocessing("physical", 3, (16, 16, 8), (1.0, 1.0, 1.0), "zscore")
    coarse = Preprocessing("physical", 3, (8, 16, 8), (2.0, 1.0, 1.0), "zscore")
    assert kept(own) == {"board": 1.0}
    assert kept(coarse)["board"] < 0.9
    monkeypatch.setattr("oasis_monai.workflows.plan_fine.read_volume", None)  # what is kept is not read again
    assert kept_by([case], data, tmp_path / "cache", str)(coarse) == kept(coarse)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("scans", "dims"), list(itertools.product([PROSTATES, CROPS, BRAINS, SPLEENS, KNEES, TINY], [2, 3])), ids=str
)
def test_a_planned_grid_holds_the_labels_and_what_networks_can_take(scans, dims):
    planned = plan_for(found(*scans), config(spatial_dims=dims))
    grid = planned.settings.preprocessing
    half = np.multiply(grid.size, grid.spacing_mm) / 2
    axes = list(SLICE_AXES[grid.slice_axis][:dims])
    reach = np.max([s.label_extent_mm for s in scans], 0)[axes]
    largest = np.max([s.size_mm for s in scans], 0)[axes] / 2
    assert (half >= np.minimum(reach, largest) - 1e-6).all()
    assert (half <= 1.25 * (1.1 * reach + 5) + np.multiply(planned.settings.divisor, grid.spacing_mm)).all()
    assert np.prod(grid.size) <= THIN_VOXELS * VOXELS[dims]
    assert max(grid.spacing_mm) <= max(ANISOTROPIC, 1.0) * min(grid.spacing_mm) + 1e-6
    assert planned.settings.takes(grid)
    assert planned.settings.to_json() == build(planned.settings.to_json()).to_json()  # concrete: it can be repeated


@pytest.mark.fast
def test_one_scan_more_does_not_change_the_grid():
    for extra in ((0.6, 0.6, 3.0), (0.47, 0.47, 3.0), (0.9, 0.9, 3.3)):
        more = [*PROSTATES, scan(extra, (300, 300, 25), (35, 33, 30), bias=0.3)]
        choice, _ = working_grid(found(*more), Asked(config(), 3))
        assert choice.values == {"preprocessing.size": [96, 96, 32], "preprocessing.spacing_mm": [1.0, 1.0, 3.0]}


THICK = {"axial": (0.7, 0.7, 3.0), "coronal": (0.7, 3.0, 0.7), "sagittal": (3.0, 0.7, 0.7)}
FLAT = {"axial": (200, 180, 1), "coronal": (200, 1, 180), "sagittal": (1, 200, 180)}


@pytest.mark.fast
@pytest.mark.parametrize("lying", THICK)
@pytest.mark.parametrize("dims", [2, 3])
def test_slices_lie_across_the_thickest_voxels(lying, dims):
    across = SLICE_AXES[lying][2]
    shape = np.full(3, 160)
    shape[across] = 30
    scans = [scan(THICK[lying], shape, (30, 32, 34)) for _ in range(7)]
    mixed = [*scans, scan((1.0, 1.0, 1.0), (128, 128, 128), (30, 32, 34)), scan((1.0, 1.1, 1.0), (128, 128, 128), (30, 32, 34))]
    for several in (scans, mixed):
        settings = plan_for(found(*several), config(spatial_dims=dims)).settings
        assert settings.preprocessing.slice_axis == lying
        in_plane, *rest = settings.preprocessing.spacing_mm
        assert rest == ([in_plane] if dims == 2 else [in_plane, pytest.approx(3.0 * in_plane)])
    assert (settings.augmentation.flip, settings.joint.tta_flip) == ((0.0, False) if lying == "sagittal" else (0.5, True))
    other = scan(THICK["coronal" if lying == "axial" else "axial"], (160, 160, 160), (30, 32, 34))
    undecided = plan_for(found(*scans, *[other] * 4), config(spatial_dims=dims))
    assert undecided.settings.preprocessing.slice_axis == "axial"
    given = plan_for(found(*scans), config({"preprocessing.slice_axis": "sagittal"}, spatial_dims=dims)).settings
    assert (given.preprocessing.slice_axis, given.augmentation.flip) == ("sagittal", 0.0)


@pytest.mark.fast
@pytest.mark.parametrize("lying", FLAT)
def test_an_image_of_one_slice_lies_as_it_lies(lying):
    pixels = scan((1.0, 1.0, 1.0), FLAT[lying], (40, 40, 40))
    assert plan_for(found(pixels), config(spatial_dims=2)).settings.preprocessing.slice_axis == lying
    with pytest.raises(ConfigError, match=r"spatial_dims: expected 2, as every image is a single slice"):
        plan_for(found(pixels), config())


@pytest.mark.fast
def test_ct_is_told_by_air_and_mr_by_its_bias_field():
    def chosen(*scans):
        return plan_for(found(*scans), config()).plan.values["preprocessing"]["intensity"]

    assert chosen(*SPLEENS) == "window"
    assert plan_for(found(*SPLEENS), config()).settings.preprocessing.window == (-120.0, 280.0)
    assert chosen(*SPLEENS, PROSTATES[0]) == "local"  # half of them are no CT
    still = [dataclasses.replace(s, bias=0.1) for s in PROSTATES]
    assert chosen(*still) == "zscore"
    assert chosen(*still[:2], *PROSTATES) == "local"
    assert chosen(*(dataclasses.replace(s, constant=0.6) for s in PROSTATES)) == "zscore"


@pytest.mark.fast
def test_structures_with_a_side_are_not_mirrored():
    left = structure(centre_mm=(-40.0, 5.0, 0.0))
    right = structure(centre_mm=(45.0, 3.0, 2.0), volume_ml=33.0)
    pair = [scan((1, 1, 1), (160, 160, 160), (60, 25, 25), structures={1: left, 2: right})] * 5
    assert "left and a right" in sided(found(*pair, names=("a", "b")))
    fore = [dataclasses.replace(s, structures={1: left, 2: structure(centre_mm=(-38.0, 45.0, 0.0))}) for s in pair]
    centred = [scan((1, 1, 1), (80, 80, 80), (30, 30, 30), structures={1: structure(centre_mm=(0, -20, 0)), 2: BALL})] * 5
    assert "lies on the left" in sided(found(*fore, names=("a", "b")))
    assert sided(found(*centred, names=("a", "b"))) == ""
    unequal = [
        dataclasses.replace(s, structures={1: left, 2: structure(centre_mm=(14.0, 5.0, 0.0), volume_ml=60.0)}) for s in pair
    ]
    assert "left and a right" not in sided(found(*unequal, names=("a", "b")))
    assert "lies on the left of the images" in sided(found(*SPLEENS, names=("spleen",)))
    for names in (
        ("kidney_left", "x"),
        ("Right Kidney", "x"),
        ("LeftVentricle", "x"),
        ("kidney_l", "kidney_r"),
        ("ren dex", "x"),
    ):
        assert "by its name" in sided(found(*centred, names=names)), names
    for names in (("copyright", "cleft"), ("l", "m"), ("anterior", "posterior"), ("l1", "r2d2")):
        assert sided(found(*centred, names=names)) == "", names
    plan = plan_for(found(*pair, names=("a", "b")), config()).plan
    assert plan.values["augmentation"]["flip"] == 0.0
    assert plan.values["joint"]["tta_flip"] is False


@pytest.mark.fast
def test_the_volume_network_makes_enough_steps_in_its_minutes():
    def chosen(*scans, **more):
        joint = plan_for(found(*scans), config(more)).settings.joint
        return joint.volume_network, joint.volume_stride

    assert chosen(*BRAINS) == ("DynU-Net3D", (2, 2, 2))
    assert chosen(*BRAINS, **{"training.minutes": 60}) == ("DynU-Net3D", (1, 1, 1))
    knees = dict(zip(("volume_network", "volume_stride"), chosen(*KNEES, **{"training.minutes": 1}), strict=True))
    assert knees["volume_stride"] == (2, 2, 2)
    assert chosen(*BRAINS, **{"training.minutes": None, "training.iterations": 100}) == ("DynU-Net3D", (1, 1, 1))
    assert chosen(*BRAINS, device="cuda:0") == ("DynU-Net3D", (1, 1, 1))
    assert chosen(*BRAINS, **{"joint.volume_network": "DynU-Net3D"}) == ("DynU-Net3D", (1, 1, 1))
    assert chosen(*CROPS) == ("DynU-Net3D", (1, 1, 1))
    lines = plan_for(found(*BRAINS), config()).plan.lines()
    assert any("about 740 steps in its 7 min (a DynU-Net3D at full resolution: 92)" in line for line in lines)
    for scans in (CROPS, BRAINS, KNEES, PROSTATES, SPLEENS, TINY):
        made = plan_for(found(*scans), config()).settings
        own = (made.joint.volume_network, made.preprocessing.size, made.joint.volume_stride, made.training.batch)
        assert steps_within(20 * made.joint.volume_budget, *own) >= LEAST_STEPS


@pytest.mark.fast
def test_images_few_patients_and_odd_spacings_are_told_plainly():
    pictures = [scan((1, 1, 1), (120, 100, 1), (27, 28, 0.5), structures={1: structure(thickness_mm=20.0)})] * 4
    plan = plan_for(found(*pictures), config(spatial_dims=2)).plan
    assert "4 labelled images, taken as one patient each" in plan.lines()[0]
    assert "pixels 1 x 1 mm" in plan.lines()[0]
    with pytest.raises(ConfigError, match=r"^spatial_dims: .* as every image is a single slice, found 3; add spatial_dims=2"):
        plan_for(found(*pictures), config())
    last = plan_for(found(*TINY), config()).plan.lines()[-1]
    assert "3 patients make 3 folds at most (k=3); 20 min a fold on 2 cores, 60 for 3" in last
    mixed = [scan((0.6, 0.6, 3.3), (150, 150, 27), (18, 21, 18))] * 3
    assert plan_for(found(*mixed), config()).plan.values["preprocessing"]["spacing_mm"] == [0.6, 0.6, 1.8]
    small = [scan((1, 1, 1), (60, 60, 60), (20, 20, 20), structures={1: structure(thickness_mm=0.5)})] * 3
    assert "mm thin" not in "".join(plan_for(found(*small), config()).plan.lines())  # the grid is the scans' own all the same


@pytest.mark.fast
def test_little_memory_makes_batches_small():
    assert plan_for(found(*BRAINS, memory=24.0), config()).settings.training.batch == 2
    assert plan_for(found(*BRAINS, memory=3.0), config()).settings.training.batch == 1


@pytest.mark.fast
def test_what_is_given_stays_and_the_rest_is_chosen_round_it():
    planned = plan_for(found(*PROSTATES), config({"preprocessing.size": [64, 64, 32], "augmentation.flip": 0.2}))
    grid = planned.settings.preprocessing
    assert grid.size == (64, 64, 32)
    assert (np.multiply(grid.size, grid.spacing_mm) >= 2 * np.array([42, 39, 43])).all()
    given = {option for choice in planned.plan.choices for option in choice.given}
    assert given == {"preprocessing.size", "augmentation.flip"}
    assert planned.settings.augmentation.flip == 0.2
    assert any("preprocessing.size=[64,64,32] (given)" in line for line in planned.plan.lines())
    coarse = plan_for(found(*PROSTATES), config({"preprocessing.spacing_mm": [2.0, 2.0, 4.0]})).settings.preprocessing
    assert (coarse.spacing_mm, coarse.size) == ((2.0, 2.0, 4.0), (64, 64, 32))
    kept = plan_for(found(*CROPS), config(registration="joint3d", joint="default")).settings
    assert (kept.registration.field_stride, kept.joint.volume_stride) == ((4, 4, 1), (2, 2, 1))
    assert kept.takes(kept.preprocessing)
    named = plan_for(found(*CROPS), config(preprocessing="local3d")).settings
    assert (named.preprocessing.size, named.preprocessing.intensity) == ((96, 96, 32), "local")
    assert plan_for(found(*PROSTATES), config({"preprocessing.size": [48, 64, 48]})).settings.registration.field_stride == (
        2,
        2,
        2,
    )
    with pytest.raises(ConfigError, match=r"preprocessing\.size: .*nearest that work"):
        plan_for(found(*PROSTATES), config({"preprocessing.size": [50, 50, 50]}))
    plain = plan_for(found(*PROSTATES), config({"data": "promise12"}, registration="unet3d", methods=["U-Net3D"]))
    assert "joint" not in plain.plan.values


@pytest.mark.fast
def test_the_paper_s_grid_is_the_scan_s_own_and_is_not_planned():
    planned = plan_for(found(*PROSTATES), config(spatial_dims=2, preprocessing="paper", registration="unet2d"))
    assert planned.settings.preprocessing.size == (320, 320)
    assert "preprocessing" not in planned.plan.values


@pytest.mark.fast
def test_without_data_the_values_are_those_of_the_classes():
    built, plain = build_settings(), build({"data": {"labels": {"prostate": 1}}})
    for group in ("preprocessing", "registration", "joint", "training", "augmentation"):
        assert getattr(built, group) == getattr(plain, group)
    assert build_settings(spatial_dims=2).registration.field_stride == (4, 4)
    assert {(g, k) for g, keys in UNPLANNED[3].items() for k in keys} == set(open_keys(composed({}, {})))
    assert not open_keys(without_nulls(composed({}, {})))
    assert {g: set(k) for g, k in UNPLANNED[2].items()} == {g: set(k) for g, k in UNPLANNED[3].items()}


@pytest.mark.fast
def test_a_plan_is_what_it_was_when_it_comes_back_from_its_file(tmp_path):
    plan = plan_for(found(*BRAINS), config({"training.batch": 1})).plan
    plan.write(tmp_path)
    assert read_plan(tmp_path) == plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    (tmp_path / "plan.json").write_text("{}")
    assert read_plan(tmp_path) is None


@pytest.mark.fast
def test_the_choices_do_not_depend_on_the_order_of_the_scans():
    forward = choose(found(*PROSTATES), config())
    assert choose(found(*reversed(PROSTATES)), config()) == forward


FEW = ["IBSR_01", "IBSR_07", "IBSR_18"]  # enough, and quick
REAL = {
    "promise12": ({"data": "promise12"}, TABLE["prostates"]),
    "hippocampus": ({"data": "hippocampus"}, TABLE["hippocampi"]),
    "ibsr18": (
        {"data": {"name": "IBSR18", "layout": "msd", "labels": {"csf": 1, "grey": 2, "white": 3}}, "data.include": FEW},
        (*TABLE["brains"][:2], [64, 80, 64], [2.4, 2.4, 3], *TABLE["brains"][4:]),
    ),
}


@pytest.mark.fast
@pytest.mark.parametrize("name", REAL)
def test_the_plan_of_real_data_is_what_it_was_tuned_to(name):
    options, (_, _, size, spacing, intensity, stride, joint) = REAL[name]
    folder = real_data(name)
    settings = plan_settings(composed({**options, "data.root": str(folder)}, {}), keep=False).settings
    assert settings.preprocessing.size == tuple(size)
    assert settings.preprocessing.spacing_mm == tuple(spacing)
    assert settings.preprocessing.fine_factor == ((3, 3, 2) if name == "ibsr18" else None)
    assert settings.preprocessing.intensity == intensity
    assert list(settings.registration.field_stride) == stride
    assert settings.joint.volume_network == joint["volume_network"]
    assert list(settings.joint.volume_stride) == joint["volume_stride"]
    assert (settings.augmentation.flip, settings.joint.tta_flip, settings.training.batch) == (0.5, True, 2)


def test_the_task_prints_the_plan_and_every_line_of_it_can_be_typed(phantom, tmp_path):
    words = ["data=promise12", f"data.root={phantom}"]
    done = run("plan", *words, "output=p", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    plan = read_plan(tmp_path / "p")
    lines = plan.lines()
    said = done.out.splitlines()
    assert said[:1] == ["n=5: a fold has 5 training cases, fewer than the usual 6 atlases"]
    assert said[1 : len(lines) + 1] == lines
    typed = [word for line in lines[1:] for word in line.partition("  # ")[0].split()]
    checked = run("check", *words, *typed, cwd=tmp_path)
    assert checked.code == 0
    told = [line for line in checked.out.splitlines() if line.startswith(tuple(UNPLANNED[3]))]
    assert len(told) == len(lines) - 1
    assert [line.replace(" (given)", "").split() for line in told] == [line.partition("  # ")[0].split() for line in lines[1:]]
    assert "#" not in "".join(told)


def test_check_tells_what_it_found_and_the_plan(tmp_path):
    """Of pictures in two folders; also where the settings cannot work."""
    from PIL import Image

    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for number in range(3):
        label = np.zeros((60, 50), np.uint8)
        label[20 + number : 40, 15:35] = 3
        Image.fromarray(label).save(tmp_path / "set" / "labels" / f"p{number}.png")
        Image.fromarray(60 + 30 * label).save(tmp_path / "set" / "images" / f"p{number}.png")
    done = run("check", "data.root=set", "spatial_dims=2", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert "data: labels {label_3: 3}, from the values in the label files" in lines
    assert any(line.startswith("plan for set: 3 labelled images, ") for line in lines)
    assert lines[-1].startswith("3 cases, 0 errors, ")
    wrong = run("check", "data.root=set", cwd=tmp_path)
    assert wrong.code == 2
    assert wrong.err == "error: spatial_dims: expected 2, as every image is a single slice, found 3; add spatial_dims=2\n"
    assert "data: labels {label_3: 3}, from the values in the label files" in wrong.out
    assert "the settings cannot work" in wrong.out


@pytest.mark.parametrize(
    ("cases", "options", "n"), [(7, {}, 5), (4, {"k": 2}, 2), (4, {"k": 2, "n": 3}, 3), (4, {"n": [1, 2]}, (1, 2))]
)
def test_a_small_set_is_fused_with_the_atlases_that_there_are(phantom, cases, options, n):
    include = [f"Case{number:02d}" for number in range(cases)]
    planned = plan_settings(composed({"data.root": str(phantom), "data.include": include, **options}, {}), keep=False)
    assert planned.settings.n == (n if isinstance(n, tuple) else (n,))
    assert any(line.startswith(f"n={n}: a fold has {n} training cases") for line in planned.said) == ("n" not in options)


def test_a_small_model_fuses_all_its_atlases_where_nobody_says_how_many():
    assert [number_of_atlases(SimpleNamespace(library=range(count)), None) for count in (3, 6, 40)] == [3, 6, 6]
    assert number_of_atlases(SimpleNamespace(library=range(40)), 12) == 12
