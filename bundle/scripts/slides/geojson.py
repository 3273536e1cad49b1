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

"""Polygons of GeoJSON files, as QuPath and others write them, in pixels of a slide's level 0."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shapely import Polygon, get_coordinates
from shapely.geometry import shape
from skimage.draw import polygon as inside_polygon

from scripts.images.limits import FARTHEST
from scripts.runtime.errors import InputError, first_line

__all__ = ["Region", "rasterise", "read_regions"]

COLLECTIONS = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
SINGLE = ("Point", "LineString", "Polygon")
GEOJSON_TYPES = (*COLLECTIONS, "Feature", *SINGLE, *(f"Multi{kind}" for kind in SINGLE))


class Region(NamedTuple):
    """A polygon, and the properties of the feature that it is of."""

    polygon: Polygon
    properties: Mapping[str, Any]


def read_regions(path: Path) -> tuple[list[Region], Counter[str]]:
    """The polygons of a GeoJSON file, and what else is in it, counted. Raises InputError when it is none."""
    regions: list[Region] = []
    left_out: Counter[str] = Counter()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, list) and _kind(content) is None:
            raise ValueError("it has no 'type' of GeoJSON")
        for geometry, properties in _geometries(content, {}):
            try:
                found = _polygon(geometry)
            except Exception as error:  # anything may be in a JSON file
                left_out[f"{_named(geometry)} that can't be read ({first_line(error)})"] += 1
                continue
            if found is None:
                left_out[_named(geometry)] += 1
            else:
                regions.append(Region(found, properties))
    except Exception as error:
        raise InputError(f"'{path}' can't be read as GeoJSON ({first_line(error)}).") from error
    return regions, left_out


def rasterise(
    polygons: Sequence[Polygon],
    size: tuple[int, int],
    scale: tuple[float, float],
    origin: tuple[float, float] = (0, 0),
) -> np.ndarray:
    """
    A mask of polygons in pixels of level 0.

    Args:
        polygons: of which a pixel's centre must be in one.
        size: height and width of the mask.
        scale: pixels of level 0 a pixel, along x and y.
        origin: x and y of its left upper corner at level 0.

    Returns:
        (H, W) bool.
    """
    mask = np.zeros(size, bool)
    for region in polygons:
        inside = np.zeros_like(mask)
        for ring, value in [(region.exterior, True), *((hole, False) for hole in region.interiors)]:
            if ring.is_empty:
                continue
            x, y = ((np.asarray(ring.coords)[:, :2] - origin) / scale - 0.5).T
            rows, columns = inside_polygon(y, x, size)
            inside[rows, columns] = value
        mask |= inside
    return mask


def _geometries(content: Any, properties: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """
    What is no collection in something from a GeoJSON file: geometries, and whatever else is in their places; each with
    the properties of its feature.
    """
    kind = _kind(content)
    coordinates = content.get("coordinates") if kind == "MultiPolygon" else None
    if kind == "Feature":
        own = content.get("properties")
        yield from _geometries(content.get("geometry"), own if isinstance(own, dict) else {})
    elif kind in COLLECTIONS or isinstance(content, list):
        inside = content if isinstance(content, list) else content.get(COLLECTIONS[kind])
        for part in inside if isinstance(inside, list) else []:
            yield from _geometries(part, properties)
    elif isinstance(coordinates, list) and coordinates:  # so that one of them that is empty costs no other
        yield from (({"type": "Polygon", "coordinates": rings}, properties) for rings in coordinates)
    else:
        yield content, properties


def _polygon(geometry: Any) -> Polygon | None:
    """A geometry where it is a polygon with an area. Raises what Shapely does, or ValueError, where it is malformed."""
    if _kind(geometry) != "Polygon" or not geometry.get("coordinates"):
        return None
    polygon = shape(geometry)
    coordinates = get_coordinates(polygon)
    if not np.isfinite(coordinates).all():
        raise ValueError("a coordinate is not a number")
    if np.abs(coordinates).max(initial=0) > FARTHEST:
        raise ValueError(f"a coordinate has more than {FARTHEST:g} pixels")
    return None if polygon.is_empty else polygon


def _kind(content: Any) -> str | None:
    """The type of something from a GeoJSON file, None where that is none of GeoJSON's."""
    kind = content.get("type") if isinstance(content, dict) else None
    return kind if kind in GEOJSON_TYPES else None


def _named(geometry: Any) -> str:
    if geometry is None:
        return "null"
    kind = _kind(geometry)
    return "no geometry" if kind is None else kind if geometry.get("coordinates") else f"empty {kind}"
