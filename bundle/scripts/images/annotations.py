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

"""Masks as people make them: pictures of any kind, and polygons."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import ImageReader, MetaTensor, is_supported_format
from monai.transforms import Transform
from monai.utils import convert_to_tensor, ensure_tuple
from PIL import Image, ImageDraw

from scripts.images.colours import value_range
from scripts.images.limits import FARTHEST
from scripts.images.pictures import MAX_PIXELS
from scripts.images.readers import PictureReader
from scripts.runtime.errors import InputError

__all__ = ["AnnotationReader", "BinaryMask", "asap_region", "region_size"]

AREAS = (None, "Polygon", "Rectangle", "Spline")  # ASAP's types of annotations that have one; None where none is named
logger = logging.getLogger(__name__)


class BinaryMask(Transform):
    """
    A mask image to one channel of 0 and 1: positive where any channel but alpha is above 0, and alpha is as well.

    So masks with 0 and 1, 0 and 255, several classes, or colours on black, or on nothing, all work.
    """

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """(C, H, W) to (1, H, W) float32. Raises InputError for other than 1 to 4 channels, or values not finite."""
        mask = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        if mask.ndim != 3 or not 1 <= mask.shape[0] <= 4:
            raise InputError(f"expected a mask of shape (1 to 4 channels, H, W), got {tuple(mask.shape)}")
        value_range(mask, "mask")
        has_alpha = mask.shape[0] in (2, 4)
        positive = (mask[:-1] if has_alpha else mask).amax(dim=0, keepdim=True) > 0
        return (positive & (mask[-1:] > 0) if has_alpha else positive).float()


class AnnotationReader(ImageReader):
    """
    MONAI image reader of masks as QuPath submits them to MONAI Label: polygons in ASAP's form.

    What lies in any of them is 1, of whatever class. Axes are (W, H), as with `PictureReader`.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return is_supported_format(filename, ["xml"])

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> np.ndarray:
        """
        Read one file. What has no area, or lies outside the region, is left out, with a warning.

        Returns:
            uint8, (H, W), 0 or 1.

        Raises:
            OSError: when the file is not of this kind, doesn't say how large its region is, is too large, or has
                annotations but no polygon.
        """
        [path] = ensure_tuple(data)
        region = asap_region(path)
        size = region_size(region)
        try:
            polygons = [(annotation.get("Type"), _corners(annotation)) for annotation in region.iter("Annotation")]
        except (TypeError, ValueError) as error:
            raise OSError(f"not polygons of a region in ASAP's form: {error}") from error
        if not np.isfinite([number for _, polygon in polygons for point in polygon for number in point]).all():
            raise OSError("polygons with coordinates that are not finite")
        if any(abs(number) > FARTHEST for _, polygon in polygons for point in polygon for number in point):
            raise OSError(f"polygons with coordinates of more than {FARTHEST:g} pixels")
        areas = [polygon for kind, polygon in polygons if kind in AREAS and len(polygon) > 2]
        if polygons and not areas:
            raise OSError("nothing but points and lines, which have no area; draw polygons")
        if len(areas) < len(polygons):
            kinds = Counter(kind or "Polygon" for kind, polygon in polygons if kind not in AREAS or len(polygon) <= 2)
            named = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
            count = f"{len(polygons) - len(areas)} of {len(polygons)}"
            logger.warning(f"'{path}': {count} annotations are points or lines, which have no area: left out ({named})")
        mask = Image.new("L", size)
        inside = [polygon for polygon in (_clipped(polygon, size) for polygon in areas) if len(polygon)]
        for polygon in inside:
            ImageDraw.Draw(mask).polygon(polygon.ravel().tolist(), fill=1)
        if len(inside) < len(areas):
            count = f"{len(areas) - len(inside)} of {len(areas)}"
            logger.warning(f"'{path}': {count} polygons lie outside the region of {size[0]}x{size[1]} pixels: left out")
        if mask.getbbox() is None:
            logger.warning(f"'{path}' has no polygon in its region of {size[0]}x{size[1]} pixels: the mask is empty")
        return np.array(mask)

    def get_data(self, img: np.ndarray) -> tuple[np.ndarray, dict]:
        """The array with its axes swapped, and MONAI's metadata."""
        return PictureReader().get_data(img)


def _corners(annotation: ElementTree.Element) -> list[tuple[float, float]]:
    """Of an annotation, sorted by their ``Order``. Raises TypeError or ValueError for what is not numbers."""
    points = list(annotation.iter("Coordinate"))
    if any(point.get("Order") is not None for point in points):
        points.sort(key=lambda point: int(point.get("Order")))
    return [(float(point.get("X")), float(point.get("Y"))) for point in points]


def _clipped(polygon: Sequence[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """
    What of a polygon lies in an image, (N, 2): empty where it lies outside.

    Sutherland and Hodgman's algorithm, with a frame of two pixels, in which are the sides that it makes. Pillow itself
    draws with single precision.
    """
    points = np.asarray(polygon, float)
    for axis, sign, limit in ((0, 1, -2), (0, -1, size[0] + 1), (1, 1, -2), (1, -1, size[1] + 1)):
        depth = sign * (points[:, axis] - limit)  # of each corner on the inner side of a line
        following, depth_there = np.roll(points, -1, axis=0), np.roll(depth, -1)
        kept = []
        for here, there, d, e in zip(points, following, depth, depth_there, strict=True):
            if d >= 0:
                kept.append(here)
            if (d >= 0) != (e >= 0):
                kept.append(here + (there - here) * (d / (d - e)))
        points = np.array(kept).reshape(-1, 2)
    (left, top), (right, bottom) = (points.min(axis=0), points.max(axis=0)) if len(points) else ((0, 0), (-1, -1))
    seen = right >= 0 and bottom >= 0 and left <= size[0] - 1 and top <= size[1] - 1
    return points if seen else points[:0]


def asap_region(path: str | PathLike) -> ElementTree.Element:
    """The annotations of a region in ASAP's form. Raises OSError when the file has none."""
    try:
        region = ElementTree.parse(path).getroot().find("Annotations")
    except ElementTree.ParseError as error:
        raise OSError(f"not polygons of a region in ASAP's form: {error}") from error
    if region is None:
        raise OSError("not polygons of a region in ASAP's form: it has no 'Annotations'")
    return region


def region_size(region: ElementTree.Element) -> tuple[int, int]:
    """Width and height in pixels that a region says it has. Raises OSError when it doesn't, or is too large."""
    try:
        size = int(region.get("W")), int(region.get("H"))
    except (TypeError, ValueError) as error:
        raise OSError(f"not polygons of a region in ASAP's form, with its width and height: {error}") from error
    if min(size) < 1:
        raise OSError("polygons of a whole slide, whose size the file doesn't state; submit those of a region")
    if size[0] * size[1] > MAX_PIXELS:
        raise OSError(f"polygons of a region of {size[0]}x{size[1]} pixels; at most {MAX_PIXELS} pixels are read")
    return size
