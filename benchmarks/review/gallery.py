"""The pictures of the gallery, of the phantom: what a user gets, made anew by one command.

    python -m benchmarks.review.gallery --model models/demo --run outputs/demo --output docs/gallery

Needs a joint model of the phantom and its cross-validation, which these make::

    oasis-monai demo
    oasis-monai train experiment=demo model=models/demo
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import command_parser
from oasis_monai.data.io import to_canonical
from oasis_monai.data.phantom import make_phantom
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.evaluation import contours, figures
from oasis_monai.utils.files import atomic_path
from oasis_monai.workflows.model import Model, load_model
from oasis_monai.workflows.scan_result import ScanResult

NEW_SCAN = 30
"""A scan of the phantom that no model of the demo (scans 0 to 19) has seen."""
COLOURS = 224
"""Of a picture at most, which keeps the files small."""
METHOD = ("OASIS-joint", 6)
ATLASES = 4
SLICES = 4
UNCERTAIN = "cividis"
"""A colour map that colour-blind people read as others do (doi:10.1371/journal.pone.0199239)."""
SHARED = {"kidneys with lesion": (1, 2, 5), "lesion": (5,), "aorta": (3, 4), "aortic lumen": (3,)}
"""Structures that share voxels, of the classes of the phantom's CT."""


def write(path: Path, figure: Any, dpi: int = 100) -> None:
    """Write a figure as a PNG of few colours."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    keep(path, Image.open(buffer))


def keep(path: Path, picture: Any) -> None:
    """Write a picture as a PNG of few colours, whole or not at all."""
    few = picture.convert("RGB").quantize(COLOURS, dither=0)
    with atomic_path(path) as temporary:
        few.save(temporary, format="PNG", optimize=True)
    print(path, flush=True)


def reduce(path: Path) -> None:
    """Write a PNG again, with few colours."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
    keep(path, picture)


def phantom_volume(index: int, spoilt: bool = False) -> tuple[Volume, np.ndarray]:
    """A scan of the phantom without its label, and the label, which is only drawn.

    Args:
        spoilt: put noise in place of the middle third of its slices.
    """
    scan = make_phantom(index, size="demo")
    image = scan.image.astype(np.float32)
    if spoilt:
        third = image.shape[2] // 3
        noise = np.random.default_rng(0).normal(image.mean(), image.std(), (*image.shape[:2], third))
        image[..., third : 2 * third] = noise
    shape = (image.shape[0], image.shape[1], image.shape[2])
    return Volume(f"new-{index}", torch.from_numpy(image)[None], None, Geometry(shape, scan.affine)), scan.label


def draw_result(path: Path, volume: Volume, result: ScanResult, reference: np.ndarray | None, title: str) -> None:
    """Contours of a result, and of the reference where one is given, on slices of the scan."""
    affine = volume.geometry.affine
    image, spacing_mm = to_canonical(volume.image[0].numpy(), affine)
    truth = None if reference is None else to_canonical(reference, affine)[0]
    label = to_canonical(result.classes.numpy(), affine)[0]
    contours.overlay(path, image, truth, label, spacing_mm, title, slices=SLICES)
    reduce(path)


