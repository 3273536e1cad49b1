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
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from scripts.images.heat import HEAT
from scripts.images.outline import OutlineOverlay
from scripts.metrics import BoundaryScores, PixelCurve

__all__ = ["Example", "draw_curves", "draw_examples", "draw_maps"]

INK = "#1f4e79"


class Example(NamedTuple):
    """One evaluated image; arrays are (H, W), the image (H, W, 3), in 0..1. Without a mask it has no truth."""

    title: str
    image: np.ndarray
    truth: np.ndarray | None
    probability: np.ndarray
    prediction: np.ndarray


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


def draw_examples(examples: Sequence[Example]) -> Figure:
    """A row an example: input, truth, outline of the prediction, and probability with its colour bar."""
    figure = Figure(figsize=(9.2, 2.05 * len(examples) + 0.3), layout="constrained")
    grid = figure.subplots(len(examples), 4, squeeze=False)
    heat = None
    for row, example in zip(grid, examples, strict=True):
        row[0].imshow(example.image)
        _show_truth(row[1], example.truth, example.image.shape[:2])
        row[2].imshow(_outlined(example))
        heat = row[3].imshow(example.probability, cmap=HEAT, vmin=0, vmax=1)
        row[0].set_ylabel(example.title, fontsize=9, parse_math=False)  # a file's name may have a '$'
        for axes in row:
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], ("input", "truth", "predicted outline", "probability"), strict=True):
        axes.set_title(title, fontsize=10)
    figure.colorbar(heat, ax=grid.ravel().tolist(), fraction=0.03, aspect=40)
    return figure


def draw_maps(rows: Mapping[str, Mapping[str, np.ndarray]], fields: Mapping[str, tuple[int, int]]) -> Figure:
    """
    A row an image: input, truth where known, and probability maps.

    Args:
        rows: for each image the pictures (C, H, W) in 0..1 under their names.
        fields: receptive field and stride of maps, under their names, to be told in the titles.
    """
    names = list(dict.fromkeys(name for panels in rows.values() for name in panels))
    figure = Figure(figsize=(1.6 * len(names) + 0.8, 1.62 * len(rows) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    heat = None
    for row, (title, panels) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(title, fontsize=6, parse_math=False)
        for axes, name in zip(row, names, strict=True):
            axes.set(xticks=[], yticks=[])
            if name == "truth":
                _show_truth(axes, panels[name][0] if name in panels else None, panels["input"].shape[1:])
            elif name == "input":
                axes.imshow(panels[name].transpose(1, 2, 0))
            elif name in panels:
                heat = axes.imshow(panels[name][0], cmap=HEAT, vmin=0, vmax=1)
    for axes, name in zip(grid[0], names, strict=True):
        told = "\nfield {} px, stride {}".format(*fields[name]) if name in fields else ""
        axes.set_title(name + told, fontsize=8)
    figure.colorbar(heat, ax=grid.ravel().tolist(), fraction=0.02, aspect=50)
    return figure


def _show_truth(axes, truth: np.ndarray | None, shape: Sequence[int]) -> None:
    """A mask, (H, W); where there is none a grey panel that says so: white would be a mask of everything."""
    if truth is None:
        axes.imshow(np.full(shape, 0.6), cmap="gray", vmin=0, vmax=1)
        axes.text(0.5, 0.5, "no mask", transform=axes.transAxes, ha="center", va="center", fontsize=8)
    else:
        axes.imshow(truth, cmap="gray", vmin=0, vmax=1)


def _outlined(example: Example) -> np.ndarray:
    width = max(1, round(min(example.prediction.shape) / 100))
    drawn = OutlineOverlay(width)(example.image.transpose(2, 0, 1), example.prediction[None])
    return drawn.transpose(1, 2, 0)
