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


"""Where on a slide there is tissue: found, or given as a picture or as GeoJSON."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from shapely import Polygon, get_coordinates
from shapely.geometry import shape
from skimage.draw import polygon
from skimage.transform import resize

from scripts.images.limits import FARTHEST
from scripts.images.loading import load_mask
from scripts.images.pictures import SUFFIXES
from scripts.images.slide import SlideView
from scripts.images.tissue import find_tissue
from scripts.runtime.errors import InputError, first_line

__all__ = ["TissueMask", "tissue_of"]

ROUNDING = 0.02  # of a mask's width: what it may be wider or narrower than a picture of the whole slide
GEOJSON_SUFFIXES = (".geojson", ".json")
COLLECTIONS = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
SINGLE = ("Point", "LineString", "Polygon")
GEOJSON_TYPES = (*COLLECTIONS, "Feature", *SINGLE, *(f"Multi{kind}" for kind in SINGLE))
logger = logging.getLogger(__name__)


class TissueMask:
    """
    Tissue in a view of any size, kept at the size of an overview.

    Args:
        mask: (H, W) bool, covers the whole slide.
        width, height: of the view in pixels.
    """

    def __init__(self, mask: np.ndarray, width: int, height: int) -> None:
        self.mask = mask
        self.rows, self.columns = (_nearest(n, m) for n, m in zip((height, width), mask.shape, strict=True))

    def region(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """(bottom - top, right - left) bool, where the view's pixels are in tissue: the overview's nearest says."""
        return self.mask[np.ix_(self.rows[top:bottom], self.columns[left:right])]


def tissue_of(tissue: str, overview: np.ndarray, view: SlideView, name: str | None = None) -> np.ndarray:
    """
    Tissue in the overview of a slide; a slide without any is warned of.

    Args:
        tissue: ``"auto"`` to find it, ``"all"`` to take everything; or a file: a mask of the whole slide, at any size
            of its shape, above 0 in tissue, or GeoJSON polygons in pixels of level 0; or a folder that has one of these
            for every slide, by the slide's name. What is no polygon in GeoJSON is left out, with a warning.
        overview: (H, W, 3) in 0..1.
        view: that the overview is.
        name: of the slide, see `list_slides`; that of its file where None.

    Returns:
        (H, W) bool.

    Raises:
        InputError: when there is no such file, nothing can be made of it, or a mask has not the slide's shape.
    """
    if tissue == "all":
        return np.ones(overview.shape[:2], bool)
    slide = view.slide.path
    if tissue == "auto":
        found = find_tissue(overview)
        if not found.any():
            grey = (
                "it is grey, and tissue is found by its colour" if not np.ptp(overview, axis=2).any() else "all is pale"
            )
            logger.warning(
                f"No tissue was found on '{slide}' ({grey}): nothing is marked, and its probability is left empty. "
                "Give --tissue all, or a mask."
            )
        return found
    path = _file_for(Path(tissue), slide, name or slide.stem)
    if path.suffix.lower() in GEOJSON_SUFFIXES:
        polygons, left_out = _read_polygons(path)
        outside = sum(not _is_on(polygon, view) for polygon in polygons)
        left_out += Counter({"polygon outside the slide": outside} if outside else {})
        if left_out:
            logger.warning(f"Left out of '{path}': {', '.join(f'{n} x {what}' for what, n in left_out.items())}.")
        crossing = sum(not polygon.is_valid for polygon in polygons)
        if crossing:
            logger.warning(
                f"Polygons of '{path}' that cross themselves: {crossing}. What an outline encloses twice is left out."
            )
        found = _rasterised(polygons, view)
    else:
        polygons = []
        try:
            mask = np.asarray(load_mask(path))[0].T > 0  # MONAI has (W, H)
        except Exception as error:  # a damaged file may raise anything
            raise InputError(f"The tissue mask '{path}' can't be read ({first_line(error)}).") from error
        _refuse_other_shape(path, mask.shape, view)
        found = resize(mask, overview.shape[:2], order=0, anti_aliasing=False).astype(bool)
    if not found.any():
        why = (
            "its polygons lie outside it, or are smaller than a pixel of the overview" if polygons else "it has no area"
        )
        logger.warning(
            f"'{path}' marks no tissue on '{slide}' ({why}): nothing is marked, and its probability is left empty."
        )
    return found


def _file_for(path: Path, slide: Path, name: str) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"There is no tissue mask '{path}'; give 'auto', 'all', a mask or GeoJSON, or a folder.")
        return path
    suffixes = [*GEOJSON_SUFFIXES, *(f".{suffix}" for suffix in SUFFIXES)]
    found = [path / f"{name}{suffix}" for suffix in suffixes if (path / f"{name}{suffix}").is_file()]
    if not found:
        raise InputError(f"The folder '{path}' has no tissue mask of '{slide}', as {name}.geojson or .png.")
    return found[0]


def _refuse_other_shape(path: Path, size: tuple[int, int], view: SlideView) -> None:
    """Raises InputError for a mask (height, width) that would have to be stretched, by more than it may be rounded."""
    height, width = size
    # of the slide's pixels, or, where these are oblong, of what it looks like
    for ratio in (view.slide.width / view.slide.height, view.width / view.height):
        if abs(width - height * ratio) <= 1 + ratio + ROUNDING * width:
            return
    raise InputError(
        f"The tissue mask '{path}' has {width}x{height} pixels, the slide {view.slide.width}x{view.slide.height}, "
        "which is another shape; make a mask of the whole slide."
    )


def _read_polygons(path: Path) -> tuple[list[Polygon], Counter[str]]:
    """The polygons of a GeoJSON file, and what else is in it, counted."""
    polygons: list[Polygon] = []
    left_out: Counter[str] = Counter()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, list) and _kind(content) is None:
            raise ValueError("it has no 'type' of GeoJSON")
        for geometry in _geometries(content):
            try:
                found = _polygon(geometry)
            except Exception as error:  # anything may be in a JSON file
                left_out[f"{_named(geometry)} that can't be read ({first_line(error)})"] += 1
                continue
            if found is None:
                left_out[_named(geometry)] += 1
            else:
                polygons.append(found)
    except Exception as error:
        raise InputError(f"'{path}' can't be read as GeoJSON ({first_line(error)}).") from error
    return polygons, left_out


def _geometries(content: Any) -> Iterator[Any]:
    """What is no collection in something from a GeoJSON file: geometries, and whatever else is in their places."""
    kind = _kind(content)
    coordinates = content.get("coordinates") if kind == "MultiPolygon" else None
    if kind == "Feature":
        yield from _geometries(content.get("geometry"))
    elif kind in COLLECTIONS or isinstance(content, list):
        inside = content if isinstance(content, list) else content.get(COLLECTIONS[kind])
        for part in inside if isinstance(inside, list) else []:
            yield from _geometries(part)
    elif isinstance(coordinates, list) and coordinates:  # so that one of them that is empty costs no other
        yield from ({"type": "Polygon", "coordinates": rings} for rings in coordinates)
    else:
        yield content


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


def _is_on(polygon: Polygon, view: SlideView) -> bool:
    """Whether the box around a polygon, in pixels of level 0, meets the slide."""
    left, top, right, bottom = polygon.bounds
    return right > 0 and bottom > 0 and left < view.width * view.scale_x and top < view.height * view.scale_y


def _kind(content: Any) -> str | None:
    """The type of something from a GeoJSON file, None where that is none of GeoJSON's."""
    kind = content.get("type") if isinstance(content, dict) else None
    return kind if kind in GEOJSON_TYPES else None


def _named(geometry: Any) -> str:
    if geometry is None:
        return "null"
    kind = _kind(geometry)
    return "no geometry" if kind is None else kind if geometry.get("coordinates") else f"empty {kind}"


def _rasterised(polygons: list[Polygon], view: SlideView) -> np.ndarray:
    """Pixels whose centres are in one of the polygons, which are in pixels of level 0."""
    mask = np.zeros((view.height, view.width), bool)
    for region in polygons:
        inside = np.zeros_like(mask)
        for ring, value in [(region.exterior, True), *((hole, False) for hole in region.interiors)]:
            if ring.is_empty:
                continue
            x, y = np.asarray(ring.coords)[:, :2].T
            rows, columns = polygon(y / view.scale_y - 0.5, x / view.scale_x - 0.5, mask.shape)
            inside[rows, columns] = value
        mask |= inside
    return mask


def _nearest(count: int, available: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) * available / count).astype(int)
