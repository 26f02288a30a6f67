"""The settings of a run as values: what the YAML files hold, checked when they are read, without Hydra.

Every group of ``conf/`` is one dataclass, its keys the fields. :func:`build` turns the plain dict of a composed configuration
into :class:`Settings` and names every key it does not know.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from oasis_monai.augment import Augmentation
from oasis_monai.corruptions import CORRUPTIONS
from oasis_monai.errors import ConfigError
from oasis_monai.estimator import EstimatorSettings, check_size
from oasis_monai.fitting import TrainingSettings
from oasis_monai.folds import PROTOCOLS
from oasis_monai.losses import RegistrationLoss
from oasis_monai.metrics import REGIONS
from oasis_monai.networks import StmSettings
from oasis_monai.preprocess import Preprocessing
from oasis_monai.segment import INTERPOLATION, JOINT_METHODS, METHODS, check_methods, needs_estimate
from oasis_monai.segnets import NETWORKS, NetworkSettings

T = TypeVar("T")
LABELLED = ("promise12", "msd")
"""Layouts of :func:`oasis_monai.cases.find_cases` that have labels."""


@dataclass(frozen=True)
class DataSettings:
    """A labelled data set (``conf/data``).

    Args:
        name: how reports call it.
        root: its folder.
        layout: ``promise12`` or ``msd``, see :func:`oasis_monai.cases.find_cases`.
        labels: class name -> value in the label files; 0 is the background. Other values in a file are an error. Classes are
            numbered by these values, whatever the order here: a JSON file, where a model keeps them, has an order of its own.
        regions: parts of a structure to score beside the whole: thirds along the axial axis.
        only: case ids to use; empty for all.
        citation, licence: printed in the report.
        source: what ``oasis-monai download`` fetches for it, see :func:`oasis_monai.sources.find_source`.
    """

    name: str = "dataset"
    root: str = ""
    layout: str = "promise12"
    labels: Mapping[str, int] = field(default_factory=lambda: {"prostate": 1})
    regions: tuple[str, ...] = ("whole", "apex", "mid", "base")
    only: tuple[str, ...] = ()
    citation: str = ""
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", dict(self.labels))
        object.__setattr__(self, "regions", tuple(self.regions))
        object.__setattr__(self, "only", tuple(str(case) for case in self.only))
        if self.layout not in LABELLED:
            raise ConfigError("data.layout", f"one of {list(LABELLED)}", self.layout)
        fine = "whole" in self.regions and len(set(self.regions)) == len(self.regions) and set(self.regions) <= set(REGIONS)
        if not fine:  # the whole structure is what is compared, drawn and predicted
            raise ConfigError("data.regions", f"whole and any others of {list(REGIONS)}, each once", list(self.regions))
        values = list(self.labels.values())
        if not values or len(set(values)) != len(values) or not all(isinstance(v, int) and 0 < v < 256 for v in values):
            remedy = "name every value in the label files but 0, the background"
            raise ConfigError("data.labels", "names with different values of 1 to 255", dict(self.labels), remedy)
        object.__setattr__(self, "labels", dict(sorted(self.labels.items(), key=lambda pair: pair[1])))

    @property
    def label_values(self) -> tuple[int, ...]:
        """The file's value of every class, background first."""
        return (0, *self.labels.values())

    @property
    def classes(self) -> int:
        return len(self.labels) + 1


@dataclass(frozen=True)
class FeatureSettings:
    """What similarity between images means (``conf/features``): see :func:`oasis_monai.features.embedder` and
    :func:`oasis_monai.nearest.nearest`."""

    name: str = "efficientnet-lite0"
    weights: str | None = None
    distance: str = "l2"