def panels(rows: int, columns: int, aspect: float, title: str) -> tuple[Any, Any]:
    """A black figure with a heading, and its axes (rows, columns); ``aspect``: width of a panel by its height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 2.4
    figure = Figure(figsize=(columns * height * aspect, rows * height + 0.7), facecolor="black")
    FigureCanvasAgg(figure)
    whole = rows * height + 0.7
    figure.subplots_adjust(left=0, right=1, bottom=0.3 / whole, top=1 - 0.4 / whole, wspace=0.03, hspace=0.03)
    figure.text(0.01, 1 - 0.18 / whole, title, color="white", fontsize=10, va="center")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def draw_uncertainty(path: Path, volume: Volume, result: ScanResult, title: str) -> None:
    """The uncertainty over slices of the scan, clear where it is low, with the result's contour."""
    from matplotlib.cm import ScalarMappable

    affine = volume.geometry.affine
    assert result.uncertainty is not None
    image, spacing_mm = to_canonical(volume.image[0].numpy(), affine)
    label = to_canonical(result.classes.numpy(), affine)[0]
    doubt = to_canonical(result.uncertainty.numpy(), affine)[0]
    window = contours.crop_box(label > 0, spacing_mm, 10.0, 0.25)
    found = np.flatnonzero(label.any(axis=(0, 1)))
    slices = np.linspace(found[0], found[-1], SLICES + 2).round().astype(int)[1:-1]
    low, high = contours.grey_window(image[window], headroom=0.15)
    width, height = (np.array(image[(*window, 0)].shape) * spacing_mm[:2]).tolist()
    figure, axes = panels(1, SLICES, width / height, title)
    for ax, z in zip(axes[0], slices, strict=True):
        plane, extent = (*window, z), (0, width, height, 0)
        ax.imshow(contours.display(image[plane]), cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
        part = contours.display(doubt[plane])
        ax.imshow(part, cmap=UNCERTAIN, vmin=0, vmax=1, alpha=np.clip(1.5 * part - 0.3, 0, 0.85), extent=extent)
        line = {"colors": ["white"], "linewidths": 1.2, "linestyles": ["dashed"]}
        contours.contour(ax, contours.display(label[plane] > 0), spacing_mm, line)
    bar = figure.add_axes((0.3, 0.05, 0.4, 0.03))
    figure.colorbar(ScalarMappable(cmap=UNCERTAIN), cax=bar, orientation="horizontal", ticks=[])
    for x, word, side in ((0.29, "0  certain", "right"), (0.71, "1  uncertain", "left")):
        figure.text(x, 0.065, word, color="white", fontsize=9, ha=side, va="center")
    write(path, figure)


def draw_atlases(path: Path, model: Model, volume: Volume) -> None:
    """The nearest atlases as they are, and aligned to the scan, with their labels; at the left the scan and its result."""
    found = model.find(volume, *METHOD)
    library, selection = model.segmenter.library, found.selection
    assert selection is not None
    assert found.fields is not None
    assert model.segmenter.aligner is not None
    rows = selection.indices[0, :ATLASES]
    ((_, moved, labels),) = model.segmenter.aligner.warped(library, rows, found.fields[0, :ATLASES], images=True)
    assert moved is not None
    assert isinstance(labels, torch.Tensor)
    result = found.results[METHOD].probability.argmax(0)
    size = result.shape
    scan = (found.target.image[0, ..., : size[-1]], result)
    before = [(library.images[row, 0].float(), library.labels[row, 0]) for row in rows.tolist()]
    after = [(image[0], label.argmax(0)) for image, label in zip(moved, labels, strict=True)]
    z = int((result > 0).sum((0, 1)).argmax())
    spacing_mm = tuple(float(mm) for mm in model.settings.preprocessing.spacing_mm or (1.0, 1.0, 1.0))
    window = contours.crop_box((result > 0).numpy(), spacing_mm, 22.0)
    width, height = (np.array(result[(*window, 0)].shape) * spacing_mm[:2]).tolist()
    figure, axes = panels(2, ATLASES + 1, width / height, "The atlases that are most like a new scan, and aligned to it")
    names = [found.atlases[0][i].case for i in range(ATLASES)]
    weights = result_weights(found.results[METHOD].weights)
    shown = [[scan, *before], [scan, *after]]
    words = [["new scan", *names], ["its result", *(f"aligned, weight {weights[i]:.2f}" for i in range(ATLASES))]]
    for i, (line, told) in enumerate(zip(shown, words, strict=True)):
        for j, (ax, (image, label), word) in enumerate(zip(axes[i], line, told, strict=True)):
            mask = None if (i, j) == (0, 0) else (label > 0).numpy()  # the new scan has no label
            _draw_plane(ax, image.numpy(), mask, (*window, z), (width, height), spacing_mm)
            ax.text(0.03, 0.03, word, color="white", fontsize=8, transform=ax.transAxes, path_effects=rim())
    write(path, figure)


def result_weights(weights: torch.Tensor | None) -> list[float]:
    """The weights of the atlases of a volume, as numbers."""
    assert weights is not None
    return [float(weight) for weight in weights.flatten()]


def rim() -> list[Any]:
    """A black rim that keeps white letters legible on bright tissue."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="black")]


def _draw_plane(
    ax: Any,
    image: np.ndarray,
    mask: np.ndarray | None,
    plane: tuple[Any, ...],
    size_mm: tuple[float, float],
    spacing_mm: tuple[float, ...],
) -> None:
    low, high = contours.grey_window(image[plane[:2]], headroom=0.1)
    extent = (0, size_mm[0], size_mm[1], 0)
    ax.imshow(contours.display(image[plane]), cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    if mask is not None:
        line = {"colors": [contours.RESULT_COLOUR], "linewidths": 1.2}
        contours.contour(ax, contours.display(mask[plane]), spacing_mm, line)


def draw_shared(path: Path) -> None:
    """Structures that share voxels, as outlines are drawn where they do: the phantom's own labels of CT, no result."""
    scan = make_phantom(0, size="demo", kind="ct")
    image, spacing_mm = to_canonical(scan.image.astype(np.float32), scan.affine)
    label = to_canonical(scan.label, scan.affine)[0]
    z = int((label == 5).sum((0, 1)).argmax())
    title = "Structures that share voxels (labels of the CT phantom)"
    contours.overlay(path, np.clip(image, -150, 250), None, label, spacing_mm, title, slices=[z - 2, z, z + 2], structures=SHARED)
    reduce(path)


def draw_report(run: Path, output: Path) -> None:
    """Figures of the report of a cross-validation: Dice over the number of atlases, predicted against true Dice of one method."""
    from oasis_monai.evaluation.quality_tables import read_quality
    from oasis_monai.evaluation.scores import read_scores

    made = {
        "dice_over_n": figures.dsc_over_n(read_scores(run / "scores.csv")),
        "predicted_dice": figures.predicted_dsc(
            [one for one in read_quality(run / "quality.csv") if (one.method, one.n) == METHOD]
        ),
    }
    for name, figure in made.items():
        if figure is None:
            raise SystemExit(f"{run} has nothing to draw for {name}: give the folder of `oasis-monai demo`")
        figures.write_figure(output / f"{name}.png", figure)
        reduce(output / f"{name}.png")


def told(result: ScanResult) -> str:
    """Predicted Dice and flags of a result, in a line."""
    predicted = ", ".join("unknown" if v is None else f"{100 * v:.0f} %" for v in result.predicted_dice.values())
    flags = ", ".join(flag.name for flag in result.flags) or "none"
    return f"predicted Dice {predicted}, flags: {flags}"


def draw_scans(model: Model, output: Path) -> None:
    """A scan the model has not seen, whole and with a third of its slices spoilt."""
    volume, reference = phantom_volume(NEW_SCAN)
    result = model.segment(volume, save_uncertainty=True)
    draw_result(output / "result.png", volume, result, reference, f"A new scan: {told(result)}")
    draw_uncertainty(
        output / "uncertainty.png", volume, result, "Where networks and atlases contradict one another; dashed: the result"
    )
    draw_atlases(output / "atlases.png", model, volume)
    spoilt, _ = phantom_volume(NEW_SCAN, spoilt=True)
    result = model.segment(spoilt, save_uncertainty=True)
    for flag in result.flags:
        print(f"{flag.name}: {flag.text}")
    draw_result(output / "doubtful.png", spoilt, result, reference, f"Noise in its middle: {told(result)}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("benchmarks.review.gallery", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a joint model of the phantom")
    parser.add_argument("--run", type=Path, required=True, help="folder of its cross-validation")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Make the pictures."""
    asked = parser().parse_args(words)
    asked.output.mkdir(parents=True, exist_ok=True)
    draw_report(asked.run, asked.output)
    draw_shared(asked.output / "shared.png")
    draw_scans(load_model(asked.model, device="cpu"), asked.output)


if __name__ == "__main__":
    main()
