"""Settings out of plain dicts: the same from Python as on the command line, what is refused, what a model's name depends on."""

import dataclasses
import doctest
import json
import re

import pytest

import oasis_monai.settings
from oasis_monai.data.settings import DataSettings
from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.settings import GROUPS, Settings, build, build_settings
from oasis_monai.tasks import JOB_KEYS
from oasis_monai.utils.config import INFERENCE_ONLY, RENAMED, check_renamed
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.presets import preset_names
from tests.conftest import JOINT, JOINT_2D, TINY, merged


def made(*more):
    return build(merged(TINY, *more))


def test_lists_become_tuples_and_one_value_a_list():
    settings = made({"n": 3, "methods": "OASIS", "data": {"labels": {"a": 2, "b": 7}, "include": ["x"]}})
    assert (settings.n, settings.methods, settings.data.include) == ((3,), ("OASIS",), ("x",))
    assert settings.data.label_values == (0, 2, 7)
    assert settings.data.classes == 3
    assert made({"n": [4, 2, 4]}).n == (2, 4)
    assert made({"registration": {"field_stride": 2}}).registration.stride(3) == (2, 2, 2)
    assert made({"data": {"include": ["a", 7]}}).data.include == ("a", "7")
    assert settings.preprocessing.size == (16, 16, 8)


def test_settings_survive_json():
    """A model folder holds its settings as JSON; they must build the same model again."""
    settings = made({"methods": ["STAPLE"], "data": {"labels": {"a": 3}}, "loss": {"similarity": "mse"}, "spatial_dims": 3})
    again = build(json.loads(json.dumps(settings.to_json())))
    assert again == settings
    assert again.identity() == settings.identity()


NETS = {"network": {"convnet": [4, 8], "unet": [4, 8], "dynunet": [4, 8]}}


def test_methods_are_of_two_kinds():
    settings = made(NETS, {"methods": ["U-Net3D", "OASIS", "ConvNet3D"]})
    assert settings.atlas_methods == ("OASIS",)
    assert settings.networks == ("U-Net3D", "ConvNet3D")


def test_what_a_network_s_name_depends_on():
    plain = made(NETS)
    for change in ({"n": 5}, {"methods": ["FwoW"]}, {"workers": 3}, {"training": {"nearest_partners": 3}}, {"loss": {"beta": 0}}):
        assert made(NETS, change).identity("U-Net3D") == plain.identity("U-Net3D"), change
    for change in (
        {"training": {"lr": 1e-3}},
        {"seed": 1},
        {"network": {"unet": [4, 9]}},
        {"augmentation": {"flip": 0.0}},
        {"preprocessing": {"size": [16, 16, 16]}},
    ):
        assert made(NETS, change).identity("U-Net3D") != plain.identity("U-Net3D"), change
    assert made(NETS, {"network": {"unet": [4, 9]}}).identity() == plain.identity()
    assert plain.identity("U-Net3D") != plain.identity("ConvNet3D")


