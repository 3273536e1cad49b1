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

"""How large a pixel of a picture is on the glass, where its file says so and can be right."""

from __future__ import annotations

import logging
from os import PathLike

import tifffile

from scripts.images.pictures import FORMATS, is_tiff, only_page, open_picture
from scripts.images.slide import resolution

__all__ = ["picture_mpp"]

UNITS = {2: "inch", 3: "centimeter"}  # of TIFF, as OpenSlide calls them
logger = logging.getLogger(__name__)


def picture_mpp(path: str | PathLike) -> tuple[float, float] | None:
    """
    Micrometres per pixel along x and y of a picture in a file, judged as those of a slide are.

    Returns:
        They; None where the file says none that a microscope can have, as those of a printer.
    """
    try:
        properties, size = _tiff(path) if is_tiff(path) else _dots_per_inch(path)
        return resolution(properties, size)
    except Exception as error:  # of a damaged file nearly any
        logger.debug(f"{path}: {error}")
        return None


def _tiff(path: str | PathLike) -> tuple[dict[str, str], tuple[int, int]]:
    with tifffile.TiffFile(path) as tiff:
        page = only_page(tiff)
        values = {name: page.tags.valueof(name) for name in ("XResolution", "YResolution")}
        found = {f"tiff.{name}": str(value[0] / value[1]) for name, value in values.items() if value and value[1]}
        found["tiff.ResolutionUnit"] = UNITS.get(page.tags.valueof("ResolutionUnit"), "")
        found["tiff.ImageDescription"] = str(page.description)
        return found, (page.imagewidth, page.imagelength)


def _dots_per_inch(path: str | PathLike) -> tuple[dict[str, str], tuple[int, int]]:
    with open_picture(path, FORMATS) as picture:
        dots = picture.info.get("dpi", ())
        found = {f"tiff.{axis}Resolution": str(float(value)) for axis, value in zip("XY", dots, strict=False)}
        return found | {"tiff.ResolutionUnit": "inch"}, picture.size
