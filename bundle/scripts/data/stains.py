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

"""Random changes of how strongly a section is stained."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from skimage.color import hed_from_rgb, rgb_from_hed

from scripts.runtime.errors import InputError
from scripts.runtime.values import fraction

__all__ = ["RandStain", "RandStaind"]

DARKEST = 1 / 255  # light that 8 bits tell from none
STAINED = 0.25  # optical density, to the base e, from which a pixel is tissue rather than glass
GREY = 1e-3  # difference of colours that rounding explains


class RandStain(RandomizableTransform):
    """
    Change the densities of haematoxylin, eosin and DAB, each by a random factor and offset.

    The scheme is that of Tellez et al., IEEE TMI 37(9), 2018: light is turned into optical density, unmixed into the
    stains' densities d by the matrix of Ruifrok and Johnston (2001), changed to a d + b with a from [1 - s, 1 + s] and
    b from [-s, s], and mixed again. Here densities are to the base e and may be negative, so that s = 0 changes
    nothing; and b grows from 0 with a pixel's density, so that glass stays white.

    Args:
        amount: s, from 0 to 1.
        prob: of a change.

    Raises:
        InputError: when the amount is no fraction.
    """

    def __init__(self, amount: float, prob: float = 1.0) -> None:
        fraction("stain_shift", amount)
        RandomizableTransform.__init__(self, prob)
        self.amount = amount
        self.change = np.zeros((2, 3))

    def randomize(self, data: object = None) -> None:
        super().randomize(None)
        self.change = self.R.uniform(-self.amount, self.amount, (2, 3))

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """
        (3, H, W) RGB in 0..1, to the same.

        Raises:
            InputError: when it has not three channels, or is grey.
        """
        image = convert_to_tensor(img, track_meta=False)
        if image.shape[0] != 3 or _is_grey(image):
            raise InputError(
                "stain_shift changes the stains of sections in colour, and there is a grey image among the training "
                "images; give --stain_shift 0"
            )
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        factors, offsets = self.change
        mixing = torch.as_tensor(hed_from_rgb @ np.diag(1 + factors) @ rgb_from_hed, dtype=image.dtype)
        offset = torch.as_tensor(offsets @ rgb_from_hed, dtype=image.dtype)
        density = -image.flatten(1).clamp(DARKEST, 1).log()
        stained = (density.mean(dim=0) / STAINED).clamp(max=1).square()
        changed = torch.exp(-(mixing.T @ density + offset[:, None] * stained)).clamp(max=1)
        return convert_to_dst_type(changed.view_as(image), img)[0]


def _is_grey(image: torch.Tensor) -> bool:
    """Whether an image has values of many kinds but no colour. One of a single value may be glass or padding."""
    low, high = image.aminmax()
    return bool((image[1:] - image[:-1]).abs().max() < GREY < high - low)


class RandStaind(MapTransform, RandomizableTransform):
    """
    Dictionary version of `RandStain`.

    Args:
        keys: keys of images that have been normalised, (image - mean) / std.
        amount: see `RandStain`.
        mean, std: of the normalisation, one for each channel.
        slice_key: an item that has it is of a volume, and its channels are no colours.

    Raises:
        InputError: see `RandStain`; in a call also for a slice of a volume.
    """

    def __init__(
        self,
        keys: KeysCollection,
        amount: float,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        slice_key: str = "slice",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.stain = RandStain(amount)
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
        self.slice_key = slice_key

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandStaind:
        super().set_random_state(seed, state)
        self.stain.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        if self.slice_key in d:
            raise InputError("stain_shift changes the stains of sections, volumes have none; give --stain_shift 0")
        for key in self.key_iterator(d):
            d[key] = (self.stain(d[key] * self.std + self.mean) - self.mean) / self.std
        return d
