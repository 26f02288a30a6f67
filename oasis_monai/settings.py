"""The settings of a run as values: what the YAML files hold, checked when they are read, without Hydra.

Every group of ``conf/`` is one dataclass, its keys the fields. :func:`build` turns the plain dict of a composed configuration
into :class:`Settings` and names every key it does not know.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from oasis_monai.atlases.features import FeatureSettings
from oasis_monai.data.cases import DataSettings
from oasis_monai.data.folds import PROTOCOLS
from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.segmentation import NETWORKS, NetworkSettings
from oasis_monai.networks.slice_unet import JointSettings, check_size
from oasis_monai.segmentation.methods import ESTIMATE, INTERPOLATION, METHODS, check_methods, methods_that_need, uses_estimate
from oasis_monai.training.trainer import TrainingSettings
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.transforms.corruptions import CORRUPTIONS
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.utils.config import make_group
from oasis_monai.utils.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """One experiment. ``identity`` is what its fold models depend on; the rest can change without training again.

    Args:
        spatial_dims: 3: an atlas is a volume; 2: an axial slice (the paper).
        n: numbers of atlases to fuse, each scored by itself.
        methods: names of :data:`.segment.METHODS` (fusion rules) and :data:`.segmentation.NETWORKS`.
        folds: protocol, ``patient`` or ``slice``; k: their number; fold: None for all, or the one to run.
        train_cases: train with so many of each fold's patients (a learning curve); None for all.
        seed: of the folds, initial weights and random draws.
        device: ``cpu``, ``cuda`` (``cuda:1``), or ``auto``: a GPU where there is one; threads: of the CPU, None for all cores.
        workers: processes that train networks side by side, on one CPU core each or on the GPU they share.
        temperature: of the conditioned reading of LOA.
        align_batch: pairs per forward pass, the most that is held at once.
        corruptions: corrupted copies of each test case (:mod:`.corruptions`) that the predicted DSC is fitted on
            beside the cases themselves; 0 for none. Patient folds only.
        overlays: how many cases get a picture (those at even distances from worst to best); 0 for none.
        browser: write what the report's case browser shows.
        save_segmentations, save_probability: keep each result on the scan's own grid.
        cache: folder of what every run can use again; progress: show bars.
    """

    data: DataSettings
    preprocessing: Preprocessing
    features: FeatureSettings
    registration: RegistrationSettings
    loss: RegistrationLoss
    training: TrainingSettings
    augmentation: Augmentation
    network: NetworkSettings = field(default_factory=NetworkSettings)
    joint: JointSettings = field(default_factory=JointSettings)
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
        joint = methods_that_need(ESTIMATE, self.methods)
        if joint and not self.registration.joint:
            raise ConfigError("methods", "methods of a model that is not a joint one", joint[0], "set registration.joint=true")
        if INTERPOLATION in self.methods and not (self.folds == "slice" and self.spatial_dims == 2):
            remedy = "set folds=slice spatial_dims=2, or leave it out: it needs labelled slices of the very scan"
            raise ConfigError("methods", "methods for new scans", INTERPOLATION, remedy)
        if self.uses_joint_model:
            check_size(self.preprocessing.size)
            if self.spatial_dims == 3 and self.joint.atlases:
                raise ConfigError("joint.atlases", "0 where spatial_dims is 3", self.joint.atlases)
            if self.joint.budgets(self.spatial_dims)[1]:
                self._check_volume_network()
        for name in self.networks:
            if NETWORKS[name] != self.spatial_dims:
                fitting = [*METHODS, *(n for n, dims in NETWORKS.items() if dims == self.spatial_dims)]
                raise ConfigError("methods", f"methods for spatial_dims={self.spatial_dims}: {fitting}", name)
            self.network.window(self.preprocessing.size, name)

    def _check_volume_network(self) -> None:
        """The volume network's grid must be one it can halve often enough."""
        size, stride, name = self.preprocessing.size, self.joint.volume_stride, self.joint.volume_network
        if any(n % s for n, s in zip(size, stride, strict=True)):
            raise ConfigError("joint.volume_stride", f"divisors of preprocessing.size {size}", stride)
        try:
            replace(self.network, patch=None).window([n // s for n, s in zip(size, stride, strict=True)], name)
        except ConfigError as error:
            levels = f"network.{self.network.kind(name)}"
            remedy = f"change joint.volume_stride or preprocessing.size, take fewer levels in {levels}, or joint.volume_budget=0"
            raise ConfigError("joint.volume_stride", f"a grid of {error.expected}", error.found, remedy) from None

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the working grid must be a multiple of along x, y (, z) for every network of the methods."""
        found = [(self.network.divisor(name),) * self.spatial_dims for name in self.networks]
        if self.atlas_methods:
            found.append(self.registration.divisor(self.spatial_dims))
        if self.uses_joint_model and self.has_volume_network:
            by = self.network.divisor(self.joint.volume_network)
            found.append(tuple(s * by for s in self.joint.volume_stride))
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
    def uses_joint_model(self) -> bool:
        """Whether the methods need the segmentation network of a joint model."""
        return self.registration.joint and uses_estimate(self.methods)

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
            "features": asdict(self.features) if self.training.nearest_partners or self.registration.joint else None,
            "joint": self.joint.identity() if self.registration.joint else None,
            "seed": self.seed,
            **({"volume_network": self._volume_network()} if self.registration.joint and self.has_volume_network else {}),
            "tta_flip": self.joint.tta_flip if self.registration.joint else None,  # the estimates a joint STM is trained on
        }

    @property
    def has_volume_network(self) -> bool:
        """Whether a joint model has a network on the volume beside that on slices."""
        return self.joint.budgets(self.spatial_dims)[1] > 0

    def _volume_network(self) -> dict[str, Any]:
        """What decides the weights of a joint model's volume network, which always sees whole volumes."""
        return dataclasses.replace(self.network, patch=None).identity(self.joint.volume_network)

    def slice_network_identity(self) -> dict[str, Any]:
        """What a joint model's segmentation network depends on beside its training data."""
        shared = self.identity()
        training = {k: v for k, v in shared["training"].items() if k in ("iterations", "minutes", "augment", "amp")}
        kept = {k: shared[k] for k in ("preprocessing", "augmentation", "features", "joint", "seed")}
        return {**kept, "training": training}

    def volume_identity(self) -> dict[str, Any]:
        """What a joint model's volume network depends on beside its training data."""
        joint = {k: getattr(self.joint, k) for k in ("slice_budget", "volume_budget", "volume_stride")}
        shared = self.network_identity(self.joint.volume_network)
        return {**shared, "network": self._volume_network(), "joint": joint}

    def network_identity(self, name: str) -> dict[str, Any]:
        """What a trained segmentation network depends on beside its training data."""
        shared = self.identity()
        training = {k: v for k, v in shared["training"].items() if k != "nearest_partners"}
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
        "registration": RegistrationSettings,
        "loss": RegistrationLoss,
        "training": TrainingSettings,
        "augmentation": Augmentation,
        "network": NetworkSettings,
        "joint": JointSettings,
    }
    dims = top.get("spatial_dims", 3)
    made: dict[str, Any] = {name: make_group(kind, top.pop(name, {}), name) for name, kind in groups.items()}
    made["preprocessing"] = make_group(Preprocessing, top.pop("preprocessing", {}), "preprocessing", spatial_dims=dims)
    if top.get("methods", ()) is None:
        top["methods"] = ["FwoW", "FWAL", "OASIS", *(["OASIS-joint"] if made["registration"].joint else [])]
    return make_group(Settings, {**top, **made}, "")
