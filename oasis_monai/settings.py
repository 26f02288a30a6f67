"""All settings of a run as checked dataclasses, one per group of ``conf/``, without Hydra.

Every group of ``conf/`` is one dataclass, its keys the fields. :func:`build_settings` gives the settings that the command line
has with the same options; :func:`build` turns the plain dict of a composed configuration into :class:`Settings` and names every
key it does not know.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from oasis_monai.atlases.features import FeatureSettings
from oasis_monai.data.folds import PROTOCOLS
from oasis_monai.data.settings import DataSettings
from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.patches import on_fine_grid
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.segmentation import NETWORKS, NetworkSettings
from oasis_monai.networks.slice_unet import JointSettings, check_size
from oasis_monai.segmentation.methods import (
    ESTIMATE,
    INTERPOLATION,
    METHODS,
    USUAL_ATLASES,
    check_methods,
    methods_that_need,
    uses_estimate,
)
from oasis_monai.segmentation.postprocessing import ALL, AUTO, MODES
from oasis_monai.segmentation.views import DOUBTFUL, SEARCHES
from oasis_monai.training.self_training import SelfTraining
from oasis_monai.training.tracking import AUTO as TRACK
from oasis_monai.training.tracking import KINDS
from oasis_monai.training.trainer import TrainingSettings
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.transforms.corruptions import CORRUPTIONS
from oasis_monai.transforms.preprocessing import MOST_VOXELS, Preprocessing
from oasis_monai.utils.config import INFERENCE_ONLY, check_renamed, identity_of, make_group, not_used_by, plain, require
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.planned import without_nulls
from oasis_monai.utils.presets import compose

JOINT_NETWORKS = ("slices", "volume", "boxes")
"""Kinds of network that a joint model has beside its registration network."""
DEFAULT_METHODS = ("FwoW", "FWAL", "OASIS")
"""What the paper compares."""
SEARCHED = 4
"""Steps along each axis in which sizes that work are looked for."""
NULLABLE = ("n", "methods", "views", "views_below")
"""Keys whose null in a configuration means the default; where a model is used, what it was trained with."""
NOT_IN_NAME = {"inference_only": True}
"""Metadata of a field that training reads in another form, which the name of a trained network holds: its cases and labels."""
REST = "rest"
"""In the place of a folder of unlabelled scans: the training patients of a fold that ``train_cases`` leaves out."""
REST_NEEDS = f"a folder, or {REST} where train_cases leaves some patients out"


@dataclass(frozen=True)
class Settings:
    """All settings of one experiment, checked. :func:`build_settings` makes them from the options of the command line.

    Args:
        data, preprocessing, features, registration, loss, training, augmentation, network, joint, self_training: the groups, see
            their classes.
        spatial_dims: 3: an atlas is a volume; 2: an axial slice (the paper).
        n: numbers of atlases to fuse, each 1 or more and scored by itself.
        methods: names of :data:`oasis_monai.segmentation.methods.METHODS` (fusion rules) and
            :data:`oasis_monai.networks.segmentation.NETWORKS`. None for FwoW, FWAL, OASIS and, with a joint model, OASIS-joint.
        folds: ``patient`` (whole patients are held out), ``centre`` (one centre is left out after the other), ``file`` (the folds
            that the data set says) or ``slice`` (the paper's protocol; needs ``spatial_dims=2``).
        k: number of folds, 2 or more; by centre and from the file there are as many as these have. fold: None for all of them, or
            the one to run, 0 to ``k - 1``, or the centre's name.
        train_cases: train with this many of each fold's patients (a learning curve), 2 or more; None for all.
        unlabelled: scans without labels that the models are trained on with (``self_training``): whatever
            :func:`oasis_monai.data.scans.find_scans` takes, or ``rest``, of a cross-validation with ``train_cases`` the training
            patients of each fold that these leave out, without their labels. None: no such scans. Not under slice folds.
        seed: of the folds, initial weights and random draws; 0 to 2147483647.
        device: ``cpu``, ``cuda`` (``cuda:1``), or ``auto``: a GPU where there is one.
        threads: CPU threads, 1 or more; None for all cores.
        workers: processes that train networks side by side, 1 or more, each on one CPU core or all on one GPU.
        postprocessing: ``auto`` (pieces and holes that no training label has are removed and filled where the cross-validation
            shows that it helps), ``none`` or ``all`` (wherever there are any), see
            :mod:`oasis_monai.segmentation.postprocessing`. Not under slice folds.
        temperature: how strongly ``OASIS-conditioned`` prefers near atlases: the smaller, the more; above 0.
        align_batch: pairs per forward pass of the registration network, 1 or more. Lower it when memory is short.
        corruptions: number of corrupted copies of each test case (:mod:`oasis_monai.transforms.corruptions`) on which the
            predicted Dice is fitted, beside the cases themselves; 0 for none. Not under slice folds.
        views: for which scans a joint model of volumes looks for another view (:mod:`oasis_monai.segmentation.views`):
            ``doubtful``, ``none`` or ``all``.
        views_below: the agreement below which a scan is doubtful, 0 to 1.
        overlays: number of cases drawn with contours (evenly spaced from worst to best), 0 or more.
        browser: keep what the case browser of the report shows.
        save_segmentations, save_probability, save_uncertainty: write each result on the scan's own grid.
        save_structures: beside each label also a mask of every structure; always where the training labels had masks
            (``data.overlap``).
        cache: folder of preprocessed cases and trained networks, which later runs use again.
        progress: show progress bars.
        tracking: what shows trainings while they run: ``tensorboard``, ``mlflow``, ``none``, or ``auto``: TensorBoard where it is
            installed. It changes no result.

    Raises:
        ConfigError: naming the key whose value cannot work, alone or with the others.

    Examples:
        >>> from oasis_monai.settings import DataSettings, Settings
        >>> settings = Settings(data=DataSettings(root="scans", labels={"prostate": 1}), n=(1, 6))
        >>> settings.methods
        ('FwoW', 'FWAL', 'OASIS', 'OASIS-joint')
        >>> Settings(data=settings.data, k=1)
        Traceback (most recent call last):
        oasis_monai.utils.errors.ConfigError: k: expected 2 folds or more, found 1; change it in the configuration
    """

    data: DataSettings = field(metadata=NOT_IN_NAME)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    features: FeatureSettings = field(default_factory=FeatureSettings, metadata=not_used_by("volume", "segmentation"))
    registration: RegistrationSettings = field(
        default_factory=RegistrationSettings, metadata=not_used_by(*JOINT_NETWORKS, "segmentation")
    )
    loss: RegistrationLoss = field(default_factory=RegistrationLoss, metadata=not_used_by(*JOINT_NETWORKS, "segmentation"))
    training: TrainingSettings = field(default_factory=TrainingSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    network: NetworkSettings = field(default_factory=NetworkSettings, metadata=not_used_by("slices"))
    joint: JointSettings = field(default_factory=JointSettings, metadata=not_used_by("segmentation"))
    self_training: SelfTraining = field(default_factory=SelfTraining, metadata=NOT_IN_NAME)
    spatial_dims: int = 3
    n: tuple[int, ...] = field(default=(USUAL_ATLASES,), metadata=INFERENCE_ONLY)
    methods: tuple[str, ...] = field(default=None, metadata=INFERENCE_ONLY)  # type: ignore[arg-type]  # filled in
    folds: str = field(default="patient", metadata=NOT_IN_NAME)
    k: int = field(default=5, metadata=NOT_IN_NAME)
    fold: int | str | None = field(default=None, metadata=NOT_IN_NAME)
    train_cases: int | None = field(default=None, metadata=NOT_IN_NAME)
    unlabelled: str | None = field(default=None, metadata=NOT_IN_NAME)
    seed: int = 0
    device: str = field(default="auto", metadata=INFERENCE_ONLY)
    threads: int | None = field(default=None, metadata=INFERENCE_ONLY)
    workers: int = field(default=1, metadata=INFERENCE_ONLY)
    postprocessing: str = field(default=AUTO, metadata=INFERENCE_ONLY)
    temperature: float = field(default=0.1, metadata=INFERENCE_ONLY)
    align_batch: int = field(default=8, metadata=INFERENCE_ONLY)
    corruptions: int = field(default=2, metadata=INFERENCE_ONLY)
    views: str = field(default="doubtful", metadata=INFERENCE_ONLY)
    views_below: float = field(default=DOUBTFUL, metadata=INFERENCE_ONLY)
    overlays: int = field(default=6, metadata=INFERENCE_ONLY)
    browser: bool = field(default=True, metadata=INFERENCE_ONLY)
    save_segmentations: bool = field(default=False, metadata=INFERENCE_ONLY)
    save_probability: bool = field(default=False, metadata=INFERENCE_ONLY)
    save_uncertainty: bool = field(default=False, metadata=INFERENCE_ONLY)
    save_structures: bool = field(default=False, metadata=INFERENCE_ONLY)
    cache: str = field(default="outputs/cache", metadata=INFERENCE_ONLY)
    progress: bool = field(default=True, metadata=INFERENCE_ONLY)
    tracking: str = field(default=TRACK, metadata=INFERENCE_ONLY)

    def __post_init__(self) -> None:
        n = (self.n,) if isinstance(self.n, int) else tuple(self.n)
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in n)
        require(self, "", ("n", len(n) > 0 and whole, "a number of atlases of 1 or more, or a list of them"))
        object.__setattr__(self, "n", tuple(sorted(set(n))))
        methods = (
            DEFAULT_METHODS + (("OASIS-joint",) if self.registration.joint else ()) if self.methods is None else self.methods
        )
        checked = check_methods([methods] if isinstance(methods, str) else methods, tuple(NETWORKS))
        object.__setattr__(self, "methods", checked)
        require(
            self,
            "",
            ("folds", self.folds in PROTOCOLS, f"one of {list(PROTOCOLS)}"),
            ("k", self.k > 1, "2 folds or more"),
            ("fold", self._may_be_fold(), f"null (all) or 0 to {self.k - 1}"),
            ("seed", 0 <= self.seed < 2**31, "0 to 2147483647"),
            ("align_batch", self.align_batch > 0, "1 or more"),
            ("corruptions", 0 <= self.corruptions <= len(CORRUPTIONS), f"0 to {len(CORRUPTIONS)} copies of each test case"),
            ("views", self.views in SEARCHES, f"one of {list(SEARCHES)}"),
            ("views_below", 0 <= self.views_below <= 1, "0 to 1"),
            ("overlays", self.overlays >= 0, "0 or more cases to draw"),
            ("postprocessing", self.postprocessing in MODES, f"one of {', '.join(MODES)}"),
            ("postprocessing", self.postprocessing != ALL or self.folds != "slice", "auto or none where folds=slice"),
            (
                "postprocessing",
                self.postprocessing != ALL or not self.data.structures,
                "auto or none where structures share voxels",
            ),
            ("tracking", self.tracking in KINDS, f"one of {list(KINDS)}"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("threads", self.threads is None or self.threads > 0, "1 or more, or null for all cores"),
            ("workers", self.workers > 0, "1 or more processes"),
            ("train_cases", self.train_cases is None or self.train_cases > 1, "2 or more patients, or null for all"),
            ("train_cases", self.train_cases is None or self.folds != "slice", "null where folds=slice", "set folds=patient"),
            ("unlabelled", self.unlabelled is None or self.folds != "slice", "null where folds=slice", "set folds=patient"),
            ("unlabelled", self.unlabelled != REST or self.train_cases is not None, REST_NEEDS, "add train_cases=N"),
            ("unlabelled", self.unlabelled != "", "a folder of scans, or null", "give a path"),
        )
        if self.self_training.views not in SEARCHES:
            raise ConfigError("self_training.views", f"one of {list(SEARCHES)}", self.self_training.views)
        self._check_methods()
        self._check_networks()

    def _may_be_fold(self) -> bool:
        """Whether ``fold`` can be one; what centres and folds a data set has is known later."""
        if self.fold is None or self.folds in ("centre", "file"):
            return self.fold is None or isinstance(self.fold, str) or self.fold >= 0
        return isinstance(self.fold, int) and 0 <= self.fold < self.k

    def _check_methods(self) -> None:
        """Whether the model and the folds are of the kind the methods need."""
        joint = methods_that_need(ESTIMATE, self.methods)
        if joint and not self.registration.joint:
            raise ConfigError("methods", "methods that need no joint model", joint[0], "set registration.joint=true")
        if INTERPOLATION in self.methods and not (self.folds == "slice" and self.spatial_dims == 2):
            remedy = "set folds=slice spatial_dims=2, or leave it out: it needs labelled slices of the scan itself"
            raise ConfigError("methods", "methods for new scans", INTERPOLATION, remedy)

    def _check_anywhere(self) -> None:
        """Whether structures that may lie anywhere can be copied to other places."""
        found = list(self.joint.anywhere)
        if self.spatial_dims == 2 or self.data.structures:
            expected = "[] where spatial_dims is 2 or structures share voxels"
            raise ConfigError("joint.anywhere", expected, found, "leave it out: copies need volumes")
        if self.data.labels and (unknown := [name for name in found if name not in self.data.labels]):
            raise ConfigError("joint.anywhere", f"names of structures: {', '.join(self.data.labels)}", ", ".join(unknown))

    def _check_networks(self) -> None:
        """Whether every network of the methods can work on the working grid."""
        require(
            self,
            "",
            ("spatial_dims", self.spatial_dims == self.preprocessing.spatial_dims, "that of the preprocessing"),
        )
        if self.uses_joint_model and self.spatial_dims == 3 and self.joint.atlases:
            raise ConfigError("joint.atlases", "0 where spatial_dims is 3", self.joint.atlases)
        if self.uses_joint_model and (self.joint.box_budget > 0) != (self.preprocessing.box_factor is not None):
            expected = "above 0 where preprocessing.box_factor is set, else 0"
            raise ConfigError("joint.box_budget", expected, self.joint.box_budget, "set both or neither")
        if self.uses_joint_model and self.joint.anywhere:
            self._check_anywhere()
        if self.spatial_dims == 2 and self.joint.cross_fit_budget:
            raise ConfigError("joint.cross_fit_budget", "0 where spatial_dims is 2", self.joint.cross_fit_budget)
        for name in self.networks:
            if NETWORKS[name] != self.spatial_dims:
                fitting = [*METHODS, *(n for n, dims in NETWORKS.items() if dims == self.spatial_dims)]
                raise ConfigError("methods", f"methods for spatial_dims={self.spatial_dims}: {fitting}", name)
        try:
            self._check_grid(self.preprocessing)
        except ConfigError as error:
            if error.key == "network.patch" or not (sizes := self._nearest_sizes()):
                raise
            if error.key == "preprocessing.size":
                remedy = f"the nearest that work{'s is' if len(sizes) == 1 else ' are'} {' or '.join(map(str, sizes))}"
            else:
                remedy = f"take preprocessing.size={' or '.join(map(str, sizes))}, or {error.remedy}"
            raise ConfigError(error.key, error.expected, error.found, remedy) from None

    def _check_grid(self, preprocessing: Preprocessing) -> None:
        """Refuse a working grid that a network of the methods cannot work on."""
        if self.atlas_methods:
            preprocessing.check_divisor(self.registration.divisor(self.spatial_dims))
        if self.uses_joint_model:
            check_size(preprocessing.fine_size)
            if self.has_volume_network:
                self._check_volume_network(preprocessing.size)
        for name in self.networks:
            self.compared_network(preprocessing).window(preprocessing.fine_size, name)

    def _nearest_sizes(self) -> list[tuple[int, ...]]:
        """The sizes that all networks can work on which are nearest: none of whose sides is longer, and none shorter."""
        size, parts = self.preprocessing.size, (self.preprocessing.fine_factor or (1,), self.preprocessing.box_factor or (1,))
        most = MOST_VOXELS // max(map(math.prod, parts))  # larger ones cannot be made with these factors
        steps = [
            [k * d for k in range(max(1, n // d - SEARCHED), n // d + SEARCHED)] for n, d in zip(size, self.divisor, strict=True)
        ]
        able = [
            one
            for one in itertools.product(*steps)
            if math.prod(one) <= most and self.takes(replace(self.preprocessing, size=one))
        ]
        able.sort(key=lambda one: sum(abs(math.log(a / n)) for a, n in zip(one, size, strict=True)))
        below = [one for one in able if all(a <= n for a, n in zip(one, size, strict=True))]
        above = [one for one in able if all(a >= n for a, n in zip(one, size, strict=True))]
        return [*below[:1], *above[:1]] or able[:1]

    def _check_volume_network(self, size: tuple[int, ...]) -> None:
        """The volume network's grid must be one it can halve often enough."""
        stride, name = self.joint.volume_stride, self.joint.volume_network
        if any(n % s for n, s in zip(size, stride, strict=True)):
            raise ConfigError("joint.volume_stride", f"divisors of preprocessing.size {size}", stride)
        try:
            replace(self.network, patch=None).window([n // s for n, s in zip(size, stride, strict=True)], name)
        except ConfigError as error:
            levels = f"network.{self.network.kind(name)}"
            remedy = f"change joint.volume_stride, take fewer levels in {levels}, or set joint.volume_budget=0"
            raise ConfigError("joint.volume_stride", f"a grid of {error.expected}", error.found, remedy) from None

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the working grid must be a multiple of along x, y (, z) for every network of the methods."""
        whole = self.networks if self.preprocessing.fine_factor is None else ()  # patches fit any grid
        found = [(1,) * self.spatial_dims, *((self.network.divisor(name),) * self.spatial_dims for name in whole)]
        if self.atlas_methods:
            found.append(self.registration.divisor(self.spatial_dims))
        if self.uses_joint_model and self.has_volume_network:
            by = self.network.divisor(self.joint.volume_network)
            found.append(tuple(s * by for s in self.joint.volume_stride))
        return tuple(math.lcm(*along) for along in zip(*found, strict=True))

    def compared_network(self, preprocessing: Preprocessing | None = None) -> NetworkSettings:
        """The settings of the segmentation networks of ``methods``, with their patch where there is a fine grid.

        Args:
            preprocessing: in the place of the settings' own.

        Raises:
            ConfigError: a fine grid that they cannot see.
        """
        grid = preprocessing or self.preprocessing
        if grid.fine_factor is None or grid.spacing_mm is None:
            return self.network
        spacing_mm = [mm / f for mm, f in zip(grid.spacing_mm, grid.fine_factor, strict=True)]
        return on_fine_grid(self.network, grid.fine_size, spacing_mm, self.training.batch)

    def takes(self, preprocessing: Preprocessing) -> bool:
        """Whether every network of the methods can work on this grid."""
        try:
            self._check_grid(preprocessing)
        except ConfigError:
            return False
        return True

    @property
    def atlas_methods(self) -> tuple[str, ...]:
        """Those of ``methods`` that fuse atlases, at every n."""
        return tuple(m for m in self.methods if m in METHODS)

    @property
    def uses_joint_model(self) -> bool:
        """Whether the methods need the segmentation network of a joint model."""
        return self.registration.joint and uses_estimate(self.methods)

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of ``methods`` that are segmentation networks, which know no n."""
        return tuple(m for m in self.methods if m in NETWORKS)

    @property
    def has_volume_network(self) -> bool:
        """Whether a joint model has a network on the volume beside that on slices."""
        return self.joint.budgets(self.spatial_dims)[1] > 0

    @property
    def has_box_network(self) -> bool:
        """Whether a joint model looks again in boxes."""
        return self.registration.joint and self.preprocessing.box_factor is not None

    @property
    def anywhere(self) -> tuple[int, ...]:
        """The classes of ``joint.anywhere``."""
        names = list(self.data.labels)
        return tuple(names.index(name) + 1 for name in self.joint.anywhere)

    def identity(self, network: str = "registration") -> dict[str, Any]:
        """What a trained network depends on beside its training data, as plain JSON values.

        Every field counts but those marked otherwise (:mod:`oasis_monai.utils.config`): a new one makes new names.

        Args:
            network: ``registration``, ``slices``, ``volume`` or ``boxes`` (a joint model's), or one of
                :data:`oasis_monai.networks.segmentation.NETWORKS`.
        """
        kind = "segmentation" if network in NETWORKS else network
        found = identity_of(self, kind)
        joint = kind in JOINT_NETWORKS or (kind == "registration" and self.registration.joint)
        found["augmentation"] = self.augmentation.identity(kind) if self.training.augment else None
        if "features" in found and not (joint or self.training.nearest_partners):
            found["features"] = None
        if "joint" in found:
            found["joint"] = self.joint.identity(kind) if joint else None
        if kind == "segmentation":
            found["network"] = self.compared_network().identity(network)
            if self.preprocessing.fine_factor is not None:
                found["network"]["grid"] = "fine"
        elif "network" in found:  # a joint model's volume network always sees whole volumes
            whole = joint and (kind == "volume" or self.has_volume_network)
            found["network"] = replace(self.network, patch=None).identity(self.joint.volume_network) if whole else None
        return found

    def to_json(self) -> dict[str, Any]:
        """All settings as plain JSON values, which :func:`build` takes back."""
        values: dict[str, Any] = plain(self)
        values["preprocessing"].pop("spatial_dims")  # stands at the top
        if self.unlabelled is None:  # the record of a run without such scans is what it was before there were any
            del values["unlabelled"], values["self_training"]
        if self.tracking == TRACK:  # likewise
            del values["tracking"]
        if not self.save_structures:
            del values["save_structures"]
        if not self.data.structures:  # nor is a data set whose structures share no voxel another one
            del values["data"]["structures"], values["data"]["overlap"]
        if self.preprocessing.box_factor is None:  # nor were there boxes
            del values["preprocessing"]["box_factor"], values["joint"]["box_budget"]
        for key in ("even_draws", "anywhere"):  # nor these
            if not values["joint"][key]:
                del values["joint"][key]
        return values


GROUPS: dict[str, Any] = {
    "data": DataSettings,
    "preprocessing": Preprocessing,
    "features": FeatureSettings,
    "registration": RegistrationSettings,
    "loss": RegistrationLoss,
    "training": TrainingSettings,
    "augmentation": Augmentation,
    "network": NetworkSettings,
    "joint": JointSettings,
    "self_training": SelfTraining,
}
"""The class of every group of settings."""


def build(config: Mapping[str, Any]) -> Settings:
    """Settings from the plain dict of a composed configuration, or from :meth:`Settings.to_json`. What is left out has the
    default of its class; what is left to the plan (null) is that of :data:`oasis_monai.utils.planned.UNPLANNED`.

    Raises:
        ConfigError: an unknown key, a value out of range, or sizes the network cannot take.
    """
    config = without_nulls(config)
    top = {key: value for key, value in config.items() if key not in NULLABLE or value is not None}
    more = {"preprocessing": {"spatial_dims": top.get("spatial_dims", 3)}}
    groups = {name: make_group(kind, top.pop(name, {}), name, **more.get(name, {})) for name, kind in GROUPS.items()}
    return make_group(Settings, {**top, **groups}, "")


def build_data(config: Mapping[str, Any]) -> tuple[DataSettings, Preprocessing]:
    """Of :func:`build` what a look at the data needs, also where the other settings cannot work.

    Raises:
        ConfigError: see :func:`build`.
    """
    config = without_nulls(config)
    dims = config.get("spatial_dims", 3)
    preprocessing = make_group(Preprocessing, config.get("preprocessing", {}), "preprocessing", spatial_dims=dims)
    return make_group(DataSettings, config.get("data", {}), "data"), preprocessing


def build_settings(options: Mapping[str, Any] | None = None, **more: Any) -> Settings:
    """The settings that the command line has with the same options, without a look at the data.

    What the command line's tasks leave to the plan of the data set (:func:`oasis_monai.plan`, whose ``settings`` have it) is here
    what suits a prostate in T2 MR, see :data:`oasis_monai.utils.planned.UNPLANNED`.

    Args:
        options: values by the names of the command line. A key may have dots, and a value may be a dict of further keys. A text
            for a group chooses a preset of ``conf/`` by its name; a text for ``experiment`` chooses one of ``conf/experiment``.
            A dict for ``data`` describes a data set of your own completely, and nothing of the default data set stays in it. To
            change one value of a preset, write ``{"data": "promise12", "data.root": "scans"}``.
        more: further options, by names without dots; they are laid over ``options``.

    Raises:
        ConfigError: an unknown key or preset, a value out of range, or values that do not work together.

    Examples:
        >>> from oasis_monai.settings import build_settings
        >>> mine = {"root": "scans", "layout": "msd", "labels": {"spleen": 1}}
        >>> settings = build_settings({"training.iterations": 50, "training.minutes": None}, data=mine, n=4)
        >>> settings.training.iterations, settings.training.lr, settings.data.labels
        (50, 0.002, {'spleen': 1})
        >>> build_settings(data="promise12", registration="unet3d", loss="eq1").loss.gamma
        0.01
    """
    return build(composed(options, more))


def composed(options: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """The plain configuration of :func:`build_settings`, with nulls for what is left to the plan.

    Raises:
        ConfigError: an old name of an option, or an unknown preset.
    """
    given = [*(options or {}), *more]
    for key in given:
        check_renamed(str(key))
    # conf/config.yaml also has options of tasks (model=, input=, ...): they are left out, but refused where the caller gives them
    known = {f.name for f in dataclasses.fields(Settings)} | {str(key).partition(".")[0] for key in given}
    return {key: value for key, value in compose(options or {}, more).items() if key in known}
