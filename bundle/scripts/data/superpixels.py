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

"""Superpixels: small connected regions of one colour that follow the edges in an image, cached on disk."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Hashable, Mapping
from functools import partial
from hashlib import sha256
from numbers import Integral, Real
from os import PathLike
from pathlib import Path

import numpy as np
import skimage
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple
from monai.utils.type_conversion import convert_to_numpy
from skimage.measure import label
from skimage.segmentation import slic
from skimage.util import regular_grid

from scripts.runtime.errors import InputError
from scripts.runtime.files import replacing
from scripts.runtime.values import truth_value

__all__ = ["Superpixels", "Superpixelsd"]

VERSION = 1  # of the algorithm: raise it with any change of the result, or caches keep the old one
AUTO_DENSITY = 900 / (500 * 500)  # superpixels a pixel
COMPACTNESS = 20.0  # the best masks, or as good, that superpixels of H&E can make at 45 to 900 an image
TOLERANCE = 1e-3  # by which resizing may leave 0..1; under half a step of 8 bits
logger = logging.getLogger(__name__)


class Superpixels(Transform):
    """
    Partition an image into SLIC superpixels (Achanta et al. 2012, doi:10.1109/TPAMI.2012.120).

    The number asked for is the number made, but for images of hardly more pixels. SLIC alone does not give it: it puts
    its seeds on a grid of whole pixels, and falls into fragments. So it gets the coarsest grid with enough seeds, and
    then the smallest piece joins the neighbour of the nearest mean colour until the number is reached.

    Args:
        n_segments: number of superpixels, at most one a pixel; "auto" for 900 in 500 x 500 pixels, in proportion to the
            area.
        compactness: weight of nearness against colour; the larger, the squarer. Above 0 and finite.
        cache_dir: folder to keep results in, which threads and processes may share; None for no cache. An entry that
            can't be read is made again; where none can be written, the transform does without.

    Raises:
        InputError: for another number of segments or compactness.
    """

    def __init__(
        self, n_segments: int | str = "auto", compactness: float = COMPACTNESS, cache_dir: str | PathLike | None = None
    ) -> None:
        number = isinstance(n_segments, Integral) and not isinstance(n_segments, bool) and n_segments >= 1
        if n_segments != "auto" and not number:
            raise InputError(f"n_segments must be 'auto' or a whole number of at least 1, got {n_segments!r}")
        if not isinstance(compactness, Real) or isinstance(compactness, bool) or not 0 < compactness < math.inf:
            raise InputError(f"compactness must be a finite number above 0, got {compactness!r}")
        self.n_segments = n_segments
        self.compactness = float(compactness)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._writable = True

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """
        Args:
            img: (3, H, W) in 0..1; what 8 bits can't tell apart has the same superpixels.

        Returns:
            (1, H, W) int32, 0..K-1, each label one 4-connected region; for a MetaTensor one with its metadata.

        Raises:
            ValueError: for another shape; `InputError` for values outside the range.
        """
        if img.ndim != 3 or img.shape[0] != 3 or 0 in img.shape:
            raise ValueError(f"expected an image of shape (3, H, W), got {tuple(img.shape)}")
        image = convert_to_numpy(img)
        low, high = float(image.min()), float(image.max())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # NaN fails as well
            raise InputError(f"values must be in 0..1, this image goes from {low:g} to {high:g}")
        picture = np.ascontiguousarray((image * 255).round().astype(np.uint8).transpose(1, 2, 0))
        labels = torch.from_numpy(self._cached(picture)[None])
        return MetaTensor(labels).copy_meta_from(img) if isinstance(img, MetaTensor) else labels

    def _cached(self, picture: np.ndarray) -> np.ndarray:
        """Superpixels (H, W) of a picture (H, W, 3) uint8, from the cache if it has them."""
        pixels = picture.shape[0] * picture.shape[1]
        n = max(1, round(AUTO_DENSITY * pixels)) if self.n_segments == "auto" else int(self.n_segments)
        if self.cache_dir is None:
            return _partition(picture, n, self.compactness)
        settings = f"{VERSION} {skimage.__version__} {n} {self.compactness!r} {picture.shape}\n"
        key = sha256(settings.encode() + picture.tobytes()).hexdigest()
        path = self.cache_dir / f"{key}.npz"
        labels = _read(path, key, picture.shape[:2])
        if labels is None:
            labels = _partition(picture, n, self.compactness)
            self._write(path, key, labels)
        return labels

    def _write(self, path: Path, key: str, labels: np.ndarray) -> None:
        if not self._writable:
            return
        try:
            with replacing(path, binary=True) as file:
                np.savez_compressed(file, labels=labels, key=key)
        except OSError as error:
            self._writable = False
            logger.warning(f"Superpixels can't be cached in '{path.parent}': {error}")


class Superpixelsd(MapTransform):
    """
    Dictionary version of `Superpixels`.

    What changes the image's geometry afterwards must change the superpixels with it, and leave their labels whole
    (``mode="nearest"``; padding with 0 would add to label 0, so pad with -1).

    Args:
        keys: keys of the images, (3, H, W) in 0..1.
        names: where to put the superpixels, one name a key.
        n_segments: see `Superpixels`.
        compactness: see `Superpixels`.
        cache_dir: see `Superpixels`.
        enabled: False makes none.
        allow_missing_keys: whether an image may be absent.

    Raises:
        ValueError: unless there is one name a key; and see `Superpixels`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: KeysCollection = "superpixels",
        n_segments: int | str = "auto",
        compactness: float = COMPACTNESS,
        cache_dir: str | PathLike | None = None,
        enabled: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        truth_value("superpixels", enabled)
        self.enabled = enabled
        self.names = ensure_tuple(names)
        if len(self.names) != len(self.keys):
            raise ValueError(f"there must be one name per key, got {self.names!r} for {self.keys!r}")
        self.superpixels = Superpixels(n_segments, compactness, cache_dir)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key, name in self.key_iterator(d, self.names) if self.enabled else ():
            d[name] = self.superpixels(d[key])
        return d


