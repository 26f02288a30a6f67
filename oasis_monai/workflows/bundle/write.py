"""Write the folder of a bundle: ``configs/``, ``models/model.pt``, the parts of the model, ``LICENSE``, ``docs/``."""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from oasis_monai.data.formats.dispatch import ending
from oasis_monai.data.scans import find_scans
from oasis_monai.segmentation.pipeline import check_choice, number_of_atlases
from oasis_monai.settings import Settings
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import atomic_folder, digest, write_json, write_text
from oasis_monai.workflows.bundle import configs, zoo
from oasis_monai.workflows.bundle.estimate_network import EstimateNetwork, estimate_arguments
from oasis_monai.workflows.bundle.network import OasisNetwork, network_arguments
from oasis_monai.workflows.model import load_model

PARTS = "models/oasis"  # the model folder within the bundle
PRIVATE = ("command", "commit", "timings_s", "patients")  # keys of model.json about machine and persons, left out
README = """\
# {name}
{task}.

{description} Written by oasis-monai, which it needs beside MONAI, installed from its source (`pip install PATH_OF_ITS_CHECKOUT`).

```python
import monai.bundle
from oasis_monai.transforms import RestoreToGridd

net = monai.bundle.load("{folder}", bundle_dir="..").eval()  # (B, {in_channels}, {shape}) -> (B, {classes}, {shape})
parser = monai.bundle.ConfigParser()
parser.read_config("configs/inference.json")
prepare = parser.get_parsed_content("preprocessing")  # a Compose

item = prepare({{"image": "scan.mhd"}})
item["pred"] = net(item["image"][None])[0]
label = RestoreToGridd(keys="pred")(item)["pred"]  # class indices on the scan's own grid
```

Every scan (MetaImage or NIfTI) of a folder, each result on the scan's own grid:

```sh
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCANS --output_dir RESULTS
{segment}```

The command of MONAI needs two more packages, `pip install pytorch-ignite fire`; without them its error names one.
It stops at a scan that cannot be read; `oasis-monai segment` tells it and goes on. Files have the labels' own values; the class
indices above are the structures in the order of these values (`channel_def` in `configs/metadata.json` names them).

The Dice of labelled scans that are none of its training scans (in `RESULTS`: one line a scan, and a summary):

```sh
python -m monai.bundle run --config_file "['configs/inference.json','configs/evaluate.json']" --bundle_root . \\
  --dataset_dir DATA --output_dir RESULTS
```

There is no TorchScript and no TensorRT form of it, as of other models that select and align.

## Intended use
{intended_use}

## Data
{data_source}. Licence: {data_license}. **{holds}** It was trained on all of them, so no score is given;
estimate one by cross-validation (`oasis-monai`), and write it into `eval_metrics` of `configs/metadata.json`.

## References
{references}
"""


SEGMENT = f"oasis-monai segment model={PARTS} input=SCANS output=RESULTS\n"
HOLDS = """The bundle holds the {atlases} training images and labels it compares with, on a grid
of {size} voxels: pass it on only where their licence allows that."""
HOLDS_NONE = """The bundle holds the weights of networks that were trained on {atlases} labelled images,
and none of these images, labels, features or names: ask whether the licence of the data allows to pass weights on."""