REFUSED = [
    (NETS | {"methods": ["ConvNet2D"]}, r"^methods: expected methods for spatial_dims=3: .*'DynU-Net3D'\], found 'ConvNet2D'"),
    ({"methods": ["U-Net3D"]}, r"^preprocessing\.size: expected multiples of 16, .* for U-Net3D"),
    ({"workers": 0}, "^workers: expected 1 or more processes, found 0"),
    ({"train_cases": 1}, "^train_cases: expected 2 or more patients"),
    ({"train_cases": 3, "folds": "slice"}, r"^train_cases: expected null where folds=slice, found 3"),
    ({"network": {"depth": 3}}, r"^network\.depth: .*unknown key"),
    ({"n": "many"}, "^n: expected .*whole number.*found 'many'"),
    ({"n": []}, r"^n: expected a number of atlases of 1 or more"),
    ({"n": 0}, "^n: expected a number of atlases of 1 or more"),
    ({"n": [2, 2.5]}, r"^n: expected .*found \[2, 2.5\]"),
    ({"n": True}, "^n: expected .*found True"),
    ({"methods": ["FWAL", "magic"]}, r"^methods: expected one or more of \['FwoW'.*'magic'"),
    ({"methods": []}, "^methods: expected one or more of"),
    ({"methods": 3}, "^methods: expected .*found 3"),
    ({"folds": "random"}, "^folds: expected one of"),
    ({"k": 1}, "^k: expected 2 folds or more, found 1"),
    ({"k": 2.5}, "^k: expected a whole number, found 2.5"),
    ({"fold": 5}, "^fold: expected null .all. or 0 to 4, found 5"),
    ({"fold": [0, 1]}, "^fold: expected a whole number or a text or null"),
    ({"seed": -1}, "^seed: expected 0 to 2147483647"),
    ({"align_batch": 0}, "^align_batch: expected 1 or more"),
    ({"temperature": 0}, "^temperature: expected a positive number"),
    ({"temperature": float("nan")}, "^temperature: expected a number, found nan"),
    ({"threads": 0}, "^threads: expected 1 or more"),
    ({"cache": None}, "^cache: expected a text, found None"),
    ({"progress": "loud"}, "^progress: expected true or false, found 'loud'"),
    ({"colour": 1}, "^colour: expected one of .*an unknown key"),
    ({"augmentation": {"zoom": 0.5}}, "^augmentation.zoom: expected a factor of 1 .off. or more, found 0.5"),
    ({"joint": {"estimate_dice": 0.0}}, "^joint.estimate_dice: expected above 0, at most 1"),
    ({"joint": {"cross_fit_budget": 0.2}}, "^joint.cross_fit_budget: expected .*below 1, found 0.2"),
    ({"training": {"epochs": 1}}, "^training.epochs: expected one of .*'iterations'"),
    ({"training": {"batch": 1.5}}, "^training.batch: expected a whole number, found 1.5"),
    ({"training": {"lr": "fast"}}, "^training.lr: expected a number, found 'fast'"),
    ({"training": {"lr": 0}}, "^training.lr: expected a positive learning rate, found 0"),
    ({"training": {"augment": 1}}, "^training.augment: expected true or false, found 1"),
    ({"training": {"iterations": None}}, "^training.iterations: expected a limit here or in training.minutes"),
    ({"training": {"schedule": "step"}}, "^training.schedule: expected one of"),
    ({"training": 5}, "^training: expected a group of settings, found 5"),
    ({"loss": {"similarity": "psnr"}}, "^loss.similarity: expected one of"),
    ({"loss": {"_parts": 1}}, "^loss._parts: .*an unknown key"),
    ({"registration": {"body": "vit"}}, "^registration.body: expected one of"),
    ({"registration": {"field_stride": [2, 2]}}, "^registration.field_stride: expected one number, or one per axis"),
    (
        {"registration": {"channels": [4, 8, 8, 8, 8]}},
        r"^preprocessing.size: expected multiples of \(16, 16, 16\).*\(16, 16, 16\)",
    ),
    ({"preprocessing": {"size": [16, 15, 8]}}, r"^preprocessing.size: expected multiples of .*\(16, 14, 8\) or \(16, 16, 8\)"),
    ({"spatial_dims": 4}, "spatial_dims: expected 2 or 3, found 4"),
    ({"spatial_dims": 2}, "^preprocessing.size: expected 2 values"),
    ({"data": {"labels": {"a": 65536}}}, "^data.labels: expected names with different values of 1 to 65535"),
    ({"data": {"labels": {"a": 7}, "ignore": 7}}, "^data.labels: expected names .* others than data.ignore"),
    ({"data": {"ignore": 0}}, "^data.ignore: expected a value of 1 to 65535, or null"),
    ({"data": {"channels": ["T2", "T2"]}}, "^data.channels: expected each channel once"),
    ({"data": {"layout": "bids"}}, "^data.layout: expected one of"),
    ({"data": {"image": 3}}, "^data.image: expected a text or a list, each a text or a map of a text to a text"),
    ({"data": {"labels": {"a": 1, "b": 1}}}, "^data.labels: expected names with different values"),
    ({"data": {"labels": {"a": 0}}}, "^data.labels: expected names with different values"),
    ({"data": {"labels": {"a": True}}}, "^data.labels: expected a map of a text to a whole number"),
    ({"data": {"labels": ["a"]}}, "^data.labels: expected a map of a text to a whole number"),
    ({"data": {"regions": "whole"}}, "^data.regions: expected a list, each a text, found 'whole'"),
    ({"data": {"regions": ["apex"]}}, r"^data.regions: expected whole and"),
    ({"data": {"regions": ["top"]}}, r"^data.regions: expected whole and any others of .*found \['top'\]"),
    ({"data": {"root": None}}, "^data.root: expected a text, found None"),
]


