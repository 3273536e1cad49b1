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


"""Figures of a study's report: methods side by side, curves, and the error against the size of the lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from scripts.experiments.records import read_maps
from scripts.experiments.results import RowResults
from scripts.experiments.statistics import mean_and_spread
from scripts.images.colours import ToRGB
from scripts.images.loading import load_image
from scripts.images.slide_parts import SlidePart

__all__ = ["draw_curves", "draw_fusion", "draw_side_by_side", "draw_size_errors", "draw_spread"]

COLUMNS = 7  # of pictures in a figure
HEAT = "inferno"
COLOURS = ("#1f4e79", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#5d6d7e")


def draw_side_by_side(
    rows: Sequence[RowResults], images: Mapping[str, str], threshold: float, sources: Mapping[str, SlidePart | str]
) -> list[Figure]:
    """
    Input, truth, and the map of each row with the outline of its mask; as many figures as the rows need.

    Args:
        rows: whose first evaluation that has an image is shown.
        images: titles of the images to show, under their paths.
        threshold: of the masks.
        sources: of the images, where they are parts of slides.
    """
    width = COLUMNS - 2
    starts = range(0, len(rows), width)
    return [_side_by_side(rows[start : start + width], images, threshold, sources) for start in starts]


def _side_by_side(
    rows: Sequence[RowResults], images: Mapping[str, str], threshold: float, sources: Mapping[str, SlidePart | str]
) -> Figure:
    columns = len(rows) + 2
    figure = Figure(figsize=(1.45 * columns + 0.3, 1.5 * len(images) + 0.3), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for line, (path, title) in zip(grid, images.items(), strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
        picture = np.asarray(ToRGB()(load_image(sources.get(path, path))).movedim(0, -1)).swapaxes(0, 1)
        line[0].imshow(picture)
        line[0].set_ylabel(f"{title}\n{Path(path).name}", fontsize=6)
        for axes, results in zip(line[2:], rows, strict=True):
            probability, truth, score = _answer(results, path)
            line[1].imshow(np.zeros_like(probability) if truth is None else truth, cmap="gray", vmin=0, vmax=1)
            axes.imshow(probability, cmap=HEAT, vmin=0, vmax=1)
            mask = probability >= threshold
            if mask.any() and not mask.all():
                axes.contour(mask, levels=[0.5], colors="white", linewidths=0.8)
            axes.set_xlabel(f"F {score:.2f}", fontsize=6, labelpad=1)
    for axes, name in zip(grid[0], ("input", "truth", *(results.row.name for results in rows)), strict=True):
        axes.set_title(name.replace(", ", ",\n").replace(" + ", "\n+ "), fontsize=7)
    return figure


def _answer(results: RowResults, path: str) -> tuple[np.ndarray, np.ndarray | None, float]:
    for evaluation in results.evaluations:
        for position, image in enumerate(evaluation.images):
            if image["image"] == path:
                return *read_maps(evaluation.folder / "maps", position), float(image["f_measure"])
    raise KeyError(path)


def draw_curves(rows: Sequence[RowResults], keys: Mapping[str, str], x_label: str) -> Figure:
    """
    Metrics over `Row.x`, a line a series, with the spread as bars.

    Args:
        rows: with x.
        keys: titles of metrics under their names.
        x_label: what x is.
    """
    figure = Figure(figsize=(2.9 * len(keys), 2.7), layout="constrained")
    series = dict.fromkeys(results.row.series for results in rows)
    for axes, (key, title) in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys.items(), strict=True):
        for colour, name in zip(COLOURS, series, strict=False):
            points = [(r.row.x, *mean_and_spread(r.values(key))) for r in rows if r.row.series == name]
            x, means, spreads = zip(*points, strict=True)
            bars = [spread or 0 for spread in spreads]
            axes.errorbar(x, means, yerr=bars, color=colour, marker="o", markersize=4, capsize=3, label=name)
        _finish(axes, title, x_label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_spread(rows: Sequence[RowResults], keys: Mapping[str, str]) -> Figure:
    """Every run as a point and the mean as a bar, a line a row; arguments as `draw_curves`."""
    figure = Figure(figsize=(2.5 * len(keys) + 1.5, 0.26 * len(rows) + 0.8), layout="constrained")
    grid = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for axes, (key, title) in zip(grid, keys.items(), strict=True):
        for line, results in enumerate(rows):
            values = results.values(key)
            axes.plot(values, [line] * len(values), "o", color=COLOURS[0], markersize=4, alpha=0.6)
            axes.plot([mean_and_spread(values)[0]], [line], "|", color=COLOURS[1], markersize=12)
        _finish(axes, title, "")
        axes.set_xlim(-0.02, 1.02)
    grid[0].set_yticks(range(len(rows)), [results.row.name for results in rows], fontsize=7)
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def draw_size_errors(rows: Sequence[RowResults]) -> Figure:
    """1 - F over the true area of each positive image: all images of the first row, medians of thirds of all rows."""
    sizes = {i["image"]: float(i["area_true"]) for r in rows for e in r.evaluations for i in e.images if i["area_true"]}
    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, results in enumerate(rows):
        scores = results.image_scores(1)
        area, error = np.array([(sizes[name], 1 - f) for name, f in scores.items()]).T
        order = np.argsort(area)
        thirds = [third for third in np.array_split(order, 3) if len(third)]
        colour, marker = COLOURS[number % len(COLOURS)], "osD^v*"[number // len(COLOURS) % 6]
        middles = [np.median(area[third]) for third in thirds], [np.median(error[third]) for third in thirds]
        axes.plot(*middles, color=colour, marker=marker, markersize=4, label=results.row.name)
        if number == 0:
            axes.plot(area, error, ".", color=colour, alpha=0.35)
    _finish(axes, "", "true area, part of the image")
    axes.set_ylabel("1 - F", fontsize=8)
    axes.legend(frameon=False, fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def draw_fusion(weights: Sequence[Sequence[float]], values: Sequence[float]) -> Figure:
    """The mean of F+ and F- over weights of three sides: side 1 to the right, side 2 upwards, side 3 what is left."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    first, second = np.asarray(weights)[:, 0], np.asarray(weights)[:, 1]
    points = axes.scatter(first, second, c=values, cmap="viridis", s=900 / len(weights) + 12)
    best = int(np.argmax(values))
    axes.plot(first[best], second[best], "o", markerfacecolor="none", markeredgecolor="#c0392b", markersize=13)
    _finish(axes, "", "weight of side 1")
    axes.set_ylabel("weight of side 2", fontsize=8)
    figure.colorbar(points, label="mean of F+ and F-")
    return figure


def _finish(axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x_label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
