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

"""What the pictures of an evaluation show, read back from the figure's own axes."""

from __future__ import annotations

import numpy as np
from scripts.evaluation.figures import Example, draw_examples, draw_maps


def test_maps_are_drawn_a_row_an_image_with_their_fields() -> None:
    rng = np.random.default_rng(0)
    names = ("input", "truth", "fusion", "side 1")
    rows = {
        "a.png": {name: rng.random((3 if name == "input" else 1, 5, 7)) for name in names},
        "b.png": {name: rng.random((3 if name == "input" else 1, 5, 7)) for name in names if name != "truth"},
    }
    figure = draw_maps(rows, {"side 1": (5, 1)})
    grid = np.array(figure.axes[:8], dtype=object).reshape(2, 4)  # the last one is the colour bar
    assert [axes.get_title() for axes in grid[0]] == ["input", "truth", "fusion", "side 1\nfield 5 px, stride 1"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["a.png", "b.png"]
    for row, panels in zip(grid, rows.values(), strict=True):
        for axes, name in zip(row, names, strict=True):
            shown = [np.asarray(image.get_array()) for image in axes.images]
            expected = panels[name].transpose(1, 2, 0).squeeze() if name in panels else np.full((5, 7), 0.6)
            assert len(shown) == 1, name
            np.testing.assert_array_equal(shown[0], expected)
            assert [text.get_text() for text in axes.texts] == ([] if name in panels else ["no mask"])


def test_an_example_without_a_mask_says_so_and_is_no_white_truth() -> None:
    image, map_ = np.zeros((4, 6, 3)), np.full((4, 6), 0.5)
    examples = [
        Example("a", image, map_ > 1, map_, map_ > 1),
        Example("b", image, None, map_, map_ > 1),
    ]
    known, unknown = (draw_examples(examples).axes[place] for place in (1, 5))
    assert not known.texts
    assert np.asarray(known.images[0].get_array()).max() == 0
    assert [text.get_text() for text in unknown.texts] == ["no mask"]
    assert set(np.asarray(unknown.images[0].get_array()).ravel()) == {0.6}
    assert unknown.images[0].get_clim() == (0, 1)
