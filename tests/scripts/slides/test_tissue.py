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


"""Tissue found and given."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scripts.errors import InputError
from scripts.slides.reader import Slide
from scripts.slides.tissue import TissueMask, find_tissue, tissue_of


def eosin(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.array([0.85, 0.5, 0.7]), (height, width, 3))


def test_a_piece_of_tissue_is_found():
    overview = np.full((100, 120, 3), 0.95)
    overview[20:60, 30:90] = eosin(40, 60)
    overview[80:83, 10:13] = eosin(3, 3)  # dust
    found = find_tissue(overview)
    assert found[22:58, 32:88].all()
    found[18:62, 28:92] = False  # smoothing may move the edge
    assert not found.any()


def test_glass_alone_has_no_tissue():
    noise = np.random.default_rng(0).normal(0, 0.01, (80, 80, 3))
    assert not find_tissue(np.clip(0.94 + noise, 0, 1)).any()
    assert not find_tissue(np.full((80, 80, 3), 0.94)).any()


def test_tissue_alone_is_all_tissue():
    pale_and_dark = np.concatenate([eosin(80, 40), eosin(80, 40) * 0.5], axis=1)
    assert find_tissue(pale_and_dark).all()


@pytest.fixture
def view(write_slide, tissue_picture, tmp_path):
    """100 x 200 pixels of level 0 at 0.5 micrometres, seen at 1."""
    return Slide(write_slide(tmp_path / "a.tif", tissue_picture(100, 200), 0.5)).at(1.0)


def test_a_mask_of_another_size(view, tmp_path):
    mask = np.zeros((10, 20), np.uint8)
    mask[2:5, 12:18] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = tissue_of(str(tmp_path / "mask.png"), np.zeros((50, 100, 3)), view)
    np.testing.assert_array_equal(found, np.kron(mask > 0, np.ones((5, 5), bool)))


SQUARE = [[20, 20], [100, 20], [100, 80], [20, 80], [20, 20]]
HOLE = [[40, 40], [60, 40], [60, 60], [40, 60], [40, 40]]


@pytest.mark.parametrize("form", ["collection", "list", "feature", "multi"])
def test_geojson_in_pixels_of_level_0(view, tmp_path, form):
    kind, coordinates = ("MultiPolygon", [[SQUARE, HOLE]]) if form == "multi" else ("Polygon", [SQUARE, HOLE])
    feature = {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {}}
    content = {"collection": {"type": "FeatureCollection", "features": [feature]}, "list": [feature]}.get(form, feature)
    (tmp_path / "t.geojson").write_text(json.dumps(content))
    found = tissue_of(str(tmp_path / "t.geojson"), np.zeros((50, 100, 3)), view)
    expected = np.zeros((50, 100), bool)
    expected[10:40, 10:50] = True
    expected[20:30, 20:30] = False
    np.testing.assert_array_equal(found, expected)


def test_a_folder_has_one_for_each_slide(view, tmp_path):
    (tmp_path / "tissue").mkdir()
    with pytest.raises(InputError, match=r"a\.tif"):
        tissue_of(str(tmp_path / "tissue"), np.zeros((50, 100, 3)), view)
    Image.fromarray(np.full((5, 5), 255, np.uint8)).save(tmp_path / "tissue" / "a.png")
    assert tissue_of(str(tmp_path / "tissue"), np.zeros((50, 100, 3)), view).all()


def test_what_cannot_be_read_is_named(view, tmp_path):
    (tmp_path / "t.geojson").write_text("{")
    (tmp_path / "t.png").write_text("{")
    for name in ("t.geojson", "t.png", "none.png"):
        with pytest.raises(InputError, match=name):
            tissue_of(str(tmp_path / name), np.zeros((50, 100, 3)), view)


def test_nearest_pixel_of_the_overview():
    tissue = TissueMask(np.array([[True, False], [False, True]]), width=8, height=6)
    np.testing.assert_array_equal(tissue.region(2, 4, 3, 5), [[True, False], [False, True]])
