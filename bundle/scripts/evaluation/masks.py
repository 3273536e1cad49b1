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

"""From a network's map back to the image that it is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from monai.transforms import AsDiscreted, CopyItemsd, Invertd, Transform

from scripts.images.small_parts import WithoutSmallPartsd
from scripts.losses.instances import SuperpixelMeand
from scripts.runtime.values import fraction, truth_value

__all__ = ["map_to_mask"]


def map_to_mask(
    preprocessing: Callable,
    threshold: float = 0.5,
    superpixels: bool = False,
    min_part: float = 0.0,
    spatial_size: Sequence[int] | None = None,
) -> list[Transform]:
    """
    Transforms from ``pred``, a map (1, W, H) as the network gives it, to ``pred``, a mask of the size of the file.

    ``probability`` keeps the map, at the size of the file as well; ``truth`` is the mask that was drawn and
    ``instances`` are the superpixels, where there are some.

    Args:
        preprocessing: of the image; it is undone.
        threshold: probability from which on a pixel is positive.
        superpixels: whether all pixels of a superpixel get their mean.
        min_part: part of a training image below which holes and islands of the map are not kept, see
            `WithoutSmallPartsd`; 0 keeps all.
        spatial_size: of a training image, as the network saw it; `min_part` needs it.

    Raises:
        InputError: when the threshold or `min_part` is no fraction, or `superpixels` neither True nor False.
    """
    fraction("threshold", threshold)
    truth_value("superpixels", superpixels)
    fraction("min_part", min_part)
    kept = {"pred": "probability", "mask": "truth", "superpixels": "instances"}
    return [
        *([SuperpixelMeand("pred")] if superpixels else []),
        *([WithoutSmallPartsd("pred", min_part, spatial_size)] if min_part else []),
        Invertd(
            ["pred", "superpixels"],
            transform=preprocessing,
            orig_keys="image",
            nearest_interp=[superpixels, True],  # superpixels stay whole: nothing is interpolated between them
            allow_missing_keys=True,
        ),
        CopyItemsd(list(kept), names=list(kept.values()), allow_missing_keys=True),
        AsDiscreted("pred", threshold=threshold),
    ]
