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

"""What the pictures of an evaluation show, read back from the figure's own images and texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from matplotlib.figure import Figure
from scripts.evaluation.figures import Example, draw_examples, draw_maps, render


class Shown(NamedTuple):
    """A picture of a figure, where its middle lies, and what is written on it."""

    x: float
    y: float
    values: np.ndarray
    limits: tuple[float, float]
    shape: tuple[float, float]
    notes: list[str]


def grid_of(figure: Figure) -> tuple[list[str], list[str], list[list[Shown]]]:
    """Titles from left to right, labels from top to bottom, and the rows of pictures below and beside them."""
    axes = figure.axes[0]
    shown = []
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        notes = [
            t.get_text()
            for t in axes.texts
            if left < t.get_position()[0] < right and top < t.get_position()[1] < bottom
        ]
        middle = round((left + right) / 2, 3), round((top + bottom) / 2, 3)
        values = np.asarray(image.get_array())
        shown.append(Shown(*middle, values, image.get_clim(), (bottom - top, right - left), [n for n in notes if n]))
    columns, lines = (sorted({getattr(one, way) for one in shown}) for way in "xy")
    texts = [(t.get_text(), *(round(float(v), 3) for v in t.get_position())) for t in axes.texts]
    titles = {x: text for text, x, y in texts if y < lines[0] and x in columns}
    labels = {y: text for text, x, y in texts if x < columns[0] and y in lines}
    rows = [sorted((one for one in shown if one.y == y), key=lambda one: one.x) for y in lines]
    return [titles[x] for x in columns], [labels[y] for y in lines], rows


def test_maps_are_drawn_a_row_an_image_with_their_fields() -> None:
    rng = np.random.default_rng(0)
    names = ("input", "truth", "fusion", "side 1")
    rows = {
        "a.png": {name: rng.random((3 if name == "input" else 1, 5, 7)) for name in names},
        "b $x.png": {name: rng.random((3 if name == "input" else 1, 7, 5)) for name in names if name != "truth"},
    }
    titles, labels, grid = grid_of(draw_maps(rows, {"side 1": (5, 1)}))
    assert titles == ["input", "truth", "fusion", "side 1\nfield 5 px, stride 1"]
    assert labels == ["a.png", "b $x.png"]
    for line, panels in zip(grid, rows.values(), strict=True):
        for one, name in zip(line, names, strict=True):
            height, width = panels["input"].shape[1:]
            expected = panels[name].transpose(1, 2, 0).squeeze() if name in panels else np.full((height, width), 0.6)
            np.testing.assert_array_equal(one.values, expected)
            assert one.shape[0] / one.shape[1] == pytest.approx(height / width)
            assert one.notes == ([] if name in panels else ["no mask"])


def test_an_example_without_a_mask_says_so_and_is_no_white_truth() -> None:
    image, map_ = np.zeros((4, 6, 3)), np.full((4, 6), 0.5)
    examples = [
        Example("a", image, map_ > 1, map_, map_ > 1),
        Example("b", image, None, map_, map_ > 1),
    ]
    titles, labels, grid = grid_of(draw_examples(examples))
    assert titles == ["input", "truth", "predicted outline", "probability"]
    assert labels == ["a", "b"]
    known, unknown = (line[1] for line in grid)
    assert not known.notes
    assert known.values.max() == 0
    assert unknown.notes == ["no mask"]
    assert set(unknown.values.ravel()) == {0.6}
    assert unknown.limits == (0, 1)


def test_what_is_rendered_is_what_a_file_would_show() -> None:
    """A white figure of 2 x 1 inches, whose left half is red."""
    figure = Figure(figsize=(2, 1))
    figure.add_axes((0, 0, 0.5, 1), facecolor="red").set(xticks=[], yticks=[], frame_on=True)
    for spine in figure.axes[0].spines.values():
        spine.set_visible(False)
    picture = render(figure, dpi=50)
    assert picture.shape == (50, 100, 3)
    assert picture.dtype == np.uint8
    assert (picture[:, :50] == (255, 0, 0)).all()
    assert (picture[:, 51:] == 255).all()
