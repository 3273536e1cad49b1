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

"""The curve of quality against labels given: its numbers by hand, and the command on a few tiny images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scripts.experiments.curve import Point, point_of, table, verdict

FEW = Point(10, np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.0, 0.0, 0.4, 0.4]))
# better by .1, .3, .1, .3: mean .2, standard deviation .11547, of the mean .057735
MORE = Point(20, np.array([0.4, 0.2, 0.4, 0.2]), np.array([0.0, 0.0, 0.4, 0.4]))
# better by -.2, .2, -.2, .2
MOST = Point(40, np.array([0.4, 0.2, 0.4, 0.2]), np.array([0.2, -0.2, 0.6, 0.2]))


def test_each_point_is_compared_with_the_one_before() -> None:
    _, few, more, most = table([FEW, MORE, MOST]).splitlines()
    assert few.split() == ["10", "0.500", "0.200"]
    assert more.split() == ["20", "0.300", "0.200", "+0.200", "+-", "0.058"]
    assert most.split() == ["40", "0.300", "0.200", "+0.000", "+-", "0.115"]


def test_the_verdict_is_of_the_last_labels() -> None:
    assert "The last 10 of 20 images have made it better by 0.200" in verdict([FEW, MORE])
    assert "The last 20 of 40 images have changed nothing that 4 validation images" in verdict([FEW, MORE, MOST])
    assert "changed nothing" in verdict([MORE, FEW])


def test_what_a_training_says_of_the_validation_images(tmp_path: Path) -> None:
    """The first is 0.2 above what is stated, which is two steps; the second has no finding, says the model as well."""
    (tmp_path / "review").mkdir()
    found = {
        "a.png": {"probability": 0.75, "area": 0.5, "outline": 0.9, "width": 9, "height": 9},
        "b.png": {"probability": 0.25, "area": 0.0, "outline": 0.0, "width": 9, "height": 9},
    }
    (tmp_path / "review" / "findings.json").write_text(json.dumps({"made": "now", "images": found}))
    validation = [
        {"image": str(tmp_path / "b.png"), "label": 0},
        {"image": str(tmp_path / "a.png"), "label": 1, "area": 0.3},
    ]
    point = point_of(tmp_path, {"training": [{}] * 7, "validation": validation}, area_step=0.1)
    assert point.images == 7
    assert point.label.tolist() == [0.25, 0.25]
    assert point.area.tolist() == pytest.approx([0, 2 / 3])
