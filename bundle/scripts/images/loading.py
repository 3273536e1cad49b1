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

"""Transforms between what users have (pictures, masks, weak labels) and what the network and the loss take."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import lru_cache
from os import PathLike

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform, Resize, ScaleIntensityRangePercentiles, Transform
from monai.utils import convert_to_tensor, ensure_tuple_rep
from monai.utils.type_conversion import convert_data_type, convert_to_numpy
from skimage.segmentation import find_boundaries
from skimage.util import img_as_float32

from scripts.images.reading import PictureReader, image_size, reader_of, room_for
from scripts.runtime.errors import InputError

__all__ = [
    "BinaryMask",
    "KeepPictured",
    "LabelMap",
    "LabelMapd",
    "OutlineOverlay",
    "OutlineOverlayd",
    "ToRGB",
    "ToRGBd",
    "ValidRegion",
    "ValidRegiond",
    "VolumeToRGB",
    "is_volume",
    "load_image",
    "load_mask",
    "load_preview",
]

OUTLINE_COLOUR = (0.0, 1.0, 0.2)  # green: absent from H&E, and visible on grey


class ToRGB(Transform):
    """
    Grey, grey with alpha, RGB or RGBA to RGB in 0..1.

    Grey is repeated; what is transparent becomes white, as a viewer shows it. Integers are divided by the largest
    value of their type, floating-point must be in 0..1 already.
    """

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """
        Args:
            img: (C, H, W) with 1 to 4 channels.

        Returns:
            (3, H, W) float32 in 0..1.

        Raises:
            InputError: for another number of channels or axes, non-finite values, or values outside the range.
        """
        if isinstance(img, np.ndarray) and img.dtype.kind == "u":
            img = img_as_float32(img)  # MONAI would turn 16 bit into 32, after which the range is lost
        image = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        if image.ndim != 3 or not 1 <= image.shape[0] <= 4:
            raise InputError(f"expected an image of shape (1 to 4 channels, H, W), got {tuple(image.shape)}")
        if not image.is_floating_point():
            image = image.float() / (1 if image.dtype == torch.bool else torch.iinfo(image.dtype).max)
        image = image.float()
        low, high = _range(image, "image")
        if low < 0 or high > 1:
            raise InputError(
                f"values must be in 0..1, this one goes from {_digits(low)} to {_digits(high)}; rescale it, or save it "
                "as 8 or 16 bit"
            )
        if image.shape[0] in (2, 4):
            alpha = image[-1:]
            image = image[:-1] * alpha + (1 - alpha)
        return image if image.shape[0] == 3 else image.repeat(3, 1, 1)


def _range(image: torch.Tensor, what: str) -> tuple[float, float]:
    """Smallest and largest value. Raises InputError when there is none, or one that is not finite."""
    if image.numel() == 0:
        raise InputError(f"the {what} has no pixels")
    values = image.detach().cpu().numpy()  # PyTorch would copy what does not lie in order
    low, high = float(values.min()), float(values.max())  # either is NaN when any value is
    if not math.isfinite(low) or not math.isfinite(high):
        raise InputError(f"the {what} has values that are not finite")
    return low, high


def _digits(value: float) -> str:
    """A float32 with as many digits as tell it from its neighbours: 1.0000001, but 255."""
    return str(np.float32(value)).removesuffix(".0")


class VolumeToRGB(Transform):
    """
    A grey volume to RGB in 0..1.

    Its values mean something else in each: they are scaled from the 1st to the 99th percentile, and clipped.
    """

    def __init__(self) -> None:
        self.scale = ScaleIntensityRangePercentiles(1, 99, 0.0, 1.0, clip=True)

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """(1, W, H, D) to (3, W, H, D) float32 in 0..1. Raises InputError for another number of channels."""
        volume = convert_to_tensor(img, dtype=torch.float32, track_meta=isinstance(img, MetaTensor))
        if volume.shape[0] != 1:
            raise InputError(f"expected a volume of one channel, got {tuple(volume.shape)}")
        return self.scale(volume).repeat(3, 1, 1, 1)


class ToRGBd(MapTransform):
    """Dictionary version of `ToRGB`, and of `VolumeToRGB` for volumes."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = ToRGB()
        self.volume_converter = VolumeToRGB()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = (self.volume_converter if is_volume(d[key]) else self.converter)(d[key])
        return d


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
        _range(mask, "mask")
        has_alpha = mask.shape[0] in (2, 4)
        positive = (mask[:-1] if has_alpha else mask).amax(dim=0, keepdim=True) > 0
        return (positive & (mask[-1:] > 0) if has_alpha else positive).float()


@lru_cache
def _loader() -> LoadImage:
    """Give it the reader with each file: MONAI tries others after one that it is made with."""
    return LoadImage(dtype=None, ensure_channel_first=True, expanduser=False)  # '~' is a letter as any other


