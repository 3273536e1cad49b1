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

"""Pictures and masks as tensors, whatever their format."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import EnsureChannelFirst, MapTransform
from monai.transforms.io.array import switch_endianness
from monai.utils import ImageMetaKey, convert_to_tensor

from scripts.images.annotations import BinaryMask
from scripts.images.colours import ToRGB, with_metadata_of
from scripts.images.readers import PictureReader
from scripts.images.reading import image_size, reader_of
from scripts.images.room import room_for
from scripts.images.slide_parts import source_of

__all__ = ["LoadPictured", "in_8_bit", "load_image", "load_mask", "load_preview"]


def _load(path: str | PathLike, reader: ImageReader) -> MetaTensor:
    """
    Read a file by this reader alone, as MONAI's `LoadImage` does.

    That makes all readers it knows first, with a word on each library that is missing, and takes '~' for a folder.
    """
    pixels, meta = reader.get_data(reader.read(path))
    meta = switch_endianness(meta, "<") | {ImageMetaKey.FILENAME_OR_OBJ: str(path)}
    return EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(pixels, meta))


def load_image(path: str | PathLike) -> MetaTensor:
    """
    Read an image file of any format, or a `SlidePart`, as it is: (C, W, H) as MONAI orders pictures.

    Raises:
        OSError, InputError: saying what is wrong with the file, see `PictureReader` and `reader_of`.
        Exception: whatever the format's library raises on a damaged file.
    """
    return _load(path, reader_of(path))


def load_mask(path: str | PathLike) -> MetaTensor:
    """Read a mask file of any format, a picture's or polygons: (1, W, H) float32, 0 or 1. Raises as `load_image`."""
    return BinaryMask()(load_image(path))


def load_preview(path: str | PathLike, longest_side: int) -> np.ndarray:
    """
    Read an image for people to look at, in little memory: squares of pixels become one while it is read.

    It waits for what other threads are reading (`room_for`).

    Args:
        longest_side: how many pixels may be less in it: the longer side has this many up to twice as many; or fewer,
            when the image has.

    Returns:
        (H, W, 3) uint8.

    Raises:
        Exception: as `load_image`, and ValueError as `ToRGB`.
    """
    with room_for(path):
        reader = reader_of(path)
        if isinstance(reader, PictureReader):
            reader = PictureReader(shrink=max(1, max(image_size(path)) // longest_side))
        image = ToRGB()(_load(path, reader))
        return (np.asarray(image).transpose(2, 1, 0) * 255).round().astype(np.uint8)  # from MONAI's (C, W, H)


class LoadPictured(MapTransform):
    """
    Load pictures of any format: RGB in 0..1, (3, W, H) as MONAI orders pictures.

    Args:
        keys: keys of the files' paths.
        picture: key under which a copy is kept for whoever draws it later; none is where it is None.

    Raises:
        OSError, InputError: see `load_image` and `ToRGB`.
    """

    def __init__(self, keys: KeysCollection, picture: str | None = None) -> None:
        super().__init__(keys)
        self.picture = picture
        self.to_rgb = ToRGB()

    def read(self, item: Mapping[Hashable, Any], key: Hashable) -> torch.Tensor:
        """The picture whose path is under `key`, or the part of a slide that the item names, see `source_of`."""
        return self.to_rgb(load_image(source_of(item, key)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.read(d, key)
            if "results" in d:  # their name, where it isn't that of the file
                d[key].meta["results"] = d["results"]
            if self.picture is not None:
                d[self.picture] = in_8_bit(d[key])
        return d


def in_8_bit(image: torch.Tensor) -> torch.Tensor:
    """A picture of any shape (C, W, ...) in 0..1 in a quarter of its memory, with its metadata."""
    picture = convert_to_tensor(image, track_meta=False)
    kept = torch.empty(picture.shape, dtype=torch.uint8)
    for column in range(picture.shape[1]):  # one by one: the numbers in between need their memory as well
        kept[:, column] = (picture[:, column] * 255).round()
    return with_metadata_of(image, kept)