@pytest.mark.parametrize(("change", "match"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_a_wrong_setting_is_one_line_naming_it(change, match):
    with pytest.raises(ConfigError, match=match) as error:
        made(change)
    assert "\n" not in str(error.value)


INFERENCE = {
    "n": [5],
    "methods": ["majority"],
    "fold": 1,
    "device": "cpu",
    "threads": 1,
    "temperature": 2.0,
    "align_batch": 1,
    "overlays": 1,
    "save_segmentations": True,
    "save_probability": True,
    "cache": "elsewhere",
    "progress": True,
    "features": {"distance": "zscore"},
    "augmentation": {"noise": 0.5},  # of a training without augmentation
    "training": {"checkpoint_minutes": 9.0},
    "data": {"name": "other", "root": "elsewhere", "citation": "x", "regions": ["whole"]},
}


@pytest.mark.parametrize("key", INFERENCE)
def test_a_models_identity_ignores_what_training_never_sees(key):
    base = {"training": {"augment": False}}
    assert made(base, {key: INFERENCE[key]}).identity() == made(base).identity()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"preprocessing": {"size": [16, 16, 12]}},
        {"registration": {"channels": [8, 8]}},
        {"registration": {"diffeomorphic": True}},
        {"loss": {"gamma": 0.5}},
        {"loss": {"similarity": "mse"}},
        {"training": {"lr": 1e-4}},
        {"training": {"iterations": 5}},
        {"training": {"nearest_partners": 2}},
        {"augmentation": {"noise": 0.5}},
    ],
    ids=str,
)
def test_a_models_identity_has_all_that_training_depends_on(change):
    assert made(change).identity() != made().identity()


def test_features_are_part_of_the_identity_where_they_choose_the_pairs():
    near = {"training": {"nearest_partners": 2}}
    assert made(near, {"features": {"distance": "zscore"}}).identity() != made(near).identity()


def test_every_setting_has_a_key_in_the_documentation_of_its_class():
    for kind in (Settings, *GROUPS.values()):
        told = set(re.findall(r"\w+", " ".join(re.findall(r"((?:\w+, )*\w+):", kind.__doc__))))
        named = {field.name for field in dataclasses.fields(kind)}
        assert named <= told, (kind, sorted(named - told))
    assert {field.name for field in dataclasses.fields(Settings)} == set(
        made({"unlabelled": "scans", "save_structures": True}).to_json()
    )


def test_the_volume_network_s_grid_and_identity_are_those_of_its_own_kind():
    joint = merged(JOINT, {"network": {"dynunet": [4, 8, 8, 8, 8]}})
    assert made(joint).identity("volume") != made(joint, {"network": {"unet": [4, 9]}}).identity("volume")
    fine = {"joint": {"volume_network": "DynU-Net3D"}}
    with pytest.raises(ConfigError, match=r"take fewer levels in network\.dynunet"):
        made(joint, fine)
    assert made(JOINT, fine).identity("volume") == made(JOINT, fine, {"network": {"unet": [4, 9]}}).identity("volume")
    assert made(JOINT, fine).identity() != made(JOINT).identity()


def test_a_joint_stm_is_the_one_of_its_volume_network() -> None:
    """It learns from what that network makes of its atlases."""
    other = {"network": {"unet": [4, 9]}}
    assert made(JOINT, other).identity() != made(JOINT).identity()
    alone = {"joint": {"volume_budget": 0.0}}
    assert made(JOINT, alone, other).identity() == made(JOINT, alone).identity()
    patches = {"network": {"patch": [32, 32, 32]}}  # of the networks among the methods
    assert made(JOINT, patches).identity() == made(JOINT).identity()


def test_classes_are_numbered_by_their_values_whatever_their_names_and_order():
    labels = {f"l{i}": i for i in range(50, 0, -1)}  # by name l1, l10, l11, ...
    assert DataSettings(labels=labels).label_values == tuple(range(51))
    assert list(DataSettings(labels={"b": 3, "c": 1, "a": 2}).labels) == ["c", "a", "b"]


