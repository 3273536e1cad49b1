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
from scripts.images.slide import Slide
from scripts.images.tissue import find_tissue
from scripts.runtime.errors import InputError
from scripts.slides.tissue import TissueMask, tissue_of


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


def feature(geometry) -> dict:
    return {"type": "Feature", "geometry": geometry, "properties": {}}


def collection(*geometries) -> dict:
    return {"type": "FeatureCollection", "features": [feature(geometry) for geometry in geometries]}


def tissue_in(content, view, tmp_path) -> np.ndarray:
    (tmp_path / "t.geojson").write_text(json.dumps(content))
    return tissue_of(str(tmp_path / "t.geojson"), np.zeros((50, 100, 3)), view)


POLYGON = {"type": "Polygon", "coordinates": [SQUARE]}  # 40 x 30 pixels of the overview
LINE = {"type": "LineString", "coordinates": SQUARE}
EMPTY = {"type": "Polygon", "coordinates": []}
PARTLY_USABLE = {
    "null": (collection(None, POLYGON), "1 x null"),
    "line": (collection(LINE, LINE, POLYGON), "2 x LineString"),
    "empty": (collection(EMPTY, POLYGON), "1 x empty Polygon"),
    "empty in multi": (collection({"type": "MultiPolygon", "coordinates": [[], [SQUARE]]}), "1 x empty Polygon"),
    "empty collection": (collection({"type": "GeometryCollection", "geometries": []}, LINE, POLYGON), "LineString"),
    "two corners": (
        collection({"type": "Polygon", "coordinates": [SQUARE[:2]]}, POLYGON),
        "Polygon that can't be read",
    ),
    "text": (collection({"type": "Polygon", "coordinates": "here"}, POLYGON), "Polygon that can't be read"),
    "far": (
        collection({"type": "Polygon", "coordinates": [[[x * 1e300 for x in xy] for xy in HOLE]]}, POLYGON),
        "Polygon that can't be read (a coordinate has more than 1e+09 pixels)",
    ),
    "outside": (
        collection({"type": "Polygon", "coordinates": [[[x + 200 for x in xy] for xy in HOLE]]}, POLYGON),
        "1 x polygon outside the slide",
    ),
    "nan": (
        collection({"type": "Polygon", "coordinates": [[[0, 0], [np.nan, 1], [1, 0], [0, 0]]]}, POLYGON),
        "not a number",
    ),
    "other": ([5, {"type": ["Polygon"]}, {"type": "Circle"}, "a", feature(POLYGON)], "4 x no geometry"),
}


@pytest.mark.parametrize("case", PARTLY_USABLE)
def test_usable_parts_of_geojson_are_used_and_the_others_named(view, tmp_path, caplog, case):
    content, said = PARTLY_USABLE[case]
    expected = np.zeros((50, 100), bool)
    expected[10:40, 10:50] = True
    np.testing.assert_array_equal(tissue_in(content, view, tmp_path), expected)
    assert str(tmp_path / "t.geojson") in caplog.text
    assert said in caplog.text


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", ["features", "geometries", "lists"])
def test_nested_geojson_is_read(view, tmp_path, caplog, kind, depth):
    content = feature({"type": "MultiPolygon", "coordinates": [[SQUARE]]})
    for _ in range(depth):
        content = {
            "features": {"type": "FeatureCollection", "features": [content]},
            "geometries": feature({"type": "GeometryCollection", "geometries": [content]}),
            "lists": [content],
        }[kind]
    assert tissue_in(content, view, tmp_path).sum() == 40 * 30
    assert not caplog.text


@pytest.mark.parametrize(
    "content",
    [
        collection(),
        collection(LINE),
        collection(None),
        collection(EMPTY),
        [],
        {"type": "FeatureCollection", "features": None},
        {"type": "FeatureCollection"},
        {"type": "Point", "coordinates": [30, 30]},
        {"type": "Polygon", "coordinates": [[[5000, 5000], [5000, 6000], [6000, 6000], [5000, 5000]]]},
    ],
)
def test_geojson_that_marks_nothing_is_warned_of_by_name(view, tmp_path, caplog, content):
    assert not tissue_in(content, view, tmp_path).any()
    assert f"'{tmp_path / 't.geojson'}' marks no tissue on '{tmp_path / 'a.tif'}'" in caplog.text


