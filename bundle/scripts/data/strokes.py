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

"""Strokes beside their image: loaded, and of the size that the image has by then."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils.enums import MetaKeys

from scripts.data.targets import LoadTruthd
from scripts.images.strokes import POSITIVE, UNKNOWN, read_strokes

__all__ = ["LoadStrokesd", "fit_strokes", "load_pixel_labels"]


def fit_strokes(strokes: np.ndarray, to: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """
    Strokes of an image for the same image at another size, or padded.

    Each pixel takes the value of the nearest one. Where an image gets smaller, a thin stroke would fall between these:
    so what is marked also counts in the pixel that it lies in, by the majority there.

    Args:
        strokes: (W, H).
        to: (4, 4), from a place in the image to one in the other, see `MetaTensor.affine`; without rotation.
        size: of the result.

    Returns:
        Of that size, uint8; unknown in the padding.

    Examples:
        >>> half = np.diag([0.5, 1, 1, 1])
        >>> fit_strokes(np.array([[0], [1], [2], [2]]), half, (2, 1)).tolist()
        [[1], [2]]
    """
    scale, shift = np.diag(to)[:2], to[:2, 3]
    sources = [np.rint((np.arange(n) - b) / a).astype(int) for n, a, b in zip(size, scale, shift, strict=True)]
    inside = [(k >= 0) & (k < n) for k, n in zip(sources, strokes.shape, strict=True)]
    fitted = np.full(size, UNKNOWN, np.uint8)
    fitted[np.ix_(*inside)] = strokes[np.ix_(*(k[known] for k, known in zip(sources, inside, strict=True)))]
    marked = np.nonzero(strokes)
    places = [
        np.rint(a * k + b).astype(int).clip(0, n - 1) for n, a, b, k in zip(size, scale, shift, marked, strict=True)
    ]
    votes, count = np.zeros(size, int), np.zeros(size, int)
    np.add.at(votes, tuple(places), np.where(strokes[marked] == POSITIVE, 1, -1))
    np.add.at(count, tuple(places), 1)
    return np.where(count > 0, np.choose(np.sign(votes) + 1, (1, 0, 2)), fitted).astype(np.uint8)


class LoadStrokesd(MapTransform):
    """
    Load the strokes of an image at the size, and with the padding, that the image has by now.

    Run it after the image has been resized, and before it is flipped or turned. An item without strokes gets some that
    mark nothing, so that the items of a batch are alike.

    Args:
        keys: key of the strokes' path, in whose place they are put: (1, W, H) uint8, see `scripts.images.strokes`.
        image_key: key of the image, a MetaTensor.

    Raises:
        OSError, InputError: see `read_strokes`.
    """

    def __init__(self, keys: KeysCollection = "strokes", image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        image = d[self.image_key]
        for key in self.keys:
            strokes = np.full(image.shape[1:], UNKNOWN, np.uint8)
            if d.get(key) is not None:
                origin = np.asarray(image.meta.get(MetaKeys.ORIGINAL_AFFINE, np.eye(4)))
                to = np.linalg.inv(np.asarray(image.affine)) @ origin
                strokes = fit_strokes(read_strokes(d[key]).T, to, image.shape[1:])
            d[key] = torch.from_numpy(strokes)[None]
        return d


def load_pixel_labels(truth: bool, ranking: Transform | None = None) -> list[Transform]:
    """
    What is known of a training image's pixels: its ``strokes``, and ``truth`` for a method that learns from masks.

    Args:
        truth: whether there is such a method.
        ranking: adds what trained networks say of the pixels, see `RankingMapd`.

    Returns:
        Transforms for a list of others, which come after those of the image's size and before random ones.

    Raises:
        InputError: when `truth` is neither True nor False.
    """
    known: list[Transform] = [LoadTruthd("mask", names="truth", as_image=True, enabled=truth), LoadStrokesd()]
    return known if ranking is None else [*known, ranking]
