"""The JSON configuration files of a bundle.

MONAI instantiates every ``_target_`` and evaluates every text that starts with ``$``. All such texts are written here; text that
comes from a data set or a model first passes :func:`inert`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from oasis_monai.data.settings import DataSettings
from oasis_monai.settings import Settings
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.utils.config import plain
from oasis_monai.workflows.run_record import versions

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
VERSION = "0.1.0"
PAPER = "Zhu, Du, Yan: OASIS, one-pass aligned atlas set for medical image segmentation. Neurocomputing 470 (2022), 130-138, "
PAPER += "doi 10.1016/j.neucom.2021.10.114, arXiv 1912.02417"
MONAI = "Cardoso et al.: MONAI, an open-source framework for deep learning in healthcare. arXiv 2211.02701"
REQUIRED = ("nibabel", "itk", "scipy", "efficientnet-lite-pytorch")
"""What is needed beside MONAI, PyTorch and NumPy. MONAI's own command line needs more: the extra ``bundle``."""
WEIGHTS = {
    "_target_": "CheckpointLoader",
    "load_path": "$@bundle_root + '/models/model.pt'",
    "load_dict": {"model": "@network"},
}
ALONE = "estimate: the segmentation networks of a joint model, averaged. It holds their weights alone: no atlas, image or label."
USE = "Research only; not a medical device and not for diagnosis. Scans of the kind it was trained on: see data_source."


def inert(text: str) -> str:
    """One line that MONAI's configuration parser takes as text: no expression (``$``), reference (``@``) or macro (``%``)."""
    words = text.replace("@", " at ").replace("#", " no. ").replace("::", ": ").split()
    line = " ".join(words)
    return f"text: {line}" if line.startswith(("$", "%")) else line


def metadata(
    settings: Settings, network: dict[str, Any], value_range: tuple[float, float], names_of_channels: Sequence[str]
) -> dict[str, Any]:
    """``configs/metadata.json``.

    Args:
        network: the network's arguments; those of an :class:`.EstimateNetwork` name no ``atlases``.
        value_range: lowest and highest value among the atlases.
        names_of_channels: of a scan, in order.
    """
    found, data = versions(("monai", "torch", "numpy", *REQUIRED)), settings.data
    names = ["background", *(inert(name) for name in data.labels)]
    channels = {str(i): name for i, name in enumerate(names)}
    shape = input_shape(network)
    common = {"spatial_shape": shape, "dtype": "float32", "is_patch_data": False}
    seen = [inert(name) for name in names_of_channels]
    if network.get("fine_factor"):
        repeated = "x".join(map(str, network["fine_factor"]))
        seen += [f"{name} on the working grid, every voxel repeated {repeated} times" for name in seen]
    image = {"type": "image", "format": "magnitude", "modality": "n/a", "num_channels": len(seen)}
    image["channel_def"] = {str(i): name for i, name in enumerate(seen)}
    count = "one channel" if len(names_of_channels) == 1 else f"{len(names_of_channels)} channels"
    prediction = {"type": "probabilities", "format": "segmentation", "num_channels": len(names), "channel_def": channels}
    title, structures = inert(data.name), ", ".join(names[1:])
    task, description = f"Segmentation of {structures} in volumes by neural networks", ALONE
    if "atlases" in network:
        task = f"Segmentation of {structures} in volumes by aligned atlases"
        description = f"{network['method']}: the {network['n']} of {network['atlases']} atlases most similar to the image are "
        description += (
            "aligned with it by one pass of a registration network and their labels fused. The network holds the atlases."
        )
    made_of = "weights and atlases are" if "atlases" in network else "the weights are"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "written by oasis-monai bundle"},
        "monai_version": found["monai"],
        "pytorch_version": found["torch"].partition("+")[0],
        "numpy_version": found["numpy"],
        "required_packages_version": {name: found[name] for name in ("oasis-monai", *REQUIRED)},
        "supported_apps": {},
        "name": f"OASIS {title}",
        "task": task,
        "description": description,
        "authors": "the users of oasis-monai who trained it",
        "copyright": f"program: Apache-2.0, see LICENSE; {made_of} made of the data, see docs/data_license.txt",
        "data_source": f"{title}: {inert(data.citation) or 'not stated'}",
        "data_license": inert(data.licence) or "not stated",
        "data_type": "MetaImage or NIfTI",
        "image_classes": f"{count}, see the preprocessing of configs/inference.json",
        "label_classes": ", ".join(f"{value}: {name}" for value, name in zip(data.label_values, names, strict=True)),
        "pred_classes": f"{len(names)} channels of probability, background first",
        "eval_metrics": {},
        "intended_use": USE,
        "references": [PAPER, MONAI, *([inert(data.citation)] if data.citation else [])],
        "network_data_format": {
            "inputs": {"image": {**image, **common, "value_range": [math.floor(value_range[0]), math.ceil(value_range[1])]}},
            "outputs": {"pred": {**prediction, **common, "value_range": [0, 1]}},
        },
    }


