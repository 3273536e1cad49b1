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
from scripts.evaluation.figures import draw_maps


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
            expected = [panels[name].transpose(1, 2, 0).squeeze()] if name in panels else []
            assert len(shown) == len(expected), name
            for one, other in zip(shown, expected, strict=True):
                np.testing.assert_array_equal(one, other)