def _read(path: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """The entry (H, W) int32 of the cache; None if there is none, or with a warning if it is not what it should be."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            labels, kept_key = entry["labels"], str(entry["key"])  # reading compares them with their CRC
        if kept_key != key or labels.shape != shape or labels.dtype != np.int32:
            raise ValueError("of another image")
        if labels.min() != 0 or labels.max() >= labels.size:
            raise ValueError("no labels")
        return labels
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # the bytes may be anything, and the readers of zip and npy raise as much
        logger.warning(f"'{path}' can't be used, so its superpixels are computed again: {error}")
        return None


def _partition(picture: np.ndarray, n: int, compactness: float) -> np.ndarray:
    """Superpixels (H, W) int32, `n` if SLIC gives as many pieces, of a picture (H, W, 3) uint8."""
    asked = n
    while asked < picture.shape[0] * picture.shape[1] and _seeds(picture.shape[:2], asked) < n:
        asked += math.ceil(asked / 100)
    clusters = slic(picture, asked, compactness, enforce_connectivity=False, start_label=0, channel_axis=-1)
    pieces = label(clusters, background=-1, connectivity=1) - 1
    return _merge(pieces, picture, n)


def _seeds(shape: tuple[int, int], asked: int) -> int:
    """How many seeds scikit-image's SLIC starts from when asked for a number."""
    axes = zip(regular_grid(shape, asked), shape, strict=True)
    return math.prod(len(range(*axis.indices(length))) for axis, length in axes)


def _merge(pieces: np.ndarray, picture: np.ndarray, n: int) -> np.ndarray:
    """Join the smallest piece with the neighbour of the nearest mean colour until `n` are left; (H, W) int32."""
    flat = pieces.ravel()
    sizes = np.bincount(flat).tolist()
    sums = [np.bincount(flat, channel.ravel()).tolist() for channel in np.moveaxis(picture, -1, 0)]
    neighbours: list[set[int]] = [set() for _ in sizes]
    for a, b in ((pieces[1:], pieces[:-1]), (pieces[:, 1:], pieces[:, :-1])):
        pairs = np.unique(a[a != b].astype(np.int64) * len(sizes) + b[a != b])
        for one, other in zip((pairs // len(sizes)).tolist(), (pairs % len(sizes)).tolist(), strict=True):
            neighbours[one].add(other)
            neighbours[other].add(one)

    def unlikeness(a: int, b: int) -> tuple[float, int, int]:
        difference = sum((channel[a] / sizes[a] - channel[b] / sizes[b]) ** 2 for channel in sums)
        return difference, sizes[b], b  # by size, or an area of one colour would grow into one

    joined = list(range(len(sizes)))
    queue = [(size, piece) for piece, size in enumerate(sizes)]
    heapq.heapify(queue)
    for _ in range(len(sizes) - n):
        size, piece = heapq.heappop(queue)
        while joined[piece] != piece or sizes[piece] != size:  # has been joined, or has grown, since
            size, piece = heapq.heappop(queue)
        into = min(neighbours[piece], key=partial(unlikeness, piece))
        joined[piece] = into
        sizes[into] += size
        for channel in sums:
            channel[into] += channel[piece]
        for other in neighbours[piece]:
            neighbours[other].remove(piece)
            neighbours[other].add(into)
        neighbours[into] |= neighbours[piece]
        neighbours[into].remove(into)
        heapq.heappush(queue, (sizes[into], into))
    roots = np.array(joined)
    while (roots != roots[roots]).any():
        roots = roots[roots]
    return np.unique(roots, return_inverse=True)[1][pieces].astype(np.int32)
