"""Measure how time and memory of segmenting a scan as it is stored grow with its voxels, with labels and with atlases.

    python -m benchmarks.scaling.image_size [--threads 2] [--axes voxels labels n] [--most 100000000] [--output DIR]

An untrained joint model segments a random scan, because the content does not change the time: preprocessing onto a working and
a fine grid, as the plan lays them, alignment, the vote of atlases and networks, the way back to the scan's own grid, and the file
of the label. The fine grid has at most 192 x 192 x 192 voxels, whatever the scan has; beyond that only what is done on the scan's
own grid grows. Seconds are computing time of all threads, so other processes count little. Memory is what is needed beyond model
and scan. Each point is measured in a process of its own. Writes ``image_size.csv`` and ``image_size.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.scaling.memory_growth import growth_parser, measured, write
from benchmarks.speed.timing import memory_mb

if TYPE_CHECKING:
    import torch

    from oasis_monai.segmentation.segmenter import Segmenter
    from oasis_monai.transforms.preprocessing import Preprocessing

MODULE = "benchmarks.scaling.image_size"
SIDES = (48, 96, 224, 464)  # of a cube: 1e5 to 1e8 voxels of 1 mm
VALUES = {"voxels": tuple(side**3 for side in SIDES), "labels": (1, 5, 20, 100), "n": (1, 2, 4, 8, 16)}
AXES = {"voxels": "voxels of the scan", "labels": "labels", "n": "atlases"}
START = {"voxels": 96**3, "labels": 5, "n": 6}  # the values of the others while one grows
FINE = (64, 192)  # smallest and largest side of the fine grid, of which the working grid has half


def point(voxels: int, labels: int, n: int) -> dict[str, float]:
    """Seconds and memory of one scan."""
    import numpy as np
    import torch

    from oasis_monai.atlases.features import embedder
    from oasis_monai.data.io import write_label
    from oasis_monai.data.types import Geometry, Volume
    from oasis_monai.segmentation.pipeline import Scan, segment_case

    torch.set_flush_denormal(True)
    side = round(voxels ** (1 / 3))
    segmenter, preprocessing = untrained(side, labels, n)
    random = torch.Generator().manual_seed(1)
    volume = Volume("scan", torch.rand(1, side, side, side, generator=random), None, Geometry((side,) * 3, np.eye(4)))
    before, started = memory_mb().now, time.process_time()
    seen = Scan.of_volume(volume, preprocessing)
    scan = Scan(seen.target, seen.preprocess_at, torch.rand(1, segmenter.library.features.shape[1], generator=random))
    found = segment_case(segmenter, scan, embedder("random"), ("OASIS-joint",), (n,))
    result = found.restore()["OASIS-joint", n]
    with tempfile.TemporaryDirectory() as folder:
        write_label(Path(folder) / "label.nii.gz", result.label, result.geometry, range(labels + 1))
    spent = time.process_time() - started
    return {"seconds": spent, "working_mb": memory_mb().peak - before, "peak_mb": memory_mb().peak}


def untrained(side: int, labels: int, n: int) -> tuple[Segmenter, Preprocessing]:
    """A joint model of n atlases for cubes of so many mm, and the grids it works on."""
    import torch

    from oasis_monai.atlases.library import AtlasLibrary, FineAtlas
    from oasis_monai.networks.registration import RegistrationSettings
    from oasis_monai.networks.segmentation import NetworkSettings, make_network
    from oasis_monai.networks.slice_unet import JointSettings, make_slice_network
    from oasis_monai.segmentation.build import SegmenterOptions, TrainedNetworks, build_segmenter
    from oasis_monai.training.registration import make_registration_network
    from oasis_monai.transforms.preprocessing import Preprocessing

    torch.manual_seed(0)
    fine = min(FINE[0] * math.ceil(side / FINE[0]), FINE[1])  # the volume network halves a quarter of it four times
    work = fine // 2
    preprocessing = Preprocessing(size=(work,) * 3, spacing_mm=(side / work,) * 3, intensity="zscore", fine_factor=(2, 2, 2))
    joint, network = JointSettings(pretrained=False, recentre=False), NetworkSettings()
    random = torch.Generator().manual_seed(2)
    atlases = tuple(
        FineAtlas(torch.rand(1, *(fine,) * 3, generator=random).half(), column_labels(fine, labels, row)) for row in range(n)
    )
    library = AtlasLibrary(
        torch.stack([one.image[:, ::2, ::2, ::2].float() for one in atlases]),
        torch.stack([one.label[:, ::2, ::2, ::2] for one in atlases]).contiguous(),
        torch.rand(n, 100, generator=random),
        tuple(f"a{row}" for row in range(n)),
        torch.full((n,), -1),
        labels + 1,
        fine=atlases,
    )
    networks = TrainedNetworks(
        make_registration_network(library, RegistrationSettings(field_stride=(2, 2, 2))),
        make_slice_network(library.classes, joint),
        make_network(joint.volume_network, library.classes, network),
    )
    return build_segmenter(library, networks, SegmenterOptions(joint=joint, network=network)), preprocessing


def column_labels(side: int, labels: int, row: int) -> torch.Tensor:
    """(1, side, side, side) a column for each structure, side by side, a voxel farther along x in each atlas."""
    import torch

    per_row = math.isqrt(labels - 1) + 1
    cell = torch.arange(side) * per_row // side
    number = 1 + cell[:, None] * per_row + cell
    middle = (torch.arange(side) - side // 2).abs() < side // 4
    label = torch.where(middle & (number <= labels)[..., None], number[..., None], 0)
    return label.roll(row, 0).to(torch.uint8)[None].contiguous()


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = growth_parser(MODULE, __doc__, "docs/results/scale")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="what grows")
    parser.add_argument("--most", type=int, default=max(VALUES["voxels"]), help="voxels of the largest scan")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.point:
        print(json.dumps(point(**json.loads(options.point))))
        return
    values = {axis: VALUES[axis] for axis in options.axes}
    if "voxels" in values:
        values["voxels"] = tuple(count for count in values["voxels"] if count <= options.most)
    start = {**START, "voxels": min(START["voxels"], options.most)}
    write(measured(MODULE, values, start, options.threads), options.output, "image_size", AXES, ("voxels",))


if __name__ == "__main__":
    main()