def composed(*words):
    """The settings of a command line, composed by Hydra."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("oasis_monai.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)
    return build({key: value for key, value in config.items() if key not in JOB_KEYS})


FLAT = {"spatial_dims": 2, "preprocessing": "local2d", "registration": "joint2d"}
SAME = [
    {},
    {"data": "hippocampus"},
    {"data": "promise12", "registration": "unet3d", "loss": "eq1"},
    {**FLAT, "joint": "slices", "folds": "slice"},
    {"data": "promise12", "data.root": "scans", "training.iterations": 7, "training.minutes": None, "n": [1, 4]},
    {"experiment": "hippocampus", "features": "intensity", "registration": "joint3d", "preprocessing": "local3d", "k": 3},
    *({"experiment": name} for name in preset_names("experiment")),
]


def as_words(options):
    return [f"{key}={'null' if value is None else str(value).replace(' ', '')}" for key, value in options.items()]


@pytest.mark.parametrize("options", SAME, ids=str)
def test_python_has_the_settings_of_the_command_line(options):
    assert build_settings(options) == composed(*as_words(options))
    assert build_settings(**options) == build_settings(options)


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "data"])
def test_every_preset_is_the_same_in_python(group):
    """Also where it does not work with the others, and must be refused in the same words."""

    def outcome(make, *given):
        try:
            return make(*given)
        except ConfigError as error:
            return str(error)

    names = preset_names(group)
    assert names
    for name in names:
        for others in ({}, FLAT, {"spatial_dims": 2, "preprocessing": "paper", "registration": "unet2d"}):
            options = {**others, group: name}
            assert outcome(build_settings, options) == outcome(composed, *as_words(options)), options


def test_what_is_left_out_in_python_means_what_conf_says():
    """A class by itself, the strict :func:`build`, and the command line: one source of defaults, key by key."""
    command = composed()
    bare, alone = build({}), Settings(data=DataSettings())
    for field in dataclasses.fields(Settings):
        if field.name == "data":  # the default data set has a name and a place of its own
            for key in ("layout", "labels", "regions", "include"):
                assert getattr(DataSettings(), key) == getattr(command.data, key), key
            continue
        want = getattr(command, field.name)
        assert getattr(bare, field.name) == getattr(alone, field.name) == want, field.name
        if field.name in GROUPS:
            own = GROUPS[field.name]()
            for part in dataclasses.fields(own):
                assert getattr(own, part.name) == getattr(want, part.name), (field.name, part.name)
    flat = composed(*as_words(FLAT))
    assert build({"spatial_dims": 2, "registration": {"field_stride": [4, 4]}}).preprocessing == flat.preprocessing


def test_a_data_set_of_one_s_own_has_nothing_of_the_default_one():
    mine = {"root": "scans", "layout": "msd", "labels": {"spleen": 3}}
    settings = build_settings(data=mine)
    assert settings.data == DataSettings(**mine)
    assert dataclasses.replace(settings, data=composed().data) == composed()
    kept = build_settings({"data": "promise12", "data.labels": {"gland": 2}})
    assert (kept.data.labels, kept.data.name) == ({"gland": 2}, "PROMISE12")
    assert build_settings(data={"root": "scans"}).data == DataSettings(root="scans")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"registration": "unet9"}, r"^registration: expected a preset, one of \['auto', 'joint2d', .*\], found 'unet9'"),
        ({"data": "../data/phantom"}, r"^data: expected a preset, one of \['auto', 'hippocampus', 'phantom', .*\]"),
        ({"experiment": "none"}, r"^experiment: expected a preset, one of \['accuracy'"),
        ({"training": 3}, r"^training: expected a group of settings, found 3"),
        ({"training.epochs": 3}, r"^training\.epochs: expected one of .*an unknown key"),
        ({"model": "m"}, r"^model: expected one of .*an unknown key"),
        ({"seed.x": 3}, r"^seed: expected a whole number, found \{'x': 3\}"),
        ({"estimator.share": 0.5}, r"^estimator\.share: expected its new name joint\.slice_budget"),
        ({"estimator": {"decoder": [1]}}, r"^estimator: expected its new name joint,"),
        ({"joint.vote": 0.5}, r"^joint\.vote: expected one of .*an unknown key"),
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused_from_python_too(options, match):
    with pytest.raises(ConfigError, match=match) as error:
        build_settings(options)
    assert "\n" not in str(error.value)


def test_options_are_taken_by_value_and_the_later_counts():
    mine = {"data": {"labels": {"a": 1}}, "training": {"minutes": 2.0}, "training.lr": 0.5}
    settings = build_settings(mine, seed=3, training={"batch": 7, "lr": 0.1}, joint="fine")
    assert (settings.training.minutes, settings.training.lr, settings.training.batch, settings.seed) == (2.0, 0.1, 7, 3)
    assert build_settings({"joint": "fine", "joint.members": 2}, joint={"lr": 0.5}).joint == JointSettings(
        volume_network="DynU-Net3D", volume_stride=(1, 1, 1), members=2, lr=0.5
    )
    assert mine == {"data": {"labels": {"a": 1}}, "training": {"minutes": 2.0}, "training.lr": 0.5}
    assert build_settings() == build_settings({}) == composed()


def test_only_old_names_are_refused_as_old():
    for group, kind in GROUPS.items():
        for field in dataclasses.fields(kind):
            check_renamed(f"{group}.{field.name}")
    for old, new in RENAMED.items():
        with pytest.raises(ConfigError, match=rf"^{re.escape(old)}: expected its new name {re.escape(new)}"):
            check_renamed(old)
    with pytest.raises(ConfigError, match=r"; write joint\.decoder$"):
        check_renamed("estimator.decoder")


def test_the_examples_of_the_documentation_run():
    result = doctest.testmod(oasis_monai.settings)
    assert (result.failed, result.attempted > 5) == (0, True)


KINDS = ("registration", "slices", "volume", "U-Net3D")


def newer(value, **metadata):
    """The same dataclass with one field more."""
    field = ("new", int, dataclasses.field(default=1, metadata=metadata))
    kind = dataclasses.make_dataclass("Newer", [field], bases=(type(value),), frozen=True)
    return kind(**{f.name: getattr(value, f.name) for f in dataclasses.fields(value)})


READ_BY = {  # whose training reads the group
    "preprocessing": KINDS,
    "features": ("registration", "slices"),
    "registration": ("registration",),
    "loss": ("registration",),
    "training": KINDS,
    "augmentation": KINDS,
    "network": ("registration", "volume", "U-Net3D"),
    "joint": ("registration", "slices", "volume"),
}


@pytest.mark.parametrize("group", [*READ_BY, None])
def test_a_new_setting_counts_until_it_is_marked_otherwise(group):
    """A stale network must never be taken for one trained with a setting that no one thought of."""
    settings = made(JOINT)

    def with_new(**metadata):
        changed = newer(settings if group is None else getattr(settings, group), **metadata)
        return changed if group is None else dataclasses.replace(settings, **{group: changed})

    counted = {kind for kind in KINDS if with_new().identity(kind) != settings.identity(kind)}
    assert counted == set(KINDS if group is None else READ_BY[group])
    marked = with_new(**INFERENCE_ONLY)
    assert all(marked.identity(kind) == settings.identity(kind) for kind in KINDS)


SHARED = [  # what changes, and whose weights it changes
    ({"joint": {"tta_flip": False}}, ("registration",)),
    ({"joint": {"tta_views": 0, "recentre": False, "estimate_weight": 0.5}}, ()),
    ({"joint": {"slices_per_step": 3}}, ("registration", "slices")),
    ({"joint": {"volume_stride": [1, 1, 1]}}, ("registration", "slices", "volume")),
    ({"training": {"lr": 1e-4}}, ("registration", "volume", "U-Net3D")),
    ({"training": {"nearest_partners": 2}}, ("registration",)),
    ({"training": {"iterations": 9}}, KINDS),
    ({"training": {"checkpoint_minutes": 9.0}}, ()),
    ({"registration": {"channels": [8, 8]}, "loss": {"beta": 0.0}}, ("registration",)),
    ({"features": {"distance": "zscore"}}, ("registration", "slices")),
    ({"network": {"unet": [4, 9]}}, ("registration", "volume", "U-Net3D")),
    ({"network": {"dynunet": [4, 9], "convnet": [4, 9], "overlap": 0.25}}, ()),
    ({"network": {"patch": [16, 16, 8]}}, ("U-Net3D",)),
    ({"seed": 4}, KINDS),
    ({"joint": {"cross_fit_budget": 0.05}}, ("registration",)),
    ({"joint": {"estimate_dice": 0.87}}, ("registration",)),
    ({"augmentation": {"zoom_chance": 0.2}}, KINDS),
    ({"augmentation": {"zoom": 1.3, "zoom_axes": 1.1, "intensity_chance": 0.2}}, ()),  # of changes that never happen
    ({"augmentation": {"blur_mm": 1.0}}, KINDS),
    ({"augmentation": {"coarsen": 2.0}}, KINDS),
    ({"k": 3, "folds": "slice", "workers": 2, "data": {"name": "x", "labels": {"a": 4}}}, ()),
]


@pytest.mark.parametrize(("change", "whose"), SHARED, ids=[str(change) for change, _ in SHARED])
def test_what_retrains_which_network(change, whose):
    before, after = made(JOINT), made(JOINT, change)
    assert tuple(kind for kind in KINDS if after.identity(kind) != before.identity(kind)) == whose


@pytest.mark.parametrize(
    ("on", "key"),
    [("zoom_chance", "zoom"), ("zoom_chance", "zoom_axes"), ("noise", "intensity_chance"), ("coarsen", "intensity_chance")],
)
def test_what_a_change_of_images_is_like_counts_where_it_happens(on, key):
    happens = {"augmentation": {on: 1.5 if on == "coarsen" else 0.5}}
    other = {"augmentation": {key: 0.25 if key == "intensity_chance" else 1.4}}
    assert made(happens, other).identity() != made(happens).identity()


def test_networks_trained_before_an_option_came_are_found_again():
    """What a name holds of augmentation and of the estimates, in settings that do not use the later options."""
    first = {"rotation_deg", "scale", "shear", "shift", "flip", "elastic_mm", "gamma", "contrast", "bias", "noise"}
    before = made(JOINT).identity()
    assert set(before["augmentation"]) == first
    assert not {"cross_fit_budget", "estimate_dice"} & set(before["joint"])


def test_a_model_s_name_knows_what_its_slice_network_is_made_of(monkeypatch):
    before = made(JOINT)
    names = {kind: json.dumps(before.identity(kind)) for kind in KINDS}  # plain values
    monkeypatch.setattr("oasis_monai.networks.slice_unet.DESIGN", -1)
    assert [kind for kind in KINDS if json.dumps(before.identity(kind)) != names[kind]] == ["registration", "slices"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["OASIS-joint"]}, r"registration\.joint=true"),
        ({"registration": {"joint": True}}, "at least 32 voxels"),
        (
            {"registration": {"joint": True}, "preprocessing": {"size": [32, 32, 8]}, "joint": {"atlases": 2}},
            r"joint\.atlases",
        ),
    ],
)
def test_configurations_that_cannot_be(settings, given, message):
    with pytest.raises(ConfigError, match=message):
        settings(given)


def test_slices_have_no_cross_fitted_estimates(settings):
    two = merged(JOINT, JOINT_2D, {"joint": {"atlases": 0, "cross_fit_budget": 0.05}, "methods": ["OASIS-joint"]})
    with pytest.raises(ConfigError, match=r"^joint\.cross_fit_budget: expected 0 where spatial_dims is 2"):
        settings(two, dims=2)


def sizes_named(error):
    """The sizes that a message offers."""
    text = str(error.value).partition("; ")[2]
    return [tuple(map(int, found.split(","))) for found in re.findall(r"\(([\d, ]+)\)", text)]


@pytest.mark.parametrize(
    "size", [(48, 48, 24), (32, 32, 24), (64, 64, 24), (31, 40, 16), (1, 1, 1), (97, 33, 200), (500, 500, 500)]
)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"methods": ["OASIS", "U-Net3D", "ConvNet3D"]},
        {"joint": "fine", "registration": "joint3d_fine"},
        {"registration": "unet3d", "methods": ["DynU-Net3D"]},
        {"joint.volume_budget": 0},
    ],
)
def test_every_size_that_a_message_names_works(size, more):
    given = {"data": {"root": "x", "labels": {"a": 1}}, **more}
    try:
        build_settings({**given, "preprocessing.size": list(size)})
    except ConfigError:
        with pytest.raises(ConfigError) as error:
            build_settings({**given, "preprocessing.size": list(size)})
        named = sizes_named(error)
        assert named
        for one in named:
            assert build_settings({**given, "preprocessing.size": list(one)}).preprocessing.size == one
            assert all(a <= b for a, b in zip(one, size, strict=True)) or all(a >= b for a, b in zip(one, size, strict=True))


def test_of_slices_too_every_size_named_works():
    given = {"data": {"root": "x", "labels": {"a": 1}}, "spatial_dims": 2, "preprocessing": "local2d"}
    given |= {"registration": "joint2d", "joint": "slices"}
    with pytest.raises(ConfigError, match=r"the nearest that works is \(32, 64\)$") as error:
        build_settings({**given, "preprocessing.size": [20, 50]})
    (one,) = sizes_named(error)
    build_settings({**given, "preprocessing.size": list(one)})
