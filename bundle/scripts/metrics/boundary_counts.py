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
Boundary counts of one image: how many boundary pixels of prediction and truth there are at each threshold, and how
many of them find a partner. The first layer of `BoundaryFMeasure`; `boundary.py` turns counts into ODS, OIS and AP.

Definition: ``evaluation_bdry_image`` of the Berkeley benchmark (Arbelaez, Maire, Fowlkes and Malik, "Contour detection
and hierarchical image segmentation", TPAMI 33(5), 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from monai.config import NdarrayOrTensor

from scripts.metrics.pair import check_pair

# What is compiled is imported where it is needed: Numba's start is paid for at the first image, not by every program.
if TYPE_CHECKING:
    from scripts.metrics.matching import Neighbours

__all__ = ["MODES", "boundary_thresholds", "check_options", "compute_boundary_counts"]

MODES = ("region", "boundary")


def boundary_thresholds(thresholds: int | Sequence[float]) -> np.ndarray:
    """
    Thresholds of the benchmark.

    Args:
        thresholds: a number n, for the n equidistant ones 1/(n+1) .. n/(n+1), or the thresholds themselves.

    Returns:
        float64 (K,), increasing.

    Raises:
        ValueError: when there is none, they do not increase, or one is outside (0, 1].
    """
    if isinstance(thresholds, Integral):
        if thresholds < 1:
            raise ValueError(f"thresholds must be at least 1, got {thresholds}.")
        # linspace, since the reference's differ from k/(n+1) in the last bit, and 8-bit maps have values that equal it
        edge = 1 / (thresholds + 1)
        return np.linspace(edge, 1 - edge, thresholds) if thresholds > 1 else np.array([edge])
    values = np.asarray(thresholds, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not (values[0] > 0 and values[-1] <= 1 and np.all(np.diff(values) > 0)):
        raise ValueError(f"thresholds must increase within (0, 1], got {list(np.ravel(values))}.")
    return values


def check_options(max_distance: float, mode: str) -> None:
    """Raise a ValueError for a `max_distance` or `mode` that `compute_boundary_counts` does not know."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if not 0 <= max_distance <= 1:
        raise ValueError(f"max_distance must be a fraction of the diagonal, 0..1, got {max_distance}.")


def _stencil_range(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Minimum and maximum over each pixel and its right, lower and lower-right neighbour; the last row and column repeat.

    A pixel is on the boundary of a mask where they differ (``seg2bdry`` 'imageSize'), and on that of {labels > k} where
    minimum <= k < maximum.
    """
    padded = np.pad(labels, ((0, 1), (0, 1)), mode="edge")
    corners = (padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:])
    return np.minimum.reduce(corners), np.maximum.reduce(corners)


def _truth_boundaries(truth: np.ndarray, mode: str) -> list[np.ndarray]:
    """One binary map an annotator: his own in mode 'boundary', the thinned boundary of his mask in mode 'region'."""
    from scripts.metrics.thinning import thin

    if mode == "boundary":
        return list(truth)
    return [thin(np.not_equal(*_stencil_range(mask))) for mask in truth]


def _boundary_pixels(probability: np.ndarray, thresholds: np.ndarray, mode: str, pad: int) -> Iterator[np.ndarray]:
    """
    Pixels of the prediction's boundary before thinning, at one threshold after the other.

    Only the index of the last threshold that a probability reaches matters. With it, every pixel is in the boundary for
    one run of thresholds, and the boundary at one threshold is that of the threshold before but for a few pixels.

    Yields:
        int64 (n,), flat indices in the image padded by `pad`; the same object again where nothing changes.
    """
    levels = np.searchsorted(thresholds, probability, side="right").astype(np.int32)
    lower, upper = _stencil_range(levels) if mode == "region" else (np.zeros_like(levels), levels)
    lower, upper = (np.pad(bound, pad).ravel() for bound in (lower, upper))
    pixels = np.flatnonzero(lower < upper)
    pixels = pixels[np.argsort(lower[pixels], kind="stable")]
    starts = np.searchsorted(lower[pixels], np.arange(len(thresholds) + 1))
    current = pixels[:0]
    for k in range(len(thresholds)):
        staying = current[upper[current] > k]
        entering = pixels[starts[k] : starts[k + 1]]
        if len(entering) or len(staying) < len(current):
            current = np.concatenate([staying, entering])
        yield current


def _matcher(annotators: list[Neighbours]) -> Callable[[np.ndarray], tuple[int, int]]:
    """Function from the pixels of a prediction to the number of truth pixels, and of its own, that find a partner."""
    from scripts.metrics.matching import MaximumMatching
    from scripts.metrics.nearest_matching import nearest_matching

    def match_nearest(pixels: np.ndarray) -> tuple[int, int]:
        matched = np.stack([nearest_matching(pixels, annotator) >= 0 for annotator in annotators])
        return int(matched.sum()), int(matched.any(axis=0).sum())

    if len(annotators) > 1:
        return match_nearest
    maximum_matching = MaximumMatching(annotators[0])
    return lambda pixels: (maximum_matching(pixels),) * 2


def compute_boundary_counts(
    y_pred: NdarrayOrTensor,
    y: NdarrayOrTensor,
    thresholds: int | Sequence[float] = 99,
    max_distance: float = 0.0075,
    mode: str = "region",
) -> np.ndarray:
    """
    Boundary pixels of one image at each threshold, and those matched one-to-one within a tolerance.

    In mode 'region' `y_pred` is the probability of a region and `y` its mask. The boundary of {y_pred >= t}, and that
    of the mask, are the pixels that differ from their right, lower or lower-right neighbour, thinned: where a region
    touches the image's frame there is no boundary, so that a full mask, like an empty one, has none.
    In mode 'boundary' `y_pred` is a soft boundary map, of which {y_pred >= t} is thinned, and `y` the annotators'
    boundary maps, taken as they are.

    With one annotator the matching is a maximum one. With several, one of least total distance among the maximum
    ones is made with each; a predicted pixel is correct if it is matched in any, and the truth's counts are summed.

    Args:
        y_pred: (H, W) or (1, H, W), in 0..1 (up to 1e-3 outside is taken for rounding).
        y: (H, W) or (A, H, W), of one or A annotators, 0 or 1.
        thresholds: how many, or which, see `boundary_thresholds`.
        max_distance: tolerance as a fraction of the image's diagonal.
        mode: 'region' or 'boundary'.

    Returns:
        int64 (K, 4), for each threshold the matched and all boundary pixels of the truth, then the matched and all
        boundary pixels of the prediction: cntR, sumR, cntP, sumP of the reference.

    Raises:
        ValueError: when an argument is out of its range, the shapes do not fit, or there is a NaN.
    """
    check_options(max_distance, mode)
    from scripts.metrics.matching import neighbours_of, tolerance_offsets
    from scripts.metrics.thinning import thin_pixels

    probability, truth = check_pair(y_pred, y)
    levels = boundary_thresholds(thresholds)
    height, width = probability.shape
    offsets = tolerance_offsets(max_distance * np.sqrt(height * height + width * width))
    pad = max(1, int(np.abs(offsets).max()))  # 1 for the thinning, the rest for the tolerance
    stride, size = width + 2 * pad, (width + 2 * pad) * (height + 2 * pad)
    truths = [np.flatnonzero(np.pad(boundary, pad)) for boundary in _truth_boundaries(truth, mode)]
    match = _matcher([neighbours_of(pixels, offsets, stride, size) for pixels in truths])
    state, codes = np.zeros((2, size), dtype=np.uint8)

    counts = np.zeros((len(levels), 4), dtype=np.int64)
    counts[:, 1] = sum(len(pixels) for pixels in truths)
    previous = None
    for k, thick in enumerate(_boundary_pixels(probability, levels, mode, pad)):
        if thick is previous:
            counts[k] = counts[k - 1]
            continue
        previous = thick
        pixels = thin_pixels(thick, stride, state, codes)
        counts[k, [0, 2]], counts[k, 3] = match(pixels), len(pixels)
    return counts
