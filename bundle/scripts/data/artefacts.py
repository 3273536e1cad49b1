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

"""Random changes of training images for which a label and an area stay true: artefacts, and windows to learn in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy.ndimage import gaussian_filter

__all__ = ["ARTEFACTS", "RandArtefact", "RandArtefactd", "RandWindowd"]

Change = Callable[[torch.Tensor, np.random.RandomState], torch.Tensor]  # of (3, H, W) RGB in 0..1


def blank(image: torch.Tensor, rng: np.random.RandomState) -> torch.Tensor:
    """Glass, or no light: one colour, nearly grey, with the noise of a camera."""
    colour = np.clip(rng.uniform(0, 1) + rng.uniform(-0.05, 0.05, 3), 0, 1)
    return _colour(colour, image) + torch.as_tensor(rng.normal(0, 0.01, image.shape), dtype=image.dtype)


def defocused(image: torch.Tensor, rng: np.random.RandomState) -> torch.Tensor:
    """Slightly out of focus: a Gaussian of up to 1.2 % of the image's width, in which cancer can still be seen."""
    return _smoothed(image, rng.uniform(0.0005, 0.012) * image.shape[-1])


def blurred(image: torch.Tensor, rng: np.random.RandomState) -> torch.Tensor:
    """Far out of focus: a Gaussian of 1.5 to 6 % of the image's width."""
    return _smoothed(image, rng.uniform(0.015, 0.06) * image.shape[-1])


def pen(image: torch.Tensor, rng: np.random.RandomState) -> torch.Tensor:
    """A straight stroke of black, blue, green or red ink."""
    ink = np.array([(0, 0, 0), (0.1, 0.1, 0.5), (0.05, 0.4, 0.15), (0.6, 0.05, 0.1)])[rng.randint(4)]
    return torch.where(_band(image, rng), _colour(ink + rng.uniform(0, 0.15, 3), image), image)


def fold(image: torch.Tensor, rng: np.random.RandomState) -> torch.Tensor:
    """A straight fold of the section: two layers on each other take twice as much light away."""
    return torch.where(_band(image, rng), image**2, image)


ARTEFACTS = (blank, blurred, pen, fold)  # after which cancer is not seen, or not as much of it


def _smoothed(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """By a Gaussian; what lies beyond the frame mirrors the image, so that the frame is no darker."""
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="mirror"))


def _colour(colour: np.ndarray, image: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(colour, dtype=image.dtype).view(-1, 1, 1).expand_as(image)


def _band(image: torch.Tensor, rng: np.random.RandomState) -> torch.Tensor:
    """A band across the image, of any direction and 3 to 20 % of its size in width: boolean (1, H, W)."""
    height, width = image.shape[-2:]
    angle, offset, half = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4), rng.uniform(0.015, 0.1)
    y, x = np.meshgrid(np.linspace(-0.5, 0.5, height), np.linspace(-0.5, 0.5, width), indexing="ij")
    return torch.from_numpy(np.abs(x * np.cos(angle) + y * np.sin(angle) - offset) < half)[None]


class RandArtefact(RandomizableTransform):
    """
    Make an image one that is slightly out of focus, or one of the `ARTEFACTS`.

    Args:
        prob: of a change.
        kinds: changes of which each is as likely as another, of an image and a generator of random numbers.
    """

    def __init__(self, prob: float = 0.2, kinds: Sequence[Change] = (defocused, *ARTEFACTS)) -> None:
        RandomizableTransform.__init__(self, prob)
        self.kinds = kinds

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """(3, H, W) RGB in 0..1, to the same."""
        if randomize:
            self.randomize(None)
        if not self._do_transform:
            return img
        image = convert_to_tensor(img, track_meta=False)
        changed = self.kinds[self.R.randint(len(self.kinds))](image, self.R)
        return convert_to_dst_type(changed, img)[0]


class RandArtefactd(MapTransform, RandomizableTransform):
    """
    Dictionary version of `RandArtefact`; a positive image is made slightly out of focus, and nothing else.

    Without artefacts nothing tells a network that glass, blur, ink and folds are not cancer, and what it says of them
    is chance. After them the area of a positive image would no longer be true. And if negative images alone were out of
    focus, it would learn that cancer never is.

    Args:
        keys: keys of images that have been normalised, (image - mean) / std.
        prob: of a change.
        mean, std: of the normalisation, one for each channel.
        label_key: key of the weak target.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.2,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        label_key: str = "label",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.changes = [RandArtefact(prob), RandArtefact(prob, kinds=[defocused])]  # of negatives, of positives
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
        self.label_key = label_key

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandArtefactd:
        super().set_random_state(seed, state)
        for change in self.changes:
            change.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        change = self.changes[int(d[self.label_key][0] > 0)]
        for key in self.key_iterator(d):
            d[key] = (change(d[key] * self.std + self.mean) - self.mean) / self.std
        return d


class RandWindowd(MapTransform, RandomizableTransform):
    """
    Draw the window of an image in which the network is to be trained, for a loss whose labels are of the whole image.

    Args:
        keys: key of the image.
        fraction: of height and width that the window has.
        names: key of the window, an integer tensor (4,): top, left, height, width.
    """

    def __init__(self, keys: KeysCollection, fraction: float, names: str = "window") -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.fraction = fraction
        self.names = names

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            sizes = d[key].shape[1:]
            window = [max(1, round(self.fraction * size)) for size in sizes]
            corner = [self.R.randint(size - part + 1) for size, part in zip(sizes, window, strict=True)]
            d[self.names] = torch.tensor([*corner, *window])
        return d
