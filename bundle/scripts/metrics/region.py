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

"""F-measure of regions as the paper defines it (Jia et al. 2017, section V-B.3)."""

from __future__ import annotations

import numpy as np
import torch
from monai.config import NdarrayOrTensor

from scripts.metrics.cumulative import CumulativeCounts

__all__ = ["RegionFMeasure", "compute_region_f_measure", "f_measure", "intersection_over_union"]

STATISTICS = ("f_pos", "f_neg", "f_mean", "f_known")
# F is added up as an integer, since sums of integers don't depend on the order, and so not on the number of processes.
UNITS = 2**40


def _as_sets(prediction: NdarrayOrTensor, truth: NdarrayOrTensor) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of 0 and 1 as boolean arrays."""
    arrays = [np.asarray(m.detach().cpu() if isinstance(m, torch.Tensor) else m) for m in (prediction, truth)]
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(f"prediction and truth must have one shape, got {arrays[0].shape} and {arrays[1].shape}.")
    for name, array in zip(("prediction", "truth"), arrays, strict=True):
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"{name} must be 0 or 1 everywhere (NaN is neither).")
    return tuple(array.astype(bool) for array in arrays)


def f_measure(prediction: NdarrayOrTensor, truth: NdarrayOrTensor) -> float:
    """
    F-measure of two sets of pixels, 2 PR / (P + R), which is their Dice coefficient 2|H and G| / (|H| + |G|).

    Args:
        prediction: the set H, an array or tensor of 0 and 1 of any shape.
        truth: the set G, of the same shape.

    Returns:
        0..1; 1 when both sets are empty, 0 when only one is.

    Raises:
        ValueError: when the shapes differ, or a value is not 0 or 1.

    Examples:
        >>> f_measure(np.array([1, 1, 0]), np.array([1, 0, 0]))  # 2 x 1 / (2 + 1)
        0.6666666666666666
    """
    predicted, true = _as_sets(prediction, truth)
    total = int(predicted.sum()) + int(true.sum())
    return 2.0 * int((predicted & true).sum()) / total if total else 1.0


def intersection_over_union(prediction: NdarrayOrTensor, truth: NdarrayOrTensor) -> float:
    """|H and G| / |H or G|, 1 when both are empty; arguments and errors as `f_measure`."""
    predicted, true = _as_sets(prediction, truth)
    union = int((predicted | true).sum())
    return int((predicted & true).sum()) / union if union else 1.0


def compute_region_f_measure(prediction: NdarrayOrTensor, truth: NdarrayOrTensor) -> tuple[float, bool]:
    """
    F-measure of one image as the paper defines it.

    For an image with a positive region, prediction and truth are the positive pixels. For one without, the
    prediction is what was predicted negative, and the truth is the whole image.

    Args:
        prediction: (H, W) or (1, H, W), 0 or 1.
        truth: same shape.

    Returns:
        The F-measure, and whether the image is a positive one.

    Raises:
        ValueError: as `f_measure`.
    """
    predicted, true = _as_sets(prediction, truth)
    positive = bool(true.any())
    return (f_measure(predicted, true) if positive else f_measure(~predicted, ~true)), positive


class RegionFMeasure(CumulativeCounts):
    """
    F-measure per image, averaged over the images of a class.

    Inputs are (B, 1, H, W), 0 or 1, or lists of (1, H, W), tensors or NumPy arrays. A call returns the F-measure of
    each image and 1 for a positive one, (B, 2). The state is sums over images, so in a config give
    `IgniteMetricHandler` ``save_details: false``.

    Args:
        statistic: what `aggregate` returns: ``"f_pos"`` the mean over positive images, ``"f_neg"`` over negative
            ones, ``"f_mean"`` the mean of the two (F+ alone would reward marking everything), ``"f_known"`` that mean,
            or the one of the two that is known where images of the other class are missing.

    Raises:
        ValueError: for another statistic.

    Examples:
        >>> metric = RegionFMeasure("f_mean")
        >>> scores = metric(torch.tensor([[[[1, 1, 0]]], [[[0, 1, 0]]]]), torch.tensor([[[[1, 0, 0]]], [[[0, 0, 0]]]]))
        >>> metric.aggregate()  # the mean of 2/3 and 4/5
        tensor(0.7333, dtype=torch.float64)
    """

    def __init__(self, statistic: str = "f_mean") -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got '{statistic}'.")
        self.statistic = statistic
        super().__init__(shape=(2, 2))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        scores = [compute_region_f_measure(*pair) for pair in zip(y_pred, y, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    def _pool(self, counts: torch.Tensor) -> torch.Tensor:
        """(B, 2) scores to int64 (2, 2): for negative and positive images, the sum of F in units and their number."""
        f, positive = (counts[:, 0] * UNITS).round().long(), counts[:, 1] > 0.5
        return torch.stack([torch.stack([f[chosen].sum(), chosen.sum()]) for chosen in (~positive, positive)])

    def aggregate(self) -> torch.Tensor:
        """The statistic over the images of all processes; NaN when there was no image of a class it needs."""
        sums, images = self.get_buffer().double().unbind(dim=1)
        f_neg, f_pos = sums / UNITS / images  # 0 / 0 is NaN
        known = torch.stack([f_pos, f_neg]).nanmean()
        return {"f_pos": f_pos, "f_neg": f_neg, "f_mean": (f_pos + f_neg) / 2, "f_known": known}[self.statistic]