@pytest.mark.parametrize("content", [{}, {"type": "Topology"}, 5, "Polygon", None, {"type": {}}])
def test_json_that_is_no_geojson_is_refused_by_name(view, tmp_path, content):
    with pytest.raises(InputError, match=r"t\.geojson' can't be read as GeoJSON \(it has no 'type'"):
        tissue_in(content, view, tmp_path)


def test_a_polygon_that_crosses_itself_is_filled_by_turns_and_named(view, tmp_path, caplog):
    """Its inner square, 20 x 20 pixels of the overview, is gone round twice. A bow-tie is two wings."""
    twice = [[0, 0], [80, 0], [80, 80], [0, 80], [0, 0], [20, 20], [60, 20], [60, 60], [20, 60], [20, 20], [0, 0]]
    found = tissue_in({"type": "Polygon", "coordinates": [twice]}, view, tmp_path)
    assert found.sum() == 40 * 40 - 20 * 20
    assert "that cross themselves: 1" in caplog.text
    bow_tie = [[0, 0], [80, 80], [80, 0], [0, 80], [0, 0]]
    found = tissue_in({"type": "Polygon", "coordinates": [bow_tie]}, view, tmp_path)
    assert (found[20, 2], found[20, 38], found[2, 20], found[38, 20]) == (True, True, False, False)


def test_a_slide_without_tissue_is_warned_of_by_name(view, tmp_path, caplog):
    assert not tissue_of("auto", np.full((50, 100, 3), 0.5), view).any()
    assert f"No tissue was found on '{tmp_path / 'a.tif'}' (it is grey" in caplog.text
    caplog.clear()
    Image.fromarray(np.zeros((5, 10), np.uint8)).save(tmp_path / "empty.png")
    assert not tissue_of(str(tmp_path / "empty.png"), np.zeros((50, 100, 3)), view).any()
    assert f"'{tmp_path / 'empty.png'}' marks no tissue on '{tmp_path / 'a.tif'}'" in caplog.text


def test_a_folder_has_one_for_each_slide(view, tmp_path):
    (tmp_path / "tissue").mkdir()
    with pytest.raises(InputError, match=r"a\.tif"):
        tissue_of(str(tmp_path / "tissue"), np.zeros((50, 100, 3)), view)
    Image.fromarray(np.full((5, 10), 255, np.uint8)).save(tmp_path / "tissue" / "a.png")
    assert tissue_of(str(tmp_path / "tissue"), np.zeros((50, 100, 3)), view).all()


def test_it_is_called_as_the_slide_is_and_not_as_one_of_its_files(view, tmp_path):
    """A slide in DICOM is a folder of files."""
    (tmp_path / "tissue").mkdir()
    Image.fromarray(np.full((5, 10), 255, np.uint8)).save(tmp_path / "tissue" / "case 7.png")
    assert tissue_of(str(tmp_path / "tissue"), np.zeros((50, 100, 3)), view, "case 7").all()
    with pytest.raises(InputError, match=r"a\.tif', as case 8\.geojson"):
        tissue_of(str(tmp_path / "tissue"), np.zeros((50, 100, 3)), view, "case 8")


@pytest.mark.parametrize(("width", "right"), [(200, True), (203, True), (197, True), (210, False), (100, False)])
def test_a_mask_of_another_shape_is_refused_and_not_stretched(view, tmp_path, width, right):
    """Of a slide of 200 x 100 pixels; a few pixels are what programs round away."""
    Image.fromarray(np.full((100, width), 255, np.uint8)).save(tmp_path / "mask.png")
    if right:
        assert tissue_of(str(tmp_path / "mask.png"), np.zeros((50, 100, 3)), view).all()
    else:
        with pytest.raises(InputError, match=rf"mask\.png' has {width}x100 pixels, the slide 200x100"):
            tissue_of(str(tmp_path / "mask.png"), np.zeros((50, 100, 3)), view)


def test_what_cannot_be_read_is_named(view, tmp_path):
    (tmp_path / "t.geojson").write_text("{")
    (tmp_path / "t.png").write_text("{")
    for name in ("t.geojson", "t.png", "none.png"):
        with pytest.raises(InputError, match=name):
            tissue_of(str(tmp_path / name), np.zeros((50, 100, 3)), view)


def test_nearest_pixel_of_the_overview():
    tissue = TissueMask(np.array([[True, False], [False, True]]), width=8, height=6)
    np.testing.assert_array_equal(tissue.region(2, 4, 3, 5), [[True, False], [False, True]])