def input_shape(network: Mapping[str, Any]) -> list[Any]:
    """Voxels along x, y, z of what the network of these arguments takes; ``*`` for any number of slices."""
    size = [n * f for n, f in zip(network["size"], network.get("fine_factor") or (1, 1, 1), strict=False)]
    return [*size, *["*"] * (3 - len(size))]


def network_def(network: dict[str, Any]) -> dict[str, Any]:
    kind = "OasisNetwork" if "atlases" in network else "EstimateNetwork"
    return {"_target_": f"oasis_monai.workflows.bundle.{kind}", **network}


def preprocessing(setting: Preprocessing) -> list[dict[str, Any]]:
    """A :class:`~oasis_monai.transforms.preprocessing.Preprocessing` as transforms, to the bit.

    With a fine grid: the channels on it, then those of the working grid, their voxels repeated to the size of the fine one.
    """
    load = {"_target_": "oasis_monai.transforms.LoadVolumed", "keys": "image"}
    if setting.fine_factor is None:
        return [load, *({**step, "keys": "image"} for step in _on_one_grid(setting))]
    assert setting.spacing_mm is not None
    fine_mm = tuple(mm / f for mm, f in zip(setting.spacing_mm, setting.fine_factor, strict=True))
    fine = _on_one_grid(replace(setting, size=setting.fine_size, spacing_mm=fine_mm, fine_factor=None))
    return [
        load,
        {"_target_": "CopyItemsd", "keys": "image", "names": "working"},
        *({**step, "keys": "working"} for step in _on_one_grid(setting)),
        *({**step, "keys": "image"} for step in fine),
        {"_target_": "Resized", "keys": "working", "spatial_size": list(setting.fine_size), "mode": "nearest"},
        {"_target_": "ConcatItemsd", "keys": ["image", "working"], "name": "image"},
        {"_target_": "DeleteItemsd", "keys": "working"},
    ]


def _on_one_grid(setting: Preprocessing) -> list[dict[str, Any]]:
    """The transforms that bring a loaded image to the working grid, without their key."""
    padding: dict[str, Any] = {}
    score: dict[str, Any]
    lower, upper = setting.percentiles
    if setting.spacing_mm is None:
        grid: dict[str, Any] = {"_target_": "oasis_monai.transforms.InPlaneResized", "size": list(setting.size)}
    else:
        padding = {"padding": "$float('nan')"}
        grid = {"_target_": "oasis_monai.transforms.PhysicalFieldOfViewd", **padding}
        grid |= {"spacing_mm": list(setting.spacing_mm), "size": list(setting.size)}
    if setting.slice_axis != "axial":
        grid["slice_axis"] = setting.slice_axis
    if setting.fine_factor is not None:
        grid["fine_factor"] = list(setting.fine_factor)
    window = plain(setting.window)
    if setting.intensity == "window":
        score = {"_target_": "oasis_monai.transforms.ScaleWindowd", "window": window}
    elif setting.intensity == "local":
        score = {"_target_": "oasis_monai.transforms.LocalZScored", "sigma_mm": setting.local_mm}
    else:
        score = {"_target_": "oasis_monai.transforms.RobustZScored"}
    score |= {"lower": lower, "upper": upper, **padding}
    clip = [] if window is None else [{"_target_": "oasis_monai.transforms.ClipWindowd", "window": window}]
    return [*clip, grid, score]


def postprocessing() -> list[dict[str, Any]]:
    """The probability back on the scan's own grid and thresholded there: class indices, as ``channel_def`` of the metadata has
    them. Programs that take this step and write files themselves (MONAI Label, MONAI Deploy) name the structures by these."""
    return [{"_target_": "oasis_monai.transforms.RestoreToGridd", "keys": "pred", "reference_keys": "image"}]


def saving(data: DataSettings) -> list[dict[str, Any]]:
    """Class indices in the data set's label values, saved. A step of its own, so that no server writes into the bundle."""
    return [
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(data.classes)),
            "target_labels": list(data.label_values),
            "dtype": "$np.uint8",
        },
        {"_target_": "oasis_monai.transforms.SaveVolumed", "keys": "pred", "output_dir": "@output_dir", "name_key": "case"},
    ]


def inference(settings: Settings, network: dict[str, Any], channels: Sequence[str] = ()) -> dict[str, Any]:
    """``configs/inference.json``: every scan of ``dataset_dir`` segmented into ``output_dir``."""
    named = {"channels": list(channels)} if len(channels) > 1 else {}
    return {
        "imports": ["$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "scans",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network_def(network),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(settings.preprocessing)},
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": "oasis_monai.workflows.bundle.scans_in", "path": "@dataset_dir", **named},
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing()},
        "saving": {"_target_": "Compose", "transforms": saving(settings.data)},
        "handlers": [WEIGHTS, {"_target_": "PostProcessing", "transform": "@saving"}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def evaluate(settings: Settings, channels: Sequence[str] = ()) -> dict[str, Any]:
    """``configs/evaluate.json``, laid over ``inference.json``: the Dice of every labelled scan of ``dataset_dir``."""
    data, own = settings.data, "oasis_monai.workflows.bundle"
    named = {"channels": list(channels)} if len(channels) > 1 else {}
    read: dict[str, Any] = {"_target_": f"{own}.ReadReferenced", "keys": "label", "label_values": list(data.label_values)}
    read |= {"background": list(data.background), "ignore": data.ignore}
    hide = {"_target_": f"{own}.HideUnlabelledd", "keys": ["pred", "label"], "reference_key": "label"}
    dice = {"_target_": "MeanDice", "include_background": False, "num_classes": data.classes}
    saver = {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": ["val_mean_dice"]}
    saver |= {"metric_details": ["val_mean_dice"], "batch_transform": "$lambda batch: [one['image'].meta for one in batch]"}
    return {
        "dataset#data": {"_target_": f"{own}.labelled_scans_in", "path": "@dataset_dir", **named},
        "preprocessing": {"_target_": "Compose", "transforms": [read, *preprocessing(settings.preprocessing)]},
        "postprocessing": {"_target_": "Compose", "transforms": [*postprocessing(), hide]},
        "key_metric": {"val_mean_dice": {**dice, "output_transform": "$monai.handlers.from_engine(['pred', 'label'])"}},
        "evaluator#key_val_metric": "@key_metric",
        "handlers": [WEIGHTS, {"_target_": "StatsHandler", "iteration_log": False}, {**saver, "summary_ops": "*"}],
    }


def train(network: dict[str, Any]) -> dict[str, Any]:
    """``configs/train.json``, where ``monai.bundle.load`` looks for the network unless it is told otherwise; no training."""
    return {"note": "the network alone, for monai.bundle.load; train with oasis-monai train", "network_def": network_def(network)}