@dataclass(frozen=True)
class Settings:
    """One experiment. ``identity`` is what its fold models depend on; the rest can change without training again.

    Args:
        spatial_dims: 3: an atlas is a volume; 2: an axial slice (the paper).
        n: numbers of atlases to fuse, each scored by itself.
        methods: names of :data:`oasis_monai.segment.METHODS` (fusion rules) and :data:`oasis_monai.segnets.NETWORKS`.
        folds: protocol, ``patient`` or ``slice``; k: their number; fold: None for all, or the one to run.
        train_cases: train with so many of each fold's patients (a learning curve); None for all.
        seed: of the folds, initial weights and random draws.
        device: ``cpu``, ``cuda`` (``cuda:1``), or ``auto``: a GPU where there is one; threads: of the CPU, None for all cores.
        workers: processes that train networks side by side, on one CPU core each or on the GPU they share.
        temperature: of the conditioned reading of LOA.
        align_batch: pairs per forward pass, the most that is held at once.
        corruptions: corrupted copies of each test case (:mod:`oasis_monai.corruptions`) that the predicted DSC is fitted on
            beside the cases themselves; 0 for none. Patient folds only.
        overlays: how many cases get a picture (those at even distances from worst to best); 0 for none.
        browser: write what the report's case browser shows.
        save_segmentations, save_probability: keep each result on the scan's own grid.
        cache: folder of what every run can use again; progress: show bars.
    """

    data: DataSettings
    preprocessing: Preprocessing
    features: FeatureSettings
    registration: StmSettings
    loss: RegistrationLoss
    training: TrainingSettings
    augmentation: Augmentation
    network: NetworkSettings = field(default_factory=NetworkSettings)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    spatial_dims: int = 3
    n: tuple[int, ...] = (6,)
    methods: tuple[str, ...] = ("FwoW", "FWAL", "OASIS")
    folds: str = "patient"
    k: int = 5
    fold: int | None = None
    train_cases: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    workers: int = 1
    temperature: float = 0.1
    align_batch: int = 8
    corruptions: int = 2
    overlays: int = 6
    browser: bool = True
    save_segmentations: bool = False
    save_probability: bool = False
    cache: str = "outputs/cache"
    progress: bool = True

    def __post_init__(self) -> None:
        n = (self.n,) if isinstance(self.n, int) else tuple(self.n)
        if not n or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in n):
            raise ConfigError("n", "a number of atlases of 1 or more, or a list of them", self.n)
        object.__setattr__(self, "n", tuple(sorted(set(n))))
        methods = check_methods([self.methods] if isinstance(self.methods, str) else self.methods, tuple(NETWORKS))
        object.__setattr__(self, "methods", methods)
        if self.folds not in PROTOCOLS:
            raise ConfigError("folds", f"one of {list(PROTOCOLS)}", self.folds)
        if self.k < 2:
            raise ConfigError("k", "2 folds or more", self.k)
        if self.fold is not None and not 0 <= self.fold < self.k:
            raise ConfigError("fold", f"null (all) or 0 to {self.k - 1}", self.fold)
        if not 0 <= self.seed < 2**31:
            raise ConfigError("seed", "0 to 2147483647", self.seed)
        if self.align_batch < 1:
            raise ConfigError("align_batch", "1 or more", self.align_batch)
        if not 0 <= self.corruptions <= len(CORRUPTIONS):
            raise ConfigError("corruptions", f"0 to {len(CORRUPTIONS)} copies of each test case", self.corruptions)
        if self.overlays < 0:
            raise ConfigError("overlays", "0 or more cases to draw", self.overlays)
        if self.temperature <= 0:
            raise ConfigError("temperature", "a positive number", self.temperature)
        if self.threads is not None and self.threads < 1:
            raise ConfigError("threads", "1 or more, or null for all cores", self.threads)
        if self.workers < 1:
            raise ConfigError("workers", "1 or more processes", self.workers)
        if self.train_cases is not None and self.train_cases < 2:
            raise ConfigError("train_cases", "2 or more patients, or null for all", self.train_cases)
        if self.train_cases is not None and self.folds != "patient":
            raise ConfigError("train_cases", "null where folds=slice", self.train_cases, "set folds=patient")
        if self.atlas_methods:
            self.preprocessing.check_divisor(self.registration.divisor(self.spatial_dims))
        joint = [m for m in self.methods if m in JOINT_METHODS]
        if joint and not self.registration.joint:
            raise ConfigError("methods", "methods of a model that is not a joint one", joint[0], "set registration.joint=true")
        if INTERPOLATION in self.methods and not (self.folds == "slice" and self.spatial_dims == 2):
            remedy = "set folds=slice spatial_dims=2, or leave it out: it needs labelled slices of the very scan"
            raise ConfigError("methods", "methods for new scans", INTERPOLATION, remedy)
        if self.joint:
            check_size(self.preprocessing.size)
            if self.spatial_dims == 3 and self.estimator.atlases:
                raise ConfigError("estimator.atlases", "0 where spatial_dims is 3", self.estimator.atlases)
            if self.estimator.shares(self.spatial_dims)[1]:
                self._check_volume_network()
        for name in self.networks:
            if NETWORKS[name] != self.spatial_dims:
                fitting = [*METHODS, *(n for n, dims in NETWORKS.items() if dims == self.spatial_dims)]
                raise ConfigError("methods", f"methods for spatial_dims={self.spatial_dims}: {fitting}", name)
            self.network.window(self.preprocessing.size, name)

    def _check_volume_network(self) -> None:
        """The volume network's grid must be one it can halve often enough."""
        size, stride, name = self.preprocessing.size, self.estimator.volume_stride, self.estimator.volume_network
        if any(n % s for n, s in zip(size, stride, strict=True)):
            raise ConfigError("estimator.volume_stride", f"divisors of preprocessing.size {size}", stride)
        try:
            replace(self.network, patch=None).window([n // s for n, s in zip(size, stride, strict=True)], name)
        except ConfigError as error:
            levels = f"network.{self.network.kind(name)}"
            remedy = f"change estimator.volume_stride or preprocessing.size, take fewer levels in {levels}, or volume_share=0"
            raise ConfigError("estimator.volume_stride", f"a grid of {error.expected}", error.found, remedy) from None

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the working grid must be a multiple of along x, y (, z) for every network of the methods."""
        found = [(self.network.divisor(name),) * self.spatial_dims for name in self.networks]
        if self.atlas_methods:
            found.append(self.registration.divisor(self.spatial_dims))
        if self.joint and self.has_volume_network:
            by = self.network.divisor(self.estimator.volume_network)
            found.append(tuple(s * by for s in self.estimator.volume_stride))
        return tuple(math.lcm(*along) for along in zip(*found, strict=True))

    def takes(self, preprocessing: Preprocessing) -> bool:
        """Whether every network of the methods can work on this grid."""
        try:
            replace(self, preprocessing=preprocessing)
        except ConfigError:
            return False
        return True

    @property
    def atlas_methods(self) -> tuple[str, ...]:
        """Those of ``methods`` that fuse atlases, at every n."""
        return tuple(m for m in self.methods if m in METHODS)

    @property
    def joint(self) -> bool:
        """Whether the methods need the segmentation network of a joint model."""
        return self.registration.joint and needs_estimate(self.methods)

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of ``methods`` that are segmentation networks, which know no n."""
        return tuple(m for m in self.methods if m in NETWORKS)

    def identity(self) -> dict[str, Any]:
        """What a trained STM depends on beside its training data; never n, methods or anything of inference."""
        return {
            "preprocessing": asdict(self.preprocessing),
            "registration": asdict(self.registration),
            "loss": {k: getattr(self.loss, k) for k in ("alpha", "beta", "gamma", "similarity", "smooth")},
            "training": self.training.identity(),
            "augmentation": asdict(self.augmentation) if self.training.augment else None,
            "features": asdict(self.features) if self.training.pairs or self.registration.joint else None,
            "estimator": self.estimator.identity() if self.registration.joint else None,
            "seed": self.seed,
            **({"volume_network": self._volume_network()} if self.registration.joint and self.has_volume_network else {}),
            "mirror": self.estimator.mirror if self.registration.joint else None,  # the estimates a joint STM is trained on
        }

    @property
    def has_volume_network(self) -> bool:
        """Whether a joint model has a network on the volume beside that on slices."""
        return self.estimator.shares(self.spatial_dims)[1] > 0

    def _volume_network(self) -> dict[str, Any]:
        """What decides the weights of a joint model's volume network, which always sees whole volumes."""
        return dataclasses.replace(self.network, patch=None).identity(self.estimator.volume_network)

    def estimator_identity(self) -> dict[str, Any]:
        """What a joint model's segmentation network depends on beside its training data."""
        shared = self.identity()
        training = {k: v for k, v in shared["training"].items() if k in ("iterations", "minutes", "augment", "amp")}
        kept = {k: shared[k] for k in ("preprocessing", "augmentation", "features", "estimator", "seed")}
        return {**kept, "training": training}

    def volume_identity(self) -> dict[str, Any]:
        """What a joint model's volume network depends on beside its training data."""
        estimator = {k: getattr(self.estimator, k) for k in ("share", "volume_share", "volume_stride")}
        shared = self.network_identity(self.estimator.volume_network)
        return {**shared, "network": self._volume_network(), "estimator": estimator}

    def network_identity(self, name: str) -> dict[str, Any]:
        """What a trained segmentation network depends on beside its training data."""
        shared = self.identity()
        training = {k: v for k, v in shared["training"].items() if k != "pairs"}
        kept = {k: shared[k] for k in ("preprocessing", "augmentation", "seed")}
        return {**kept, "training": training, "network": self.network.identity(name)}

    def to_json(self) -> dict[str, Any]:
        """All settings as plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain |= {
            k: asdict(v) for k, v in plain.items() if dataclasses.is_dataclass(v) and not isinstance(v, RegistrationLoss | type)
        }
        plain["loss"] = self.identity()["loss"]
        plain["preprocessing"].pop("spatial_dims")  # stands at the top
        return _plain(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def make_group(kind: type[T], values: Any, group: str, **more: Any) -> T:
    """``kind(**values)``, with keys of the group checked and lists made tuples."""
    if not isinstance(values, Mapping):
        raise ConfigError(group, "a group of settings", values)
    known = {f.name for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"{group}.{unknown[0]}" if group else unknown[0], f"one of {sorted(known)}", "an unknown key", "correct or remove it"
        )
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints = typing.get_type_hints(kind)
    for key, value in made.items():
        if (group, key) in IDS and isinstance(value, tuple):
            value = made[key] = tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
        one_for_list = (group, key) in SCALARS and not isinstance(value, tuple)
        if not _fits((value,) if one_for_list else value, hints[key]):
            raise ConfigError(f"{group}.{key}" if group else key, _words(hints[key]), values[key])
    return kind(**made, **more)


SCALARS = {("", "n"), ("", "methods"), ("registration", "field_stride")}  # lists that a single value may stand for
IDS = {("data", "only")}  # texts that a YAML file reads as numbers
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of a YAML file is of a field's type. A whole number is a number; true and false are neither."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, a) for a in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)


def _words(hint: Any) -> str:
    """A field's type, for a message."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(a) for a in arguments)
    if origin is tuple:
        return f"a list, each {_words(arguments[0])}"
    if origin is Mapping:
        return f"a map of {_words(arguments[0])} to {_words(arguments[1])}"
    return _NAMES.get(hint, "a group of settings")


def build(config: Mapping[str, Any]) -> Settings:
    """Settings from the plain dict of a composed configuration. ``methods`` may be null: what the paper compares, and
    ``OASIS-joint`` where the model is a joint one.

    Raises:
        ConfigError: an unknown key, a value out of range, or sizes the network cannot take.
    """
    top = dict(config)
    groups: dict[str, Any] = {
        "data": DataSettings,
        "features": FeatureSettings,
        "registration": StmSettings,
        "loss": RegistrationLoss,
        "training": TrainingSettings,
        "augmentation": Augmentation,
        "network": NetworkSettings,
        "estimator": EstimatorSettings,
    }
    dims = top.get("spatial_dims", 3)
    made: dict[str, Any] = {name: make_group(kind, top.pop(name, {}), name) for name, kind in groups.items()}
    made["preprocessing"] = make_group(Preprocessing, top.pop("preprocessing", {}), "preprocessing", spatial_dims=dims)
    if top.get("methods", ()) is None:
        top["methods"] = ["FwoW", "FWAL", "OASIS", *(["OASIS-joint"] if made["registration"].joint else [])]
    return make_group(Settings, {**top, **made}, "")
