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
F-measure of boundaries: ODS, OIS, average precision and the precision-recall curve of the Berkeley benchmark.

Arbelaez, Maire, Fowlkes and Malik, "Contour detection and hierarchical image segmentation", TPAMI 33(5), 2011; the
ratios are those of its ``collect_eval_bdry``. The counts come from `boundary_counts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.config import NdarrayOrTensor

from scripts.metrics.boundary_counts import boundary_thresholds, check_options, compute_boundary_counts
from scripts.metrics.cumulative import CumulativeCounts
from scripts.metrics.pair import check_pair

__all__ = ["BoundaryFMeasure", "BoundaryScores", "compute_boundary_scores"]

STATISTICS = ("ods", "ois", "boundary_ap", "all")


class BoundaryScores(NamedTuple):
    """Boundary quality over a set of images; the arrays are float64 (K,), one value a threshold."""

    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    f_measure: np.ndarray
    ods: float  # best F at one threshold for all images
    ods_threshold: float  # where it is reached, possibly between two thresholds
    ods_recall: float
    ods_precision: float
    ois: float  # F when each image has its own best threshold
    boundary_ap: float  # area under the precision-recall curve


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where there is nothing: an empty prediction has precision 0, as in the reference."""
    return part / np.maximum(whole, 1)


def _f_measure(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    total = recall + precision
    return 2 * recall * precision / np.where(total > 0, total, 1)


def _recall_precision_f(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    recall, precision = _ratio(counts[..., 0], counts[..., 1]), _ratio(counts[..., 2], counts[..., 3])
    return recall, precision, _f_measure(recall, precision)


def _best_point(thresholds: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> tuple[float, float, float, float]:
    """F, threshold, recall and precision of the best point; as in the reference, 100 a step are tried."""
    weight = np.linspace(0, 1, 100)
    curve = np.stack([thresholds, recall, precision])[..., None]  # (3, K, 1)
    between = curve[:, 1:] * weight + curve[:, :-1] * (1 - weight)  # (3, K-1, 100)
    points = np.concatenate([curve[:, 0], between.reshape(3, -1)], axis=1)
    f = _f_measure(points[1], points[2])
    best = int(np.argmax(f))
    return float(f[best]), *(float(value) for value in points[:, best])


def _average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the curve in steps of 0.01 of recall, 0 outside the recalls reached, as in the reference."""
    recall, first = np.unique(recall, return_index=True)
    if len(recall) < 2:
        return 0.0
    return float(np.interp(np.arange(101) / 100, recall, precision[first], left=0, right=0).sum() * 0.01)


def _pool_counts(counts: np.ndarray) -> np.ndarray:
    """(N, K, 4) to (K + 1, 4): sums over images at each threshold, then with each image at its own best one."""
    best = _recall_precision_f(counts)[2].argmax(axis=1)
    return np.concatenate([counts.sum(axis=0), counts[np.arange(len(counts)), best].sum(axis=0, keepdims=True)])


def _pooled_scores(pooled: np.ndarray, thresholds: np.ndarray) -> BoundaryScores:
    recall, precision, f = _recall_precision_f(pooled)
    curve = thresholds, recall[:-1], precision[:-1]
    if pooled[0, 1] == 0:
        return BoundaryScores(*curve, f[:-1], *[float("nan")] * 6)
    return BoundaryScores(*curve, f[:-1], *_best_point(*curve), float(f[-1]), _average_precision(*curve[1:]))


def compute_boundary_scores(
    counts: NdarrayOrTensor | Sequence[np.ndarray], thresholds: int | Sequence[float] = 99
) -> BoundaryScores:
    """
    ODS, OIS, AP and the precision-recall curve from the counts of one or more images.

    Recall, precision and F-measure are 0 where their denominator is. Only if the truth has no boundary pixel in any
    image is nothing defined, and ODS, OIS and AP are NaN.

    ODS is the best F over thresholds of the counts summed over images; between two thresholds, recall and precision are
    interpolated linearly, as the reference does. OIS sums each image's counts at its own best threshold (the first, if
    several are). AP is the area under the curve of interpolated precision over recall.

    Args:
        counts: int (K, 4) of one image, or (N, K, 4) of N, from `compute_boundary_counts`.
        thresholds: as given to it.

    Raises:
        ValueError: when the shape of `counts` does not fit the thresholds.
    """
    levels = boundary_thresholds(thresholds)
    array = np.asarray(counts)
    if array.shape[-2:] != (len(levels), 4) or array.ndim not in (2, 3):
        raise ValueError(f"counts must have shape (N, {len(levels)}, 4) or ({len(levels)}, 4), got {array.shape}.")
    return _pooled_scores(_pool_counts(array.reshape(-1, len(levels), 4)), levels)


class BoundaryFMeasure(CumulativeCounts):
    """
    Boundary F-measure as a MONAI metric: ODS, OIS, or AP over all images seen.

    Images without a positive pixel in the truth do not count in mode 'region': the paper reports ODS over cancer
    images. A positive image whose mask has no boundary (it fills the frame) does; whatever is predicted in it is wrong.
    In mode 'boundary' every image counts, as in the benchmark.

    Inputs are (B, 1, H, W) probabilities and (B, A, H, W) truth of A annotators, 0 or 1, or lists of (1, H, W) and
    (A, H, W), tensors or NumPy arrays; see `compute_boundary_counts` for the definition, and for the errors raised.
    A call returns the counts of the batch, int64 (B, K, 4), all zero for an image that does not count.

    The state is the counts' sum over images, so in a config give `IgniteMetricHandler` ``save_details: false``.

    Args:
        statistic: what `aggregate` returns: ``"ods"``, ``"ois"``, ``"boundary_ap"``, or ``"all"`` for the three in a
            dictionary, which Ignite enters into its metrics one by one, from one matching instead of three.
        thresholds: how many, or which, see `boundary_thresholds`.
        max_distance: tolerance as a fraction of the image's diagonal.
        mode: 'region' for the probability of a region and its mask, 'boundary' for a soft boundary map and boundaries.

    Raises:
        ValueError: for an argument out of its range.

    Examples:
        >>> truth = np.zeros((1, 1, 20, 20))
        >>> truth[..., 5:15, 5:15] = 1
        >>> metric = BoundaryFMeasure("ods")
        >>> counts = metric(0.8 * truth, truth)
        >>> metric.aggregate()
        tensor(1., dtype=torch.float64)
    """

    def __init__(
        self,
        statistic: str = "ods",
        thresholds: int | Sequence[float] = 99,
        max_distance: float = 0.0075,
        mode: str = "region",
    ) -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got '{statistic}'.")
        check_options(max_distance, mode)
        self.statistic = statistic
        self.thresholds = boundary_thresholds(thresholds)
        self.max_distance = max_distance
        self.mode = mode
        super().__init__(shape=(len(self.thresholds) + 1, 4))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._counts(*pair) for pair in zip(y_pred, y, strict=True)])

    def _counts(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.mode == "region" and not (y != 0).any():
            check_pair(y_pred, y)
            return torch.zeros((len(self.thresholds), 4), dtype=torch.int64)
        return torch.from_numpy(compute_boundary_counts(y_pred, y, self.thresholds, self.max_distance, self.mode))

    def _pool(self, counts: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_pool_counts(np.asarray(counts)))

    def scores(self) -> BoundaryScores:
        """All numbers and the precision-recall curve over the images of all processes."""
        return _pooled_scores(self.get_buffer().numpy(), self.thresholds)

    def aggregate(self) -> torch.Tensor | dict[str, float]:
        """The statistic over the images of all processes; NaN when no truth had a boundary pixel."""
        scores = self.scores()
        if self.statistic == "all":
            return {name: getattr(scores, name) for name in STATISTICS[:-1]}
        return torch.tensor(getattr(scores, self.statistic), dtype=torch.float64)
