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
Average precision of pixels: the precision-recall curve over every pixel of every image, at all thresholds.

Choe et al., "Evaluating weakly supervised object localization methods right", CVPR 2020, who call it PxAP.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from monai.config import NdarrayOrTensor

from scripts.metrics.cumulative import CumulativeCounts
from scripts.metrics.pair import check_pair

__all__ = ["PixelAveragePrecision", "PixelCurve", "compute_pixel_average_precision", "compute_pixel_counts"]

# Bins are equal steps of the logit, since a trained network's probabilities crowd at 0 and 1, where equal steps of the
# probability would take thousands of different pixels for one: 20 is beyond what float32 can tell from 1.
N_BINS = 65536
MAX_LOGIT = 20.0


class PixelCurve(NamedTuple):
    """Precision-recall curve of pixels, float64 (M,), at the M thresholds that are some pixel's bin, highest first."""

    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def _bins(probability: np.ndarray) -> np.ndarray:
    probability = np.clip(probability, 0, 1)
    with np.errstate(divide="ignore"):  # 0 and 1 have infinite logits, and the outermost bins
        logit = np.log(probability) - np.log1p(-probability)
    return np.rint((np.clip(logit, -MAX_LOGIT, MAX_LOGIT) / MAX_LOGIT + 1) / 2 * (N_BINS - 1)).astype(np.int64)


def _probability_of(bins: np.ndarray) -> np.ndarray:
    """Probability in the middle of a bin; the outermost stand for 0 and 1."""
    probability = 1 / (1 + np.exp(-(2 * bins / (N_BINS - 1) - 1) * MAX_LOGIT))
    return np.where(bins == 0, 0.0, np.where(bins == N_BINS - 1, 1.0, probability))


def compute_pixel_counts(y_pred: NdarrayOrTensor, y: NdarrayOrTensor) -> np.ndarray:
    """
    Histograms of the probabilities of one image.

    Args:
        y_pred: (H, W) or (1, H, W), in 0..1; what rounding left outside is moved to the bounds.
        y: same shape, 0 or 1.

    Returns:
        int64 (2, 65536): for each bin, the number of negative and of positive pixels. Bins are equal steps of
        log(p / (1 - p)) from -20 to 20; beyond is in the first and last.

    Raises:
        ValueError: when the shapes do not fit, or a value is NaN or outside its range.
    """
    probability, truth = check_pair(y_pred, y)
    if len(truth) != 1:
        raise ValueError(f"y must have one channel, got {len(truth)}.")
    bins = _bins(probability) + N_BINS * truth[0]
    return np.bincount(bins.ravel(), minlength=2 * N_BINS).reshape(2, N_BINS)


def pixel_curve(counts: NdarrayOrTensor) -> PixelCurve:
    """
    Precision-recall curve from histograms, (2, 65536), of one image or summed over several.

    Pixels equal to the threshold are predicted positive. Recall is NaN when there is no positive pixel.
    """
    negatives, positives = np.asarray(counts)
    used = np.flatnonzero(negatives + positives)[::-1]
    true, false = np.cumsum(positives[used]), np.cumsum(negatives[used])
    recall = true / true[-1] if len(used) and true[-1] else np.full(len(used), np.nan)
    return PixelCurve(_probability_of(used), recall, true / (true + false))


def compute_pixel_average_precision(counts: NdarrayOrTensor) -> float:
    """
    Average precision, the sum over thresholds of (R_n - R_(n-1)) P_n, from histograms of probabilities.

    Pixels of one bin are taken for equal; bins are 6e-4 of the logit wide, so 1.5e-4 in the middle and 6e-4 of p, or of
    1 - p, at the ends. 8-bit maps have at most one value a bin, and their AP is exact. For others it is right to about
    1e-4, as long as few logits are beyond 20, where all are one bin.

    Args:
        counts: int (2, 65536), of `compute_pixel_counts`, of one image or summed over several.

    Returns:
        0..1; NaN when there is no positive pixel.
    """
    curve = pixel_curve(counts)
    if len(curve.recall) == 0 or np.isnan(curve.recall[0]):
        return float("nan")
    return float((np.diff(curve.recall, prepend=0.0) * curve.precision).sum())


class PixelAveragePrecision(CumulativeCounts):
    """
    Average precision over all pixels of all images, positive and negative ones, as a MONAI metric.

    Inputs are (B, 1, H, W) probabilities and masks of 0 and 1, or lists of (1, H, W), tensors or NumPy arrays; the
    errors are those of `compute_pixel_counts`. A call returns the histograms of the batch, int64 (1, 2, 65536). The
    state is a megabyte, their sum over images, so in a config give `IgniteMetricHandler` ``save_details: false``.

    Examples:
        >>> metric = PixelAveragePrecision()
        >>> counts = metric(torch.tensor([[[[0.9, 0.8, 0.1]]]]), torch.tensor([[[[1, 0, 1]]]]))
        >>> metric.aggregate()  # half at a precision of 1, half at 2/3
        tensor(0.8333, dtype=torch.float64)
    """

    def __init__(self) -> None:
        super().__init__(shape=(2, N_BINS))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        counts = sum(compute_pixel_counts(*pair) for pair in zip(y_pred, y, strict=True))
        return torch.from_numpy(counts)[None]

    def _compute_list(self, y_pred: list[torch.Tensor], y: list[torch.Tensor]) -> torch.Tensor:
        return self._compute_tensor(y_pred, y)

    def curve(self) -> PixelCurve:
        """Precision-recall curve over the images of all processes."""
        return pixel_curve(self.get_buffer())

    def aggregate(self) -> torch.Tensor:
        """Average precision over the images of all processes; NaN when no pixel was positive."""
        return torch.tensor(compute_pixel_average_precision(self.get_buffer()), dtype=torch.float64)
