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

"""What the loss is told of an image: label and rough area, pixel truth, and which pixels are the image's."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from os import PathLike

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, ResampleToMatchd, Transform
from monai.utils import ensure_tuple_rep
from monai.utils.enums import MetaKeys

from scripts.data.rough_area import rough_area
from scripts.images.loading import load_mask
from scripts.runtime.values import positive_fraction, truth_value

__all__ = ["LoadTruthd", "ValidRegion", "ValidRegiond", "WeakTarget", "WeakTargetd"]


class WeakTarget(Transform):
    """
    Label and rough area as the tensor that the loss takes.

    Args:
        area_step: step to which an area derived from a mask is rounded up, as a pathologist would estimate it.

    Raises:
        InputError: when the step is not above 0 and up to 1.

    Examples:
        >>> WeakTarget()(1, area=0.3), WeakTarget()(0)
        (tensor([1.0000, 0.3000]), tensor([0., nan]))
    """

    def __init__(self, area_step: float = 0.1) -> None:
        positive_fraction("area_step", area_step)
        self.area_step = area_step

    def __call__(self, label: int | str | PathLike, area: float | None = None) -> torch.Tensor:
        """
        Args:
            label: 0, 1, or the path of a mask (what MONAI Label gives), from which label and area are derived.
            area: rough area as a fraction of the image; None where not known.

        Returns:
            (2,) float32: label and area, NaN for an unknown area and for every negative.
        """
        if isinstance(label, (str, PathLike)):
            area = rough_area(np.asarray(load_mask(label)) > 0, self.area_step)
            label = int(area > 0)
        known = label == 1 and area is not None
        return torch.tensor([float(label), float(area) if known else float("nan")])


class WeakTargetd(MapTransform):
    """
    Dictionary version of `WeakTarget`, which replaces the label by the target.

    A label that is a path is kept under `mask_key`, since it is the pixel truth as well.

    Args:
        keys: key of the label.
        area_key: key of the area, which may be absent.
        mask_key: key of the path of the mask, which may be absent.
        area_step: see `WeakTarget`.
    """

    def __init__(
        self, keys: KeysCollection = "label", area_key: str = "area", mask_key: str = "mask", area_step: float = 0.1
    ) -> None:
        super().__init__(keys)
        self.area_key = area_key
        self.mask_key = mask_key
        self.target = WeakTarget(area_step)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], (str, PathLike)):
                d[self.mask_key] = d[key]
            d[key] = self.target(d[key], d.get(self.area_key))
        return d


class LoadTruthd(MapTransform):
    """
    Load the pixel truth of an image: the mask's file, or zeros for a negative image, which needs none. A mask that is
    loaded already stays as it is.

    Run it after `WeakTargetd` and `LoadImaged`; the truth has the size of the image's file, even if the image has been
    resized since, unless `as_image` is asked for. Items of positive images without a mask stay without one.

    Args:
        keys: key of the mask's path.
        names: key of the truth; that of the path by default.
        label_key: key of the weak target.
        image_key: key of the image, a MetaTensor.
        as_image: whether the truth gets the size that the image has by now, and its padding, by the nearest pixel.
        enabled: False loads nothing.
    """

    def __init__(
        self,
        keys: KeysCollection = "mask",
        names: KeysCollection | None = None,
        label_key: str = "label",
        image_key: str = "image",
        as_image: bool = False,
        enabled: bool = True,
    ) -> None:
        super().__init__(keys)
        truth_value("pixel_labels", enabled)
        self.enabled = enabled
        self.names = ensure_tuple_rep(self.keys if names is None else names, len(self.keys))
        self.label_key = label_key
        self.image_key = image_key
        self.resample = ResampleToMatchd(self.names, image_key, mode="nearest") if as_image else None

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        if not self.enabled:
            return d
        for key, name in zip(self.keys, self.names, strict=True):
            if d.get(key) is not None:
                d[name] = load_mask(d[key]) if isinstance(d[key], (str, PathLike)) else d[key]
            elif d[self.label_key][0] == 0:
                d[name] = torch.zeros(1, *(int(size) for size in d[self.image_key].meta[MetaKeys.SPATIAL_SHAPE]))
        return d if self.resample is None else self.resample(d)


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
