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
Colour and texture of every patch of an image, by the definitions of scikit-image.

Each feature is a function of sums over the patch of maps that the whole image has once, and such a sum is four values
of the map's integral image. So a patch costs the same whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import numpy as np
from skimage.color import rgb2gray, rgb2hed, rgb2lab
from skimage.feature import local_binary_pattern

from scripts.runtime.errors import InputError

__all__ = ["PatchFeatures"]

CHANNELS = ("lab_lightness", "lab_a", "lab_b", "haematoxylin", "eosin", "dab")
LBP_CODES = 10  # of 8 neighbours: 0..8 for a uniform pattern of so many ones, and 9 for all others
DISTANCES = (1, 4)
LEVEL_WIDTH = 8  # 32 levels of grey
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "correlation")


class PatchFeatures:
    """
    Features of the square patches on a regular grid over an image.

    They are mean and standard deviation of the CIE Lab channels and of the stains (`skimage.color.rgb2hed`); how large
    a fraction of the pixels has each uniform local binary pattern (8 neighbours at radius 1; the patterns are those of
    the whole picture, so those on a patch's border see one pixel beyond it); and contrast, dissimilarity, homogeneity
    and correlation of the grey-level co-occurrence matrix of the patch (symmetric, 32 levels) at distances 1 and 4,
    averaged over right and up.

    Args:
        patch_size: side of a patch in pixels, more than 4.
        stride: pixels between neighbouring patches.

    Raises:
        InputError: for another size or stride.
    """

    def __init__(self, patch_size: int = 64, stride: int = 4) -> None:
        for name, value, least in (("patch_size", patch_size, max(DISTANCES) + 1), ("stride", stride, 1)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
        self.patch_size = int(patch_size)
        self.stride = int(stride)
        self.names = [f"{channel}_{statistic}" for channel in CHANNELS for statistic in ("mean", "std")]
        self.names += [f"lbp_{code}" for code in range(LBP_CODES)]
        self.names += [f"{name}_{distance}" for distance in DISTANCES for name in PROPERTIES]

    def grid(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Where the patches of an image of this size lie: rows and columns of their top left pixels.

        Raises:
            InputError: when not a single patch fits.
        """
        if min(height, width) < self.patch_size:
            raise InputError(
                f"an image of {height} x {width} pixels is smaller than a patch of {self.patch_size} x "
                f"{self.patch_size}; give a larger spatial_size, or a smaller patch_size."
            )
        rows, columns = (np.arange(0, length - self.patch_size + 1, self.stride) for length in (height, width))
        return rows, columns

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """
        Args:
            image: (3, H, W) RGB in 0..1.

        Returns:
            (rows, columns, features) float32, the patches as `grid` has them and the features as `names` has them.

        Raises:
            ValueError: for another shape; `InputError` where the image is smaller than a patch.
        """
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected an image of shape (3, H, W), got {tuple(image.shape)}")
        rows, columns = self.grid(*image.shape[1:])
        picture = np.moveaxis(np.asarray(image, dtype=np.float64), 0, -1)
        result = np.empty((len(rows), len(columns), len(self.names)), dtype=np.float32)
        for index, feature in enumerate(self._features(picture, rows, columns)):
            result[:, :, index] = feature
        return result

    def _features(self, picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Iterator[np.ndarray]:
        """The features (rows, columns) of a picture (H, W, 3), one after the other."""
        size = self.patch_size
        area = size * size
        for channels in (rgb2lab(picture), rgb2hed(picture)):
            for channel in np.moveaxis(channels, -1, 0):
                centre = channel.mean()  # near to the patches' means, or the variance would cancel
                deviation = channel - centre
                mean = _window_sums(deviation, rows, columns, size, size) / area
                square = _window_sums(deviation**2, rows, columns, size, size) / area
                yield centre + mean
                yield np.sqrt(np.maximum(square - mean**2, 0.0))
        grey = np.round(rgb2gray(picture) * 255).astype(np.uint8)
        codes = local_binary_pattern(grey, 8, 1, "uniform").astype(np.uint8)
        for code in range(LBP_CODES):
            yield _window_sums(codes == code, rows, columns, size, size) / area
        levels = (grey // LEVEL_WIDTH).astype(np.int32)
        for distance in DISTANCES:
            shorter = size - distance  # a pair lies in the patch when both of its pixels do
            right = _cooccurrence(levels[:, :-distance], levels[:, distance:], rows, columns, size, shorter)
            up = _cooccurrence(levels[distance:], levels[:-distance], rows, columns, shorter, size)
            yield from (0.5 * (x + y) for x, y in zip(right, up, strict=True))


def _window_sums(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sums (rows, columns) of a map (H, W) over windows of a size, in float64, or exactly where the map is whole."""
    kind = np.float64 if np.issubdtype(values.dtype, np.floating) else np.int64
    down = np.zeros((values.shape[0] + 1, values.shape[1]), dtype=kind)
    np.cumsum(values, axis=0, out=down[1:])
    strips = down[rows + height] - down[rows]  # (rows, W)
    along = np.zeros((len(rows), values.shape[1] + 1), dtype=kind)
    np.cumsum(strips, axis=1, out=along[:, 1:])
    return along[:, columns + width] - along[:, columns]


def _cooccurrence(
    a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray, height: int, width: int
) -> list[np.ndarray]:
    """
    The `PROPERTIES` of the matrices of all patches, from the levels a and b of the two pixels of each pair.

    The symmetric matrix counts each pair both ways. So both of its margins have the mean S / 2n and the variance
    (2n Q - S^2) / 4n^2, for n pairs, S the sum of a + b and Q that of a^2 + b^2. The covariance is the same but for Q,
    which is less by the sum of (a - b)^2. All of these are integers, so a patch of one level is told for certain.
    """
    pairs = height * width
    difference = np.abs(a - b)

    def total(values: np.ndarray) -> np.ndarray:
        return _window_sums(values, rows, columns, height, width)

    squares = total(difference**2)
    scatter = 2 * pairs * total(a**2 + b**2) - total(a + b) ** 2
    flat = scatter == 0
    correlation = 1.0 - np.where(flat, 0.0, 2 * pairs * squares / np.where(flat, 1, scatter))
    return [squares / pairs, total(difference) / pairs, total(1.0 / (1 + difference**2)) / pairs, correlation]