def load_image(path: str | PathLike) -> MetaTensor:
    """
    Read an image file of any format as it is: (C, W, H) as MONAI orders pictures.

    Raises:
        OSError, InputError: saying what is wrong with the file, see `PictureReader` and `reader_of`.
        Exception: whatever the format's library raises on a damaged file.
    """
    return _loader()(path, reader_of(path))


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
        image = ToRGB()(_loader()(path, reader))
        return (np.asarray(image).transpose(2, 1, 0) * 255).round().astype(np.uint8)  # from MONAI's (C, W, H)


class KeepPictured(MapTransform):
    """
    Keep a picture as it is for whoever draws it later, in a quarter of its memory: 0..1 becomes 8 bit.

    Args:
        keys: keys of the pictures, (3, W, H) in 0..1.
        names: keys under which they are kept, uint8.
    """

    def __init__(self, keys: KeysCollection, names: KeysCollection = "picture") -> None:
        super().__init__(keys)
        self.names = ensure_tuple_rep(names, len(self.keys))

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key, name in self.key_iterator(d, self.names):
            picture = convert_to_tensor(d[key], track_meta=False)
            kept = torch.empty(picture.shape, dtype=torch.uint8)
            for column in range(picture.shape[1]):  # one by one: the numbers in between need their memory as well
                kept[:, column] = (picture[:, column] * 255).round()
            d[name] = MetaTensor(kept, meta=d[key].meta) if isinstance(d[key], MetaTensor) else kept
        return d


class ValidRegion(Transform):
    """Ones of the size of an image: what is left of them after padding tells the image from the padding."""

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """(C, H, W) to (1, H, W) float32."""
        return torch.ones(1, *img.shape[1:])


class ValidRegiond(MapTransform):
    """
    Dictionary version of `ValidRegion`.

    Args:
        keys: keys of the images.
        names: keys of the regions, one for each image.
    """

    def __init__(self, keys: KeysCollection, names: KeysCollection = "valid", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = ensure_tuple_rep(names, len(self.keys))
        self.region = ValidRegion()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key, name in self.key_iterator(d, self.names):
            d[name] = self.region(d[key])
        return d


class LabelMap(Transform):
    """A predicted mask as most writers take it: whole numbers, without a channel axis."""

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """(C, H, W) of 0 and 1 to (H, W) uint8: its first channel, which is the network's answer."""
        return convert_data_type(img[0], dtype=np.uint8)[0]


class LabelMapd(MapTransform):
    """Dictionary version of `LabelMap`."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = LabelMap()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.converter(d[key])
        return d


class OutlineOverlay(Transform):
    """
    Draw the outline of a mask into a picture.

    Args:
        width: width of the outline in pixels.
    """

    def __init__(self, width: int = 2) -> None:
        self.width = width

    def __call__(self, image: NdarrayOrTensor, mask: NdarrayOrTensor) -> np.ndarray:
        """
        Args:
            image: (3, H, W) in 0..1, or uint8.
            mask: (1, H, W), or of another size, stretched over the picture; what is above 0 is outlined.

        Returns:
            (3, H, W) uint8 if that was given, else float32 in 0..1.
        """
        picture = convert_to_numpy(image)  # of a tensor on any device
        picture = picture.astype(np.uint8 if picture.dtype == np.uint8 else np.float32)  # a copy
        region = convert_to_numpy(Resize(picture.shape[1:], mode="nearest")(mask))[0] > 0
        outline = np.zeros_like(region)
        for _ in range(self.width):  # one ring of pixels at a time, from the edge inwards
            ring = find_boundaries(np.pad(region, 1), mode="inner", connectivity=2)[1:-1, 1:-1]
            outline |= ring
            region &= ~ring
        scale = 255 if picture.dtype == np.uint8 else 1
        picture[:, outline] = np.array([scale * colour for colour in OUTLINE_COLOUR], picture.dtype)[:, None]
        return picture


class OutlineOverlayd(MapTransform):
    """
    Dictionary version of `OutlineOverlay`: draws into the picture under each key; a volume stays as it is.

    Args:
        keys: key of the picture, (3, H, W) in 0..1 or uint8.
        mask_key: key of the mask, (1, H, W).
        width: width of the outline in pixels.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "pred", width: int = 2) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.overlay = OutlineOverlay(width)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            if is_volume(d[key]):
                continue
            drawn = torch.as_tensor(self.overlay(d[key], d[self.mask_key]))
            d[key] = MetaTensor(drawn, meta=d[key].meta) if isinstance(d[key], MetaTensor) else drawn
        return d


def is_volume(image: torch.Tensor) -> bool:
    """Whether an image without batch axis is a volume, (C, W, H, D), rather than a picture, (C, W, H)."""
    return image.ndim == 4
