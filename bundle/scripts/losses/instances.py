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
Instances: pixels, or superpixels with the mean probability of their pixels (Jia et al. 2017, section III-C).

All superpixels weigh the same, whatever their size; pixels that padding has added are no instances.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor

__all__ = [
    "SuperpixelMean",
    "SuperpixelMeand",
    "check_regions",
    "instances_of",
    "paint_superpixels",
    "superpixel_means",
]


def check_regions(probability: torch.Tensor, **regions: torch.Tensor | None) -> None:
    """Raises ValueError when one of these, by its name, is not (B, 1, H, W) beside maps of (B, M, H, W)."""
    expected = (probability.shape[0], 1, *probability.shape[2:])
    for name, given in regions.items():
        if given is not None and given.shape != expected:
            raise ValueError(f"expected {name} of shape {expected}, got {tuple(given.shape)}.")


def superpixel_means(
    probability: torch.Tensor, superpixels: torch.Tensor, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean probability of each superpixel.

    Args:
        probability: (B, M, H, W).
        superpixels: (B, 1, H, W), integer labels from 0, one numbering an image; below 0 a pixel belongs to none. They
            may be on another device than the probability.
        valid: (B, 1, H, W), above 0 where a pixel belongs to the image; all of them where it is None.

    Returns:
        (B, M, K) means, float32 at least, K the largest number of superpixels of an image; and (B, K), True where an
        image has the superpixel. The means of those that it doesn't have are 0.

    Examples:
        >>> probability = torch.tensor([[[[0.2, 0.4, 0.9]]]])
        >>> superpixel_means(probability, torch.tensor([[[[0, 0, 1]]]]))
        (tensor([[[0.3000, 0.9000]]]), tensor([[True, True]]))
    """
    p = probability.to(torch.promote_types(probability.dtype, torch.float32)).flatten(2)
    count = max(int(superpixels.max()), 0) + 1  # where the labels are: on the CPU the accelerator isn't waited for
    labels = superpixels.to(p.device, torch.long, non_blocking=True).flatten(2)  # (B, 1, N)
    counted = labels >= 0
    if valid is not None:
        counted &= valid.to(p.device, non_blocking=True).flatten(2) > 0
    labels, weight = labels.clamp(min=0), counted.to(p.dtype)
    pixels = weight.new_zeros(*labels.shape[:2], count).scatter_add(2, labels, weight)  # (B, 1, K)
    p = torch.where(counted, p, 0.0)  # not a product, or NaN in the padding would survive
    sums = p.new_zeros(*p.shape[:2], count).scatter_add(2, labels.expand_as(p), p)  # (B, M, K)
    return sums / pixels.clamp(min=1), pixels.squeeze(1) > 0


def paint_superpixels(
    probability: torch.Tensor, superpixels: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Give every pixel of a map the mean of its superpixel.

    Args:
        probability, superpixels, valid: see `superpixel_means`.

    Returns:
        (B, M, H, W) float32 at least, 0 for pixels of no superpixel.

    Examples:
        >>> paint_superpixels(torch.tensor([[[[0.2, 0.4, 0.9]]]]), torch.tensor([[[[0, 0, 1]]]]))
        tensor([[[[0.3000, 0.3000, 0.9000]]]])
    """
    means, _ = superpixel_means(probability, superpixels, valid)
    labels = superpixels.to(means.device, torch.long).flatten(2)  # (B, 1, N)
    painted = means.gather(2, labels.clamp(min=0).expand(-1, means.shape[1], -1))
    return torch.where(labels >= 0, painted, 0.0).view(*means.shape[:2], *probability.shape[2:])


def instances_of(
    probability: torch.Tensor, superpixels: torch.Tensor | None = None, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The instances of probability maps, as pooling and constraints take them.

    Args:
        probability: (B, M, H, W).
        superpixels: (B, 1, H, W) integer labels, see `superpixel_means`; None for pixels.
        valid: (B, 1, H, W), above 0 where a pixel belongs to the image, or None.

    Returns:
        (B, M, ...) probabilities; and (B, ...), True where an instance counts, or None where all of them do.

    Raises:
        ValueError: when the sizes don't fit each other.
    """
    check_regions(probability, superpixels=superpixels, valid=valid)
    if superpixels is not None:
        return superpixel_means(probability, superpixels, valid)
    return probability, None if valid is None else valid[:, 0].to(probability.device, non_blocking=True) > 0


class SuperpixelMean(Transform):
    """Give every pixel of a map the mean of its superpixel, so that a threshold takes or leaves whole superpixels."""

    def __call__(self, img: NdarrayOrTensor, superpixels: NdarrayOrTensor) -> torch.Tensor:
        """
        Args:
            img: (C, H, W).
            superpixels: (1, H, W) integer labels from 0; below 0 a pixel belongs to none.

        Returns:
            (C, H, W) float32, 0 for pixels of no superpixel; a MetaTensor where `img` is one.
        """
        probability = convert_to_tensor(img, track_meta=False)
        labels = convert_to_tensor(superpixels, track_meta=False, device=probability.device).long()
        painted = paint_superpixels(probability[None], labels[None])[0]
        return MetaTensor(painted, meta=img.meta) if isinstance(img, MetaTensor) else painted


class SuperpixelMeand(MapTransform):
    """
    Dictionary version of `SuperpixelMean`.

    Args:
        keys: keys of the maps.
        superpixel_key: key of the superpixels of all of them, (1, H, W).
        allow_missing_keys: whether a map may be absent.
    """

    def __init__(
        self, keys: KeysCollection, superpixel_key: str = "superpixels", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.superpixel_key = superpixel_key
        self.mean = SuperpixelMean()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.mean(d[key], d[self.superpixel_key])
        return d
