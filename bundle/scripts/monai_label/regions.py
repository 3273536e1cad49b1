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

"""
Regions of whole slides as MONAI Label asks for them, for QuPath: read one, and answer with polygons.

A request for a region has, beside the image, ``location`` (x, y) and ``size`` (width, height) in pixels of the slide's
full resolution. Items without them are images.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils.type_conversion import convert_to_numpy
from skimage.measure import approximate_polygon, find_contours

from scripts.images.colours import is_volume
from scripts.images.loading import LoadPictured, load_image
from scripts.monai_label.volumes import VolumeToRGB

__all__ = ["LoadImageOrRegiond", "RegionPolygonsd", "mask_polygons"]

COLOUR = (255, 0, 0)
DETAIL = 0.3  # pixels by which a polygon may leave the mask's edge


def is_region(item: Mapping[Hashable, Any]) -> bool:
    """Whether an item is a region of a slide."""
    return "location" in item and sum(item.get("size", ())) > 0


class LoadImageOrRegiond(LoadPictured):
    """
    Loads pictures, volumes, and regions of slides where the item says which; regions need OpenSlide.

    All become RGB in 0..1: pictures and regions (3, W, H), volumes (3, W, H, D) by `VolumeToRGB`.
    """

    def read(self, item: Mapping[Hashable, Any], key: Hashable) -> torch.Tensor:
        image = _read_region(item[key], item["location"], item["size"]) if is_region(item) else load_image(item[key])
        return VolumeToRGB()(image) if is_volume(image) else self.to_rgb(image)


def _read_region(path: str, location: tuple[int, int], size: tuple[int, int]) -> MetaTensor:
    from scripts.images.slide import Slide  # with OpenSlide

    (left, top), (width, height) = location, size
    with closing(Slide(path, mpp=1.0)) as slide:  # whatever its resolution
        region = slide.at(1.0).read(top, top + height, left, left + width)
    return MetaTensor(region.transpose(2, 1, 0).copy(), meta={"filename_or_obj": path})


def mask_polygons(mask: np.ndarray, min_area: float = 0) -> list[list[list[float]]]:
    """
    The outlines of a mask's regions, those of holes as well.

    Args:
        mask: (W, H); what is above 0 is inside.
        min_area: smaller outlines are left out, in pixels.

    Returns:
        Of each outline its corners [x, y], the first one again at the end; pixel (0, 0) goes from [0, 0] to [1, 1].
    """
    outlines = find_contours(np.pad(mask > 0, 1).astype(float), 0.5)
    # less the padding; from centres of pixels to their corners, where viewers count from
    polygons = [approximate_polygon(outline, DETAIL) - 1 + 0.5 for outline in outlines]
    return [p.tolist() for p in polygons if _area(p) >= min_area]


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2


class RegionPolygonsd(MapTransform):
    """
    Puts the polygons of a region's mask where MONAI Label looks for them, in the slide's pixels.

    The mask itself becomes a single 0: MONAI Label 0.8.5 asks an answer that it is not to write to a file whether it is
    true, which an array of more than one number can't say.

    Args:
        keys: key of the mask, (W, H).
        label: name of what the mask shows.
        result: key of MONAI Label's answer.
    """

    def __init__(self, keys: KeysCollection, label: str, result: str = "result") -> None:
        super().__init__(keys)
        self.label = label
        self.result = result

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        d = dict(data)
        if is_region(d):
            for key in self.key_iterator(d):
                polygons = mask_polygons(convert_to_numpy(d[key]), d.get("min_poly_area", 0))
                contours = [(np.asarray(polygon) + d["location"]).tolist() for polygon in polygons]
                d[self.result] = {
                    "annotation": {
                        "location": d["location"],
                        "size": d["size"],
                        "elements": [{"label": self.label, "contours": contours}] if contours else [],
                        "labels": {self.label: COLOUR},
                    }
                }
                d[key] = torch.zeros(1, dtype=torch.uint8)
        return d
