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

"""Parts of negative images in positive ones: pixels known to be negative, where the rest of the image is positive."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, Randomizable, Transform

from scripts.images.strokes import NEGATIVE
from scripts.runtime.values import fraction

__all__ = ["RandPasteNegatived"]

FEW, PART_OF_FEW = 100, 0.5  # what "auto" is: with fewer images, in every second
DONORS = 64  # negative images that are kept
PASTED = (0.3, 0.6)  # part of the image, from and to
LONGER = 0.5  # logarithm of a rectangle's aspect over that of the image, at most


class RandPasteNegatived(Randomizable, MapTransform):
    """
    Replace a rectangle of a positive image, or all but one, by that part of a negative image.

    A network that sees a whole image can recognise cancer anywhere in it and answer with its area everywhere, which
    few images can't disprove. Here it has to tell which part of an image is which. The idea is CutMix's (Yun et al.,
    ICCV 2019), with a label for each part.

    The pasted pixels are strokes of the negative label, and the area becomes what is left of it on average: itself
    times the part of the image that has been kept.

    It belongs before other random changes. An image without an area, with superpixels, or of padding is left as it is.

    Args:
        keys: key of the image (C, W, H); ``label`` is its weak target, label and area, ``strokes`` are (1, W, H).
        items: of the data set; parts are those of negative ones, `DONORS` of them at most, evenly spaced.
        load: what makes an image of an item, of the size and in the colours of `keys`.
        prob: of a positive image; ``"auto"`` for 0.5 where there are fewer than 100 items, else 0.

    Raises:
        InputError: when `prob` is neither a fraction nor the word.
    """

    def __init__(
        self,
        keys: KeysCollection,
        items: Sequence[Mapping[str, Any]],
        load: Sequence[Transform],
        prob: float | str = "auto",
    ) -> None:
        MapTransform.__init__(self, keys)
        if prob == "auto":
            prob = PART_OF_FEW if len(items) < FEW else 0.0
        fraction("paste", prob, words="'auto' or ")
        self.prob = prob
        negative = [item for item in items if item["label"] == 0]
        self._items = negative[:: math.ceil(len(negative) / DONORS) or 1]
        self._load = Compose(load)

    @cached_property
    def _donors(self) -> list[Mapping[Hashable, Any]]:
        return [self._load(item) for item in self._items]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        label, area = torch.as_tensor(d["label"]).tolist()
        drawn = self.R.random() < self.prob
        if not drawn or not self._items or label != 1 or math.isnan(area) or "superpixels" in d or "valid" in d:
            return d
        pasted = self._part(d[self.keys[0]].shape[1:])
        donor = self._donors[self.R.randint(len(self._items))]
        for key in self.keys:
            d[key] = d[key].clone()
            d[key][:, pasted] = torch.as_tensor(donor[key])[:, pasted].to(d[key].dtype)
        d["strokes"] = d["strokes"].masked_fill(pasted, NEGATIVE)
        if "truth" in d:
            d["truth"] = d["truth"].masked_fill(pasted, 0)
        d["label"] = torch.as_tensor(d["label"]) * torch.tensor([1, 1 - float(pasted.float().mean())])
        return d

    def _part(self, size: Sequence[int]) -> torch.Tensor:
        """(W, H), True where another image is shown."""
        part, longer = self.R.uniform(*PASTED), math.exp(self.R.uniform(-LONGER, LONGER))
        sides = [
            min(n, round(n * math.sqrt(part) * factor)) for n, factor in zip(size, (longer, 1 / longer), strict=True)
        ]
        x, y = (self.R.randint(n - side + 1) for n, side in zip(size, sides, strict=True))
        pasted = torch.zeros(tuple(size), dtype=torch.bool)
        pasted[x : x + sides[0], y : y + sides[1]] = True
        return ~pasted if self.R.random() < 0.5 else pasted
