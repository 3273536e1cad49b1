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

"""Reading pictures (PNG, JPEG, TIFF, BMP ...) of any mode and bit depth, and masks that are drawn as polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from monai.config import PathLike
from monai.data import ImageReader, is_supported_format
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from skimage.util import img_as_float32

__all__ = ["AnnotationReader", "PictureReader"]

SUFFIXES = ("png", "jpg", "jpeg", "bmp", "tif", "tiff")
SLIDE_SUFFIXES = ("svs", "ndpi", "mrxs", "scn", "vms", "vmu", "bif", "svslide")  # of whole slides, and nothing else
SAMPLES_PER_PIXEL = 277  # TIFF tag
# Modes whose numbers are not grey levels or colours as they stand.
CONVERTED_MODES = {"1": "L", "P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}


class PictureReader(ImageReader):
    """
    MONAI image reader of pictures: 8 and 16 bit to 0..1, floating-point as it stands, palettes and CMYK to RGB.

    A picture lies as a viewer shows it: a camera's note of its orientation (EXIF) is followed.

    MONAI's `PILReader` returns the indices of a palette, and its `LoadImage` turns 16 bit into 32, after which
    nobody can tell the range. Axes are (W, H) or (W, H, C), as with `PILReader`. Use it in `LoadImage`, which falls
    back to MONAI's other readers where this one fails (NIfTI, for example).
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return is_supported_format(filename, SUFFIXES)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> np.ndarray:
        """
        Read one file, or several of one size as the channels of one image.

        Returns:
            float32, (H, W) or (H, W, C). More than 4 channels, several pages or frames and integers outside 16 bit come
            as they are, for `ToRGB` to refuse: `LoadImage` answers an error here by trying a reader that would drop
            the surplus without a word.

        Raises:
            OSError: when a file is missing, damaged, or not a picture.
        """
        pictures = [_read_picture(str(path)) for path in ensure_tuple(data)]
        return pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=-1)

    def get_data(self, img: np.ndarray) -> tuple[np.ndarray, dict]:
        """The array with its first two axes swapped, and MONAI's metadata."""
        meta = {
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.shape[1::-1]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if img.ndim == 2 else -1,
        }
        return img.swapaxes(0, 1), meta


def _read_picture(path: str) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            mode = CONVERTED_MODES.get(picture.mode, picture.mode)
            if _is_more_than_pillow_shows(picture):
                array = tifffile.imread(path)
            elif _is_animated(picture):
                array = np.stack([_frame(picture, number) for number in range(2)])
            else:
                picture = ImageOps.exif_transpose(picture)
                array = np.asarray(picture if mode == picture.mode else picture.convert(mode))
    except UnidentifiedImageError:
        # Pillow knows no floating-point or 32-bit colours
        try:
            array = tifffile.imread(path)
        except Exception as error:  # a damaged file may raise anything
            raise OSError(f"not a picture: {error}") from error
    if array.dtype == np.int32:  # so Pillow gives 16-bit greys of some formats, and true 32 bit of unknown range
        is_16_bit = array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max
        return img_as_float32(array.astype(np.uint16)) if is_16_bit else array.astype(np.float32)
    return img_as_float32(array)


def _is_animated(picture: Image.Image) -> bool:
    """Several pictures in one file; not an MPO, a telephone's JPEG with a preview."""
    return picture.format not in ("TIFF", "MPO") and getattr(picture, "n_frames", 1) > 1


def _frame(picture: Image.Image, number: int) -> np.ndarray:
    picture.seek(number)
    return np.asarray(picture.convert("RGBA"))


def _is_more_than_pillow_shows(picture: Image.Image) -> bool:
    """Of a TIFF Pillow shows the first page, and of many channels the first ones."""
    if picture.format != "TIFF":
        return False
    return picture.n_frames > 1 or picture.tag_v2.get(SAMPLES_PER_PIXEL, 1) > 4


class AnnotationReader(ImageReader):
    """
    MONAI image reader of masks as QuPath submits them to MONAI Label: polygons in ASAP's form.

    What lies in any of them is 1, of whatever class. Axes are (W, H), as with `PictureReader`.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return is_supported_format(filename, ["xml"])

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> np.ndarray:
        """
        Read one file.

        Returns:
            uint8, (H, W), 0 or 1.

        Raises:
            OSError: when the file is not of this kind, or doesn't say how large its region is.
        """
        [path] = ensure_tuple(data)
        try:
            region = ElementTree.parse(path).getroot().find("Annotations")
            size = int(region.get("W")), int(region.get("H"))
            polygons = [
                [(float(point.get("X")), float(point.get("Y"))) for point in annotation.iter("Coordinate")]
                for annotation in region.iter("Annotation")
            ]
        except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise OSError(f"not polygons of a region in ASAP's form, with its width and height: {error}") from error
        if min(size) < 1:
            raise OSError("polygons of a whole slide, whose size is not in the file; submit those of a region")
        mask = Image.new("L", size)
        for polygon in polygons:
            ImageDraw.Draw(mask).polygon(polygon, fill=1)
        return np.array(mask)

    def get_data(self, img: np.ndarray) -> tuple[np.ndarray, dict]:
        """The array with its axes swapped, and MONAI's metadata."""
        return PictureReader().get_data(img)
