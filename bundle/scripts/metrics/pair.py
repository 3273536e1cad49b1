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

"""Prediction and truth of one image, checked: what the boundary and the pixel metric have in common."""

from __future__ import annotations

import numpy as np
import torch
from monai.config import NdarrayOrTensor

__all__ = ["check_pair"]

# A weighted mean of half-precision probabilities can end up this far outside 0..1 by rounding alone.
ROUNDING = 1e-3


def _as_maps(data: NdarrayOrTensor, name: str) -> np.ndarray:
    if isinstance(data, torch.Tensor):
        data = data.detach().to("cpu", torch.float64)  # NumPy has no bfloat16
    maps = np.asarray(data, dtype=np.float64)
    if maps.ndim == 2:
        maps = maps[None]
    if maps.ndim != 3 or maps.size == 0:
        raise ValueError(f"{name} must have shape (H, W) or (C, H, W) and pixels, got {tuple(data.shape)}.")
    if np.isnan(maps).any():
        raise ValueError(f"{name} contains NaN.")
    return maps


def check_pair(y_pred: NdarrayOrTensor, y: NdarrayOrTensor) -> tuple[np.ndarray, np.ndarray]:
    """
    Probability map and truth of one image as arrays.

    Args:
        y_pred: (H, W) or (1, H, W), in 0..1.
        y: (H, W) or (A, H, W), of one or A annotators, 0 or 1.

    Returns:
        float64 (H, W), and bool (A, H, W).

    Raises:
        ValueError: when shapes do not fit, or a value is NaN or outside its range.
    """
    probability, truth = _as_maps(y_pred, "y_pred"), _as_maps(y, "y")
    if len(probability) != 1:
        raise ValueError(f"y_pred must have one channel, got {len(probability)}.")
    if probability.shape[1:] != truth.shape[1:]:
        raise ValueError(f"y_pred and y must have the same size, got {probability.shape[1:]} and {truth.shape[1:]}.")
    low, high = probability.min(), probability.max()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(f"y_pred must be within 0..1, got {low:g}..{high:g}; apply a sigmoid, or divide by its range.")
    mask = truth > 0
    if not np.array_equal(mask, truth):
        raise ValueError(f"y must be 0 or 1, got values in {truth.min():g}..{truth.max():g}.")
    return probability[0], mask
