"""Shrink the run's contour pictures for the page: lossy grey values, lossless coloured outlines."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_monai.evaluation.report.run import Page
from oasis_monai.evaluation.scores import method_name

MAX_PICTURE_BYTES = 4 * 2**20
"""Encoded size of all pictures on the page together; the rest stay in the folder ``overlays``."""
_MOST_COLOURED = 0.15  # fraction of coloured pixels above which a picture is not outlines on grey and stays unchanged
_GREY_QUALITY = 75
_OUTLINE_COLOURS = 64
_WEBP_SIDE = 16383  # pixels, the format's limit


def contours(page: Page) -> dict[str, Any] | None:
    """The lowest, median and highest case of the main method, then what else fits; None without pictures."""
    if not page.pictures:
        return None
    name = method_name(*page.main)
    dsc = _whole_dsc(page)
    chosen = _ranked(dsc, name)
    first: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    left = MAX_PICTURE_BYTES
    for key in [*(k for k in chosen if k in page.pictures), *(k for k in page.pictures if k not in chosen)]:
        layers = encoded(page.pictures[key])
        left -= sum(len(data) for _, data in layers)
        if left < 0:  # the rest would take long to encode, for nothing
            break
        text = " · ".join([part for part in key if part] + ([f"DSC {100 * dsc[key]:.1f} %"] if key in dsc else []))
        caption = f"{chosen[key]}: {text}" if key in chosen else text
        (first if key in chosen else others).append({"caption": caption, "layers": list(_uris(layers))})
    lacking = [f"{rank} ({key[0]})" for key, rank in chosen.items() if key not in page.pictures]
    notes = [f"There is no picture of {name} for these cases: {', '.join(lacking)}."] if lacking else []
    outside = len(page.pictures) - len(first) - len(others)
    if outside:
        notes += [f"Pictures left out to limit the size of this page: {outside}. They are in the folder overlays."]
    return {"first": first, "others": others, "notes": notes}


def _whole_dsc(page: Page) -> dict[tuple[str, str], float]:
    """(case, 'method-n') -> whole DSC under the main protocol, the mean over the structures."""
    s = page.scores[(page.scores["region"] == "whole") & (page.scores["protocol"] == page.protocol) & page.scores["dsc"].notna()]
    names = pd.Series([method_name(m, n) for m, n in zip(s["method"], s["n"], strict=True)], index=s.index, dtype=str)
    return {(str(case), str(name)): float(v) for (case, name), v in s.groupby(["case", names])["dsc"].mean().items()}


def _ranked(dsc: dict[tuple[str, str], float], name: str) -> dict[tuple[str, str], str]:
    """(case, ``name``) of the lowest, median and highest case -> which it is; each case once."""
    order = sorted((value, case) for (case, method), value in dsc.items() if method == name)
    chosen: dict[tuple[str, str], str] = {}
    for rank, index in (("lowest", 0), ("median", (len(order) - 1) // 2), ("highest", -1)):
        if order:
            chosen.setdefault((order[index][1], name), rank)
    return chosen


def picture_uris(path: Path) -> list[str]:
    """A PNG as data URIs, one per layer of :func:`encoded`."""
    return list(_uris(encoded(path)))


def encoded(path: Path) -> list[tuple[str, bytes]]:
    """A PNG of coloured outlines on grey as (MIME type, bytes) of two layers of its size, a fifth of its bytes together.

    The lower layer is the grey, as lossy WebP. The upper one is a palette PNG of the coloured pixels and transparent elsewhere,
    so lines stay sharp and where they were. A picture of many colours, or one that gains nothing, stays as it is: one layer.
    """
    from PIL import Image
    from scipy.ndimage import distance_transform_edt

    original = [("image/png", path.read_bytes())]
    try:
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB"))
    except (OSError, ValueError):  # the browser will say so too
        return original
    coloured = rgb.max(axis=2) != rgb.min(axis=2)
    if coloured.mean() > _MOST_COLOURED or max(coloured.shape) > _WEBP_SIDE:
        return original
    # below the lines any grey will do, that of the nearest grey pixel costs least
    nearest = distance_transform_edt(coloured, return_distances=False, return_indices=True)
    grey, outlines = io.BytesIO(), io.BytesIO()
    Image.fromarray(rgb[..., 0][tuple(nearest)]).save(grey, "WEBP", quality=_GREY_QUALITY, method=4)
    layers = [("image/webp", grey.getvalue())]
    if coloured.any():
        rgba = np.dstack([np.where(coloured[..., None], rgb, 0), np.where(coloured, 255, 0)]).astype(np.uint8)
        Image.fromarray(rgba).quantize(_OUTLINE_COLOURS).save(outlines, "PNG", optimize=True)
        layers.append(("image/png", outlines.getvalue()))
    return layers if sum(len(data) for _, data in layers) < len(original[0][1]) else original


def _uris(layers: list[tuple[str, bytes]]) -> Iterator[str]:
    for kind, data in layers:
        yield f"data:{kind};base64,{base64.b64encode(data).decode()}"
