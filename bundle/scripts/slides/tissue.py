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

import logging
from collections import Counter
from pathlib import Path

import numpy as np
from shapely import Polygon
from skimage.transform import resize

from scripts.images.loading import load_mask
from scripts.images.pictures import SUFFIXES
from scripts.images.slide import SlideView
from scripts.images.tissue import find_tissue
from scripts.runtime.errors import InputError, first_line
from scripts.slides.geojson import rasterise, read_regions

__all__ = ["TissueMask", "tissue_of"]

ROUNDING = 0.02  # of a mask's width: what it may be wider or narrower than a picture of the whole slide
GEOJSON_SUFFIXES = (".geojson", ".json")
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
        if self._under(top, bottom, left, right).all():
            return np.ones((bottom - top, right - left), bool)
        return self.mask[np.ix_(self.rows[top:bottom], self.columns[left:right])]

    def meets(self, top: int, bottom: int, left: int, right: int) -> bool:
        """Whether there is tissue in a region, for which it isn't made."""
        return bool(self._under(top, bottom, left, right).any())

    def _under(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """What of the overview, which is no larger than the view, a region shows."""
        rows, columns = self.rows[top:bottom], self.columns[left:right]
        return self.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


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
        regions, left_out = read_regions(path)
        polygons = [region.polygon for region in regions]
        outside = sum(not _is_on(polygon, view) for polygon in polygons)
        left_out += Counter({"polygon outside the slide": outside} if outside else {})
        if left_out:
            logger.warning(f"Left out of '{path}': {', '.join(f'{n} x {what}' for what, n in left_out.items())}.")
        crossing = sum(not polygon.is_valid for polygon in polygons)
        if crossing:
            logger.warning(
                f"Polygons of '{path}' that cross themselves: {crossing}. What an outline encloses twice is left out."
            )
        found = rasterise(polygons, (view.height, view.width), (view.scale_x, view.scale_y))
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


def _is_on(polygon: Polygon, view: SlideView) -> bool:
    """Whether the box around a polygon, in pixels of level 0, meets the slide."""
    left, top, right, bottom = polygon.bounds
    return right > 0 and bottom > 0 and left < view.width * view.scale_x and top < view.height * view.scale_y


def _nearest(count: int, available: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) * available / count).astype(int)
