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


"""Outlines against the mask they are of."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scripts.slides.polygons import smooth_polygon, trace, write_geojson
from skimage.draw import polygon2mask
from skimage.measure import label, regionprops


def polygons_of(mask: np.ndarray, rows: int) -> list[shapely.Polygon]:
    strips = [mask[start : start + rows] for start in range(0, len(mask), rows)]
    return [shapely.Polygon(outer, holes) for (outer, *holes), *_ in trace(strips, mask.shape[1])]


def pixels_in(polygons: list[shapely.Polygon], shape: tuple[int, int]) -> np.ndarray:
    """How many polygons each pixel's centre is in."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return sum((shapely.contains_xy(polygon, x, y).astype(int) for polygon in polygons), np.zeros(shape, int))


@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_polygons_are_the_mask(mask, rows):
    polygons = polygons_of(mask, rows)
    assert all(polygon.is_valid for polygon in polygons)
    np.testing.assert_array_equal(pixels_in(polygons, mask.shape), mask)
    assert sum(polygon.area for polygon in polygons) == mask.sum()
    assert len(polygons) == label(mask, connectivity=1).max()


def test_a_large_mask_in_strips():
    """skimage fills the rings, and knows nothing of how they were made."""
    mask = np.random.default_rng(0).random((160, 150)) < 0.62
    filled = np.zeros(mask.shape, bool)
    for polygon in polygons_of(mask, 37):
        inside = polygon2mask(mask.shape, np.array(polygon.exterior.coords)[:, ::-1] - 0.5)
        for hole in polygon.interiors:
            # polygon2mask counts some pixels whose centres are on no ring: none are, at half a pixel
            inside &= ~polygon2mask(mask.shape, np.array(hole.coords)[:, ::-1] - 0.5)
        filled |= inside
    np.testing.assert_array_equal(filled, mask)


def test_a_square_with_a_hole_has_eight_vertices():
    mask = np.ones((10, 12), bool)
    mask[3:5, 4:9] = False
    (((outer, hole), *_),) = trace([mask[:4], mask[4:]], 12)
    assert {*map(tuple, outer.tolist())} == {(0, 0), (12, 0), (12, 10), (0, 10)}
    assert {*map(tuple, hole.tolist())} == {(4, 3), (9, 3), (9, 5), (4, 5)}


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    for mask in (np.eye(2, dtype=bool), np.eye(2, dtype=bool)[::-1]):
        assert [polygon.area for polygon in polygons_of(mask, 1)] == [1, 1]


def test_a_ring_that_touches_itself():
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)  # the hole touches the outside at a corner
    (polygon,) = polygons_of(mask, 1)
    assert polygon.is_valid
    assert [shapely.Polygon(hole).area for hole in polygon.interiors] == [1]


def test_a_region_leaves_memory_when_it_is_complete():
    strips = iter([np.eye(1, 5, dtype=bool), np.zeros((1, 5), bool), pytest.fail])
    assert len(next(trace(strips, 5)).rings[0]) == 4


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 9)))
@settings(max_examples=100, deadline=None)
def test_each_region_has_the_values_of_its_pixels(values):
    """As scikit-image measures them; the order of the regions is another."""
    outlines = list(trace([values[:5], values[5:]], values.shape[1], least=5))
    regions = regionprops(label(values >= 5, connectivity=1), values)
    expected = [(r.num_pixels, r.image_intensity.sum(), r.intensity_max) for r in regions]
    assert sorted((o.pixels, o.total, o.highest) for o in outlines) == sorted(expected)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@settings(max_examples=150, deadline=None)
def test_a_smooth_polygon_is_near_and_has_the_same_pixels(mask):
    for outline in trace([mask], mask.shape[1]):
        exact = shapely.Polygon(outline.rings[0], outline.rings[1:])
        smooth = smooth_polygon(outline.rings)
        assert smooth.is_valid
        assert len(smooth.interiors) == len(exact.interiors)
        np.testing.assert_array_equal(pixels_in([smooth], mask.shape), pixels_in([exact], mask.shape))
        far = [shapely.Point(xy).distance(exact.boundary) for xy in shapely.get_coordinates(smooth)]
        assert max(far) <= 0.5


def test_a_staircase_becomes_a_straight_line():
    mask = np.tri(9, dtype=bool)
    (outline,) = trace([mask], 9)
    assert len(outline.rings[0]) == 20
    # the three corners are cut off, by four vertices on the sides and two on the line of middles, from (0.5, 0)
    assert len(shapely.get_coordinates(smooth_polygon(outline.rings))) - 1 <= 6
    assert smooth_polygon(outline.rings).distance(shapely.Point(4.5, 4)) == pytest.approx(0, abs=0.01)