def scans_in(path: str, channels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The scans of a folder (or the one file ``path``) as MONAI's data sets want them: ``[{"image": PATH}, ...]``. A DICOM series
    has a ``"case"`` too, the name of its result, and where it lies in several folders a file from each as ``"image"``. A scan of
    several images has a list for each of them.

    Args:
        path: what ``oasis-monai segment input=`` takes: a folder, a file, a table, a list.
        channels: the names of the model's channels, to take where the scans have others too.

    Raises:
        DataError: there is no such folder, or no scan in it, or a file holds more channels than the model's.

    Examples:
        >>> from oasis_monai import scans_in
        >>> scans_in("scans")
        [{'image': 'scans/first.nii.gz'}, {'image': 'scans/second.nii.gz'}]
    """
    scans: list[dict[str, Any]] = []
    for case in find_scans(path, None, channels):
        if case.take:  # a path says nothing of the channels to take
            remedy = "write the channels into files of their own, or use oasis-monai segment"
            raise DataError(
                Fault(case.id, "channels", f"{', '.join(channels)} alone", f"others too in {case.image.name}", remedy)
            )
        files: list[Any] = [str(path) for path in case.source]
        if case.channels:
            files = [[str(path) for path in source] for source in case.sources]
        image = files if case.more or case.channels else files[0]
        named = not ending(case.image) or case.channels
        scans.append({"image": image, **({"case": case.id} if named else {})})
    return scans


def write_bundle(
    model: Path,
    output: Path,
    n: int | None = None,
    method: str | None = None,
    batch: int = 8,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
    share_atlases: bool = True,
) -> Path:
    """Write the bundle of a model folder, whole or not at all.

    Args:
        n, method: as of :func:`oasis_monai.workflows.segment.segment_scans`.
        batch: atlases aligned at once.
        overwrite: put it in the place of a bundle that is there.
        share_atlases: False: a joint model's segmentation networks alone, method ``estimate``, with nothing of a scan.

    Raises:
        OasisError: no model, a choice it cannot serve, or something else where the bundle should go.
    """
    there = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if there and not (overwrite and (output / "configs" / "metadata.json").is_file()):
        remedy = "give another output=DIR, or add overwrite=true to replace a bundle"
        raise ConfigError("output", "a folder that does not exist yet", str(output), remedy)
    loaded = load_model(model, "cpu", batch)
    settings, segmenter = loaded.settings, loaded.segmenter
    if segmenter.boxes is not None:
        remedy = "train without preprocessing.box_factor, or use oasis-monai segment"
        raise ConfigError("model", "a model without boxes: a bundle's network sees one grid", str(model), remedy)
    network: OasisNetwork | EstimateNetwork
    if share_atlases:
        n = number_of_atlases(segmenter, n)
        method = check_choice(segmenter, method, n)
        arguments = network_arguments(settings, segmenter, method, n, batch)
        network = OasisNetwork(**arguments)
        network.fill(segmenter, loaded.embed)
    else:
        arguments = estimate_arguments(settings, segmenter, method)
        network = EstimateNetwork(**arguments)
        network.fill(segmenter)
    images = [segmenter.library.images, *(one.image for one in segmenter.library.fine)]
    value_range = (min(float(one.min()) for one in images), max(float(one.max()) for one in images))
    meta = configs.metadata(settings, arguments, value_range, loaded.record.channels)
    with atomic_folder(output) as folder:
        write_json(folder / "configs" / "metadata.json", meta)
        write_json(folder / "configs" / "inference.json", configs.inference(settings, arguments, loaded.record.channels))
        write_json(folder / "configs" / "evaluate.json", configs.evaluate(settings, loaded.record.channels))
        write_json(folder / "configs" / "train.json", configs.train(arguments))
        (folder / "models").mkdir()
        weights = io.BytesIO()  # torch's own writer turns a full disk into an error of another kind
        torch.save({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
        (folder / "models" / "model.pt").write_bytes(weights.getbuffer())
        if share_atlases:
            _copy_parts(model, folder / PARTS)
        write_text(folder / "LICENSE", _licence())
        write_text(folder / "docs" / "data_license.txt", _data_licence(settings))
        write_text(folder / "docs" / "README.md", _readme(meta, arguments, output.name, len(segmenter.library)))
        large = zoo.list_large_files(folder)
    held = f"holds the {len(segmenter.library)} labelled atlases" if share_atlases else "holds no atlas"
    log(f"note: the bundle {held}; licence of the data: {meta['data_license']}")
    if large:
        log(f"note: for the Model Zoo upload {', '.join(large)}, and write the addresses into {zoo.LIST}")
    if said := zoo.name_note(output.name):
        log(said)
    return output


def _readme(meta: Mapping[str, Any], arguments: Mapping[str, Any], name: str, atlases: int) -> str:
    shape = ["z" if n == "*" else str(n) for n in configs.input_shape(arguments)]
    shared = "atlases" in arguments
    about = {"atlases": atlases, "size": " x ".join(n for n in shape if n != "z")}
    more = {"folder": name, "shape": ", ".join(shape), "classes": arguments["classes"], "segment": SEGMENT if shared else ""}
    more["in_channels"] = meta["network_data_format"]["inputs"]["image"]["num_channels"]
    more["holds"] = (HOLDS if shared else HOLDS_NONE).format(**about)
    more["references"] = "\n".join(f"- {text}" for text in meta["references"])
    return README.format(**{**meta, **more})


def _copy_parts(model: Path, folder: Path) -> None:
    """The model folder as ``oasis-monai segment`` reads it, without the paths of the machine that trained it."""
    folder.mkdir()
    for part in sorted(model.iterdir()):
        if part.is_file() and part.name != "model.json" and not part.name.startswith("."):
            shutil.copyfile(part, folder / part.name)
    values = json.loads((model / "model.json").read_text(encoding="utf-8"))
    record = {k: v for k, v in values.items() if k not in PRIVATE}
    for holder in (record["settings"], record["settings"].get("data", {}), record.get("data", {})):
        for path in ("cache", "root"):
            holder.pop(path, None)
    record["checksums"] = {**record["checksums"], "settings": digest(record["settings"])}
    write_json(folder / "model.json", record)


def _licence() -> str:
    try:
        text = importlib.metadata.distribution("oasis-monai").read_text("licenses/LICENSE")
    except importlib.metadata.PackageNotFoundError:
        text = None
    return text or "Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"


def _data_licence(settings: Settings) -> str:
    data = settings.data
    return f"Data: {data.name}\nLicence: {data.licence or 'not stated'}\nCite: {data.citation or 'not stated'}\n"
