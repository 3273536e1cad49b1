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

"""Smoothing of probability maps that stops at the edges of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["guided_filter"]

FLAT = 0.06  # of an image normalised by ImageNet's deviation: 0.003 of one in 0..1


def guided_filter(guide: torch.Tensor, probability: torch.Tensor, radius: int, flat: float = FLAT) -> torch.Tensor:
    """
    The guided filter (He, Sun and Tang 2013, doi:10.1109/TPAMI.2012.213), with one channel as its guide.

    In each square window the map is replaced by the linear function of the guide that is nearest to it, its slope held
    down by `flat`; a pixel gets the mean over the windows that it is in. At the image's borders windows are cut off.

    Args:
        guide: (B, 1, H, W), normalised by ImageNet's mean and standard deviation.
        probability: (B, 1, H, W) in 0..1.
        radius: of the windows in pixels, which are of 2 radius + 1; at least 1.
        flat: variance of the guide; where it has less, there is no edge.

    Returns:
        (B, 1, H, W) float32 in 0..1.
    """
    image, value = guide.float(), probability.float()
    mean, mean_value = _window_mean(image, radius), _window_mean(value, radius)
    covariance = _window_mean(image * value, radius) - mean * mean_value
    variance = _window_mean(image * image, radius) - mean * mean
    slope = covariance / (variance + flat)
    offset = mean_value - slope * mean
    return (_window_mean(slope, radius) * image + _window_mean(offset, radius)).clamp(0.0, 1.0)


def _window_mean(value: torch.Tensor, radius: int) -> torch.Tensor:
    """Of the pixels of a window that lie in the image, (B, 1, H, W)."""
    return F.avg_pool2d(value, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
