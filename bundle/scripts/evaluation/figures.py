# Copyright (c) CDWS-MIL contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Pictures of an evaluation: precision-recall curves, examples with outline, and the maps of every side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scripts.images.heat import HEAT
from scripts.images.outline import OutlineOverlay
from scripts.metrics import BoundaryScores, PixelCurve

__all__ = ["Example", "draw_curves", "draw_examples", "draw_maps", "render"]

INK = "#1f4e79"


class Example(NamedTuple):
    """One evaluated image; arrays are (H, W), the image (H, W, 3), in 0..1. Without a mask it has no truth."""

    title: str
    image: np.ndarray
    truth: np.ndarray | None
    probability: np.ndarray
    prediction: np.ndarray


def render(figure: Figure, dpi: int) -> np.ndarray:
    """The figure's pixels, (H, W, 3) of 8 bits; `savefig` would draw it twice, once to lay it out."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def draw_curves(boundary: BoundaryScores, pixels: PixelCurve, pixel_ap: float) -> Figure:
    """Precision-recall curves of boundaries and of pixels, side by side, with lines of equal F-measure."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _prepare(left, f"Boundaries: ODS {boundary.ods:.3f}, OIS {boundary.ois:.3f}, AP {boundary.boundary_ap:.3f}")
    left.plot(boundary.recall, boundary.precision, color=INK, marker=".", markersize=3)
    label = f"best F, at threshold {boundary.ods_threshold:.2f}"
    left.plot(boundary.ods_recall, boundary.ods_precision, "o", color="#c0392b", label=label)
    left.legend(loc="upper right", frameon=False)
    _prepare(right, f"Pixels: AP {pixel_ap:.3f}")
    right.plot(pixels.recall, pixels.precision, color=INK)
    # the last point marks all pixels
    right.axhline(pixels.precision[-1], color="grey", linestyle=":", label="all pixels marked")
    right.legend(loc="lower left", frameon=False)
    return figure


def _prepare(axes, title: str) -> None:
    axes.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    recall = np.linspace(0.01, 1, 200)
    for f in np.arange(0.1, 1, 0.1):
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = f * recall / (2 * recall - f)
        inside = (precision > 0) & (precision <= 1)
        axes.plot(recall[inside], precision[inside], color="#dddddd", linewidth=0.7, zorder=0)


class _Picture(NamedTuple):
    """(H, W, 3), or (H, W) in 0..1 that is shown in a colour map, with a note over it."""

    values: np.ndarray
    colours: str | None = None
    note: str = ""


def draw_examples(examples: Sequence[Example]) -> Figure:
    """A row an example: input, truth, outline of the prediction, and probability with its colour bar."""
    rows = [
        (
            one.title,
            [
                _Picture(one.image),
                _truth(one.truth, one.image.shape[:2]),
                _Picture(_outlined(one)),
                _Picture(one.probability, HEAT),
            ],
        )
        for one in examples
    ]
    return _draw_grid(rows, ("input", "truth", "predicted outline", "probability"), side=2.0, font=9)


def draw_maps(rows: Mapping[str, Mapping[str, np.ndarray]], fields: Mapping[str, tuple[int, int]]) -> Figure:
    """
    A row an image: input, truth where known, and probability maps.

    Args:
        rows: for each image the pictures (C, H, W) in 0..1 under their names.
        fields: receptive field and stride of maps, under their names, to be told in the titles.
    """
    names = list(dict.fromkeys(name for panels in rows.values() for name in panels))

    def picture(panels: Mapping[str, np.ndarray], name: str) -> _Picture | None:
        if name == "truth":
            return _truth(panels[name][0] if name in panels else None, panels["input"].shape[1:])
        if name == "input":
            return _Picture(panels[name].transpose(1, 2, 0))
        return _Picture(panels[name][0], HEAT) if name in panels else None

    told = [name + ("\nfield {} px, stride {}".format(*fields[name]) if name in fields else "") for name in names]
    lines = [(title, [picture(panels, name) for name in names]) for title, panels in rows.items()]
    return _draw_grid(lines, told, side=1.57, font=7)


def _draw_grid(
    rows: Sequence[tuple[str, Sequence[_Picture | None]]], titles: Sequence[str], side: float, font: float
) -> Figure:
    """Squares of this side, in inches, in a single axes: an axes for each picture would take seconds to lay out."""
    label, title, bar, gap = font / 24, font / 20, 0.6, 0.06
    width, height = label + len(titles) * (side + gap) + bar, title + len(rows) * (side + gap)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    lefts = [label + k * (side + gap) for k in range(len(titles))]
    for left, text in zip(lefts, titles, strict=True):
        axes.text(left + side / 2, title - gap, text, fontsize=font, ha="center", va="bottom")
    for k, (name, pictures) in enumerate(rows):
        top = title + k * (side + gap)
        place = {"ha": "center", "va": "center", "fontsize": font}
        # a file's name may have a '$'
        axes.text(label / 2, top + side / 2, name, rotation=90, parse_math=False, **place)
        for left, picture in zip(lefts, pictures, strict=True):
            if picture is not None:
                _show(axes, picture, left, top, side, place)
    colours = ScalarMappable(Normalize(0, 1), HEAT)
    figure.colorbar(colours, cax=figure.add_axes((1 - 0.92 * bar / width, 0.05, 0.16 / width, 0.9)))
    return figure


def _show(axes: Axes, picture: _Picture, left: float, top: float, side: float, text: Mapping[str, Any]) -> None:
    """As large as it fits into the square, with a frame."""
    height, width = (n * side / max(picture.values.shape[:2]) for n in picture.values.shape[:2])
    left, top = left + (side - width) / 2, top + (side - height) / 2
    extent = (left, left + width, top + height, top)
    axes.imshow(picture.values, cmap=picture.colours, vmin=0, vmax=1, extent=extent, aspect="auto")
    axes.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=0.8))
    axes.text(left + width / 2, top + height / 2, picture.note, **text)


def _truth(truth: np.ndarray | None, shape: Sequence[int]) -> _Picture:
    """A mask, (H, W); where there is none a grey panel that says so: white would be a mask of everything."""
    return _Picture(np.full(shape, 0.6), "gray", "no mask") if truth is None else _Picture(truth, "gray")


def _outlined(example: Example) -> np.ndarray:
    width = max(1, round(min(example.prediction.shape) / 100))
    drawn = OutlineOverlay(width)(example.image.transpose(2, 0, 1), example.prediction[None])
    return drawn.transpose(1, 2, 0)
