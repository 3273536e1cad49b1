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

"""MONAI's image readers of pictures and of parts of slides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np
from monai.data import ImageReader, is_supported_format
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys

from scripts.images.pictures import SUFFIXES, read_picture
from scripts.images.slide_parts import PART_KEYS, SlidePart

__all__ = ["PictureReader", "SlidePartReader"]


class PictureReader(ImageReader):
    """
    MONAI image reader of pictures: 8 and 16 bit to 0..1, floating-point as it stands, palettes and CMYK to RGB.

    A picture lies as a viewer shows it: the orientation in a TIFF and in a camera's EXIF is followed, and what is white
    is 1. MONAI's `PILReader` returns the indices of a palette, and its `LoadImage` turns 16 bit into 32, after which
    nobody can tell the range. Axes are (W, H) or (W, H, C), as with `PILReader`.

    MONAI's `LoadImage` takes it when it is called: it tries other readers after one that it was made with.

    Args:
        shrink: side of the squares of pixels that become one, their mean; what is left at the right and at the bottom
            is cut off.
    """

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return is_supported_format(filename, SUFFIXES)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> np.ndarray:
        """
        Read one file, or several of one size as the channels of one image.

        Returns:
            float32, (H, W) or (H, W, C) with up to 4 channels: grey or RGB, with or without alpha. Integers with a sign
            or of more than 16 bit come as they are: nobody knows their range.

        Raises:
            OSError: when a file is missing, damaged, no picture, too large, or not one picture.
            Exception: whatever the format's library raises on a damaged file.
        """
        pictures = [read_picture(path, self.shrink) for path in ensure_tuple(data)]
        return pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=-1)

    def get_data(self, img: np.ndarray) -> tuple[np.ndarray, dict]:
        """The array with its first two axes swapped, and MONAI's metadata."""
        meta = {
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.shape[1::-1]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if img.ndim == 2 else -1,
        }
        return img.swapaxes(0, 1), meta


class SlidePartReader(ImageReader):
    """MONAI image reader of a `SlidePart`. Axes are (W, H, C), as with `PictureReader`."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return all(isinstance(part, SlidePart) for part in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[np.ndarray, SlidePart]:
        """The picture of one part, (H, W, 3), and the part. Raises as `SlidePart.read`."""
        [part] = ensure_tuple(data)
        return part.read(), part

    def get_data(self, img: tuple[np.ndarray, SlidePart]) -> tuple[np.ndarray, dict]:
        """The picture with its first two axes swapped, and MONAI's metadata, with the part's item as ``part``."""
        picture, part = img
        item = {"image": part.path} | {key: value for key, value in asdict(part).items() if key in PART_KEYS}
        meta = {
            MetaKeys.SPATIAL_SHAPE: np.asarray(picture.shape[1::-1]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1,
            "part": json.dumps(item),  # as text, which batches can have
        }
        return picture.swapaxes(0, 1), meta