def test_geojson_as_qupath_takes_it(tmp_path):
    mask = np.ones((4, 6), bool)
    mask[1, 1] = False
    path = tmp_path / "a.geojson"
    assert write_geojson(path, trace([mask], 6), (2.0, 2.5), "Cancer", (200, 0, 0)) == 1
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    (feature,) = content["features"]
    assert feature["properties"] == {
        "objectType": "annotation",
        "name": "Cancer 1",
        "classification": {"name": "Cancer", "color": [200, 0, 0]},
        # 23 pixels of 2 x 2.5 of the slide's
        "measurements": {"Marked area px^2": 115, "Mean probability": 1, "Highest probability": 1},
    }
    outer, hole = feature["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert shapely.Polygon(outer).bounds == (0, 0, 12, 10)
    assert shapely.Polygon(hole).bounds == (2, 2.5, 4, 5)
    assert shapely.LinearRing(outer).is_ccw != shapely.LinearRing(hole).is_ccw


# a block of 4 x 3 pixels with a hole of one and one of two, a pixel, and 2 pixels, in tenths of a probability
LEVELS = np.array(
    [
        [6, 6, 6, 6, 6, 6, 0, 0, 9],
        [6, 0, 6, 0, 0, 6, 0, 0, 0],
        [6, 6, 6, 6, 6, 7, 0, 8, 5],
    ],
    np.uint16,
)


@pytest.mark.parametrize(
    ("least_um2", "areas", "holes"), [((0, 0), [4, 60, 8], 2), ((4.1, 4.1), [60, 8], 1), ((9, 9), [60], 0)]
)
def test_measurements_of_regions_that_are_large_enough(tmp_path, least_um2, areas, holes):
    """A pixel has 4 um2: 15 in the block, of which 14 are 0.6 and one is 0.7."""
    limits = {"min_region": least_um2[0], "min_hole": least_um2[1]}
    outlines = trace([LEVELS], 9, least=5)
    path = tmp_path / "a.geojson"
    count = write_geojson(path, outlines, (1.0, 1.0), "Gland", (1, 2, 3), pixel_um2=4.0, full=10, **limits)
    features = json.loads(path.read_text())["features"]
    said = {feature["properties"]["name"]: feature["properties"]["measurements"] for feature in features}
    assert count == len(said) == len(areas)
    assert sorted(measured["Marked area µm^2"] for measured in said.values()) == sorted(areas)
    block = next(measured for measured in said.values() if measured["Marked area µm^2"] == 60)
    assert block["Mean probability"] == pytest.approx((14 * 0.6 + 0.7) / 15, abs=1e-5)
    assert block["Highest probability"] == 0.7
    assert max(len(feature["geometry"]["coordinates"]) for feature in features) == 1 + holes
    assert sorted(said) == [f"Gland {i + 1}" for i in range(count)]


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 9)),
    st.integers(1, 24),
    st.integers(0, 30),
    st.integers(0, 30),
)
@settings(max_examples=150, deadline=None)
def test_what_is_passed_over_would_not_have_been_written(tmp_path_factory, values, rows, region, hole):
    """A pixel has 2 um2; none of those that are too small, and all others as they are."""
    path = tmp_path_factory.mktemp("outlines") / "a.geojson"
    limits = {"min_region": 2 * region, "min_hole": 2 * hole}
    strips = [values[start : start + rows] for start in range(0, len(values), rows)]
    written = []
    for given_limits in ({}, {"pixel": 2, **limits}):
        outlines = trace(strips, values.shape[1], least=5, **given_limits)
        write_geojson(path, outlines, (1.0, 1.0), "Gland", (1, 2, 3), pixel_um2=2, full=9, **limits)
        features = json.loads(path.read_text())["features"]
        shapes = [shapely.Polygon(rings[0], rings[1:]).normalize() for rings in map(rings_of, features)]
        written.append(([feature["properties"] for feature in features], shapes))
    assert written[0] == written[1]


def rings_of(feature: dict) -> list:
    return feature["geometry"]["coordinates"]


def test_specks_are_not_traced():
    mask = np.zeros((12, 12), bool)
    mask[1, 1] = True  # a region of one pixel
    mask[3:10, 3:10] = True
    mask[5, 5] = mask[6, 6] = False  # a hole of two that touch at a corner
    assert len(list(trace([mask], 12))) == 2
    (outline,) = trace([mask], 12, min_region=5, min_hole=3)
    assert outline.pixels == 47
    assert len(outline.rings) == 1


def test_geojson_of_nothing(tmp_path):
    assert write_geojson(tmp_path / "a.geojson", trace([], 6), (1.0, 1.0), "Cancer", (200, 0, 0)) == 0
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []
