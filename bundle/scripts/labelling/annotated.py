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
"""Annotations of slides as QuPath exports them, to items of ``dataset.json``: rectangles are fields."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shapely import Polygon, box, get_parts, make_valid, union_all

from scripts.data.datalist import data_error, first_names
from scripts.images.slide import Slide
from scripts.images.slide_parts import SlidePart
from scripts.runtime.errors import InputError
from scripts.runtime.files import replacing
from scripts.runtime.values import positive_fraction
from scripts.slides.geojson import Region, rasterise, read_regions
from scripts.slides.listing import list_slides

__all__ = ["POSITIVE", "from_geojson"]

POSITIVE = ("Tumor", "Tumour", "Cancer", "Positive")  # classes, whatever their case
UNCLASSIFIED = ("", "region", "roi", "field")  # classes of a field that say nothing; and those that end in *
SUFFIXES = (".geojson", ".json")
PERCENT = re.compile(r"(\d+(?:[.,]\d+)?)\s*%")
SQUARE = 1e-6  # part of its box that a rectangle may leave out
EDGE = 1  # pixels by which a field may reach out of its slide, as a viewer rounds
LEAST = 1e-3  # part of a field; less of a positive polygon in it is an edge of one beside it


def from_geojson(
    slides: Path,
    annotations: Path | None = None,
    positive: Sequence[str] = POSITIVE,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    area_step: float = 0.1,
    masks: Path | None = None,
) -> tuple[list[dict], list[str]]:
    """
    Fields of slides that have been annotated with polygons in pixels of level 0.

    Every upright rectangle is a field. Its class says the label: positive, or, where it is another, negative. Where it
    has none, or one of QuPath's that say nothing (``Region*``), the field is positive if a polygon of a positive class
    lies in it. The area of a positive field is what such polygons cover of it, rounded up; without any it is the
    percentage that its name says, ``30%``, or not known.

    Args:
        slides: a slide, or a folder of them.
        annotations: the GeoJSON file of the slide, or a folder with one for each, by the slide's name; None for the
            folder of the slides.
        positive: classes, whatever their case.
        mpp, slide_mpp: see `SlidePart`.
        area_step: to which areas are rounded up.
        masks: folder into which the masks of positive polygons are written, if the annotators have outlined all there
            is in these fields.

    Returns:
        An item ``{"image": path, "region": [left, top, width, height], "label": 0 or 1, "group": name}`` for each, with
        ``area``, ``mpp`` and ``mask`` where they are known; and the names of slides without annotations.

    Raises:
        InputError: when a slide or a file can't be read, there is no field, or naming each field that can't be used.
    """
    positive_fraction("--area_step", area_step)
    classes = {name.strip().casefold() for name in positive}
    given = {"mpp": mpp, "slide_mpp": slide_mpp}
    resolution = {key: value for key, value in given.items() if value is not None}
    items, missing, problems = [], [], []
    for name, slide in list_slides(slides).items():
        file = _file_of(name, slide, annotations)
        if file is None:
            missing.append(name)
            continue
        regions, _ = read_regions(file)
        fields = [region for region in regions if _is_rectangle(region.polygon)]
        drawn = [region.polygon for region in regions if _class_of(region).casefold() in classes]
        drawn = [part for polygon in drawn if not _is_rectangle(polygon) for part in get_parts(make_valid(polygon))]
        drawn = [part for part in drawn if isinstance(part, Polygon)]
        if not fields:
            problems.append(f"'{file}': has no upright rectangle; draw one around each field")
        with closing(Slide(slide, 1.0)) as opened:  # whatever its resolution
            size = opened.width, opened.height
        for field in fields:
            region = _region(field.polygon, size)
            try:
                part = SlidePart(str(slide), tuple(region), **resolution)
                width, height = part.size()
                label, area = _answer(field, drawn, classes, area_step)
            except InputError as error:
                left, top = field.polygon.bounds[:2]
                problems.append(f"'{file}', field at ({left:g}, {top:g}): {error}")
                continue
            item = {"image": slide.absolute(), "region": region} | resolution | {"label": label, "group": name}
            items.append(item | ({"area": area} if area else {}))
            if masks is not None and label:
                scale = region[2] / width, region[3] / height
                mask = rasterise(drawn, (height, width), scale, region[:2])
                if mask.any():
                    items[-1]["mask"] = (masks / f"{Path(str(part)).stem}_mask.png").absolute()
                    with replacing(items[-1]["mask"], binary=True) as file:
                        Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(file, format="PNG")
    if problems:
        raise data_error("the annotations", problems)
    if not items:
        where = annotations or (slides if slides.is_dir() else slides.parent)
        raise InputError(
            f"There are no annotations of {first_names(missing)} in '{where}', as {missing[0]}.geojson; export them "
            "from QuPath, or name their folder by --annotations."
        )
    return items, missing


def _file_of(name: str, slide: Path, annotations: Path | None) -> Path | None:
    if annotations is not None and not annotations.is_dir():
        if not annotations.is_file():
            raise InputError(f"There is no file or folder '{annotations}' of annotations.")
        return annotations if annotations.stem.startswith(name) else None
    folder = annotations or slide.parent
    return next((file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()), None)


def _is_rectangle(polygon: Polygon) -> bool:
    """Whether it is its own box. (QuPath turns an ellipse or a brush into many corners.)"""
    whole = box(*polygon.bounds).area
    return whole > 0 and polygon.is_valid and polygon.area >= (1 - SQUARE) * whole


def _class_of(region: Region) -> str:
    """Its class in QuPath, ``classification.name``; empty where it has none."""
    found: Any = region.properties.get("classification")
    found = found.get("name") if isinstance(found, dict) else found
    return found.strip() if isinstance(found, str) else ""


def _region(polygon: Polygon, size: tuple[int, int]) -> list[int]:
    """Left, top, width and height in whole pixels; in the slide, of this width and height, where it is nearly so."""
    bounds = [round(value) for value in polygon.bounds]
    for place, (value, limit) in enumerate(zip(bounds, (0, 0, *size), strict=True)):
        bounds[place] = limit if abs(value - limit) <= EDGE else value
    left, top, right, bottom = bounds
    return [left, top, right - left, bottom - top]


def _answer(field: Region, drawn: Sequence[Polygon], classes: set[str], area_step: float) -> tuple[int, float | None]:
    """Label and rough area of a field."""
    covered = union_all([polygon.intersection(field.polygon) for polygon in drawn]).area / field.polygon.area
    covered = covered if covered >= LEAST else 0.0
    name = _class_of(field)
    says_nothing = name.casefold() in UNCLASSIFIED or name.endswith("*")
    label = int(covered > 0 if says_nothing else name.casefold() in classes)
    if covered and not label:
        raise InputError(
            f"is of class '{name}', but {covered:.0%} of it lie in polygons of a positive one; correct one"
        )
    if covered:
        return label, min(1.0, round(math.ceil(round(covered / area_step, 6)) * area_step, 6))
    said = PERCENT.fullmatch(str(field.properties.get("name") or "").strip())
    area = float(said[1].replace(",", ".")) / 100 if said else 0.0
    if area > 1:
        raise InputError(f"has the name '{field.properties['name']}', which is more than all of it")
    if says_nothing and area:
        return 1, area
    if area and not label:
        raise InputError(f"is of class '{name}', but has the name '{field.properties['name']}'; correct one")
    return label, area or None
