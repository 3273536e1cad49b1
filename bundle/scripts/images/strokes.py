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

"""Strokes: pixels that somebody has marked as with or without the finding, as files."""

from __future__ import annotations

from os import PathLike

import numpy as np
from PIL import Image

from scripts.images.pictures import open_picture
from scripts.runtime.errors import InputError
from scripts.runtime.files import replacing

__all__ = ["NEGATIVE", "POSITIVE", "UNKNOWN", "read_strokes", "write_strokes"]

UNKNOWN, NEGATIVE, POSITIVE = 0, 1, 2  # values of a pixel
COLOURS = (0, 0, 0, 0, 128, 255, 255, 194, 75)  # of the three, for whoever looks at the file


def read_strokes(path: str | PathLike) -> np.ndarray:
    """
    Read an 8-bit PNG of strokes, grey or with a palette.

    Returns:
        (H, W) uint8: 0 where nothing is known, 1 for a negative, 2 for a positive pixel.

    Raises:
        OSError: when the file is missing, damaged or no PNG; `InputError` when it has other values.
    """
    with open_picture(path, ["PNG"]) as picture:
        strokes = np.array(picture) if picture.mode in ("L", "P") else None
    if strokes is None or strokes.max() > POSITIVE:
        raise InputError("must be an 8-bit PNG of 0 (unknown), 1 (negative) and 2 (positive)")
    return strokes


def write_strokes(path: str | PathLike, strokes: np.ndarray) -> None:
    """Write strokes, (H, W) of the values above, as `read_strokes` reads them."""
    picture = Image.fromarray(np.asarray(strokes, np.uint8)).convert("P")
    picture.putpalette(COLOURS)
    with replacing(path, binary=True) as file:
        picture.save(file, format="PNG", bits=8)
