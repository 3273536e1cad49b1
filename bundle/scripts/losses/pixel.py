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
Losses that learn from pixel labels: what the fully supervised methods are trained by.

Shapes: a probability map is (B, M, H, W), M maps of B images, the truth (B, 1, H, W). Everything is computed in
float32, autocast or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.transforms.utils_morphological_ops import dilate, erode
from torch import nn

from scripts.losses.instances import check_regions
from scripts.runtime.errors import InputError

__all__ = ["ContourLoss", "PixelLoss", "contours"]


class PixelLoss(nn.Module):
    """
    Cross-entropy of every pixel, its mean over an image, summed over the maps.

    Args:
        weights: one for each map, the first being the network's answer; all 1 by default.
        reduction: ``"mean"`` over the images, or ``"none"`` for one value an image.

    Raises:
        InputError: for an unknown `reduction` or a weight below 0.

    Examples:
        >>> prediction, truth = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> PixelLoss()(prediction, None, truth)
        tensor(0.6931)
    """

    inputs = ("truth", "valid")  # of a batch, beside prediction and target

    def __init__(self, weights: Sequence[float] | None = None, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise InputError(f"reduction must be 'mean' or 'none', got '{reduction}'.")
        if weights is not None and min(weights) < 0:
            raise InputError(f"weights must be 0 or more, got {list(weights)}.")
        self.weights = weights
        self.reduction = reduction

    def targets(self, truth: torch.Tensor, maps: int) -> torch.Tensor:
        """What each of so many maps is compared with: from (B, 1, H, W) to (B, M, H, W)."""
        return truth.expand(-1, maps, -1, -1)

    def terms(
        self, prediction: torch.Tensor, truth: torch.Tensor | None, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross-entropy of each map, (B, M), its weight applied. Arguments and errors as `forward`."""
        maps = prediction.shape[1]
        if truth is None:
            raise InputError("pixel labels are needed to learn from them; give every positive image a 'mask'.")
        check_regions(prediction, truth=truth, valid=valid)
        if self.weights is not None and maps not in (1, len(self.weights)):
            raise ValueError(f"expected 1 or {len(self.weights)} maps, as there are weights, got {maps}.")
        device = prediction.device
        with torch.autocast(device.type, enabled=False):
            target = self.targets(truth.to(device).float(), maps)
            cost = F.binary_cross_entropy(prediction.float(), target, reduction="none")  # (B, M, H, W)
            counted = torch.ones_like(target[:, :1]) if valid is None else (valid.to(device) > 0).float()
            means = (cost * counted).sum(dim=(2, 3)) / counted.sum(dim=(2, 3)).clamp(min=1)
            return means if self.weights is None else means * torch.tensor(self.weights[:maps], device=device)

    def forward(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        truth: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            prediction: (B, M, H, W) in 0..1.
            target: the weak target, which every loss of the bundle is given and this one has no use for.
            truth: (B, 1, H, W), 0 or 1.
            valid: (B, 1, H, W), above 0 where a pixel belongs to the image, where images have been padded.

        Returns:
            A scalar for reduction ``"mean"``, (B,) for ``"none"``.

        Raises:
            ValueError: when the shapes or the number of weights don't fit; `InputError` when there is no truth.
        """
        total = self.terms(prediction, truth, valid).sum(dim=1)
        return total.mean() if self.reduction == "mean" else total


def contours(truth: torch.Tensor, width: int) -> torch.Tensor:
    """
    The pixels within so many pixels of a boundary, on both sides; the frame of the image is none.

    Args:
        truth: (B, 1, H, W), 0 or 1.
        width: 1 or more.

    Returns:
        (B, 1, H, W), 0 or 1.

    Examples:
        >>> contours(torch.tensor([[[[0.0, 0.0, 1.0, 1.0, 1.0]]]]), width=1)
        tensor([[[[0., 1., 1., 0., 0.]]]])
    """
    size = 2 * width + 1
    return dilate(truth, filter_size=size, pad_value=0.0) - erode(truth, filter_size=size, pad_value=1.0)


class ContourLoss(PixelLoss):
    """
    `PixelLoss` for a network whose second half of maps shows contours, as `DCAN` with its contour branch.

    Args:
        contour: False for a network without that half: `PixelLoss` as it is.
        width: of the contours, in pixels on either side of a boundary, see `contours`.
        weights, reduction: see `PixelLoss`.
    """

    def __init__(
        self, contour: bool = True, width: int = 2, weights: Sequence[float] | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__(weights, reduction)
        self.contour = contour
        self.width = width

    def targets(self, truth: torch.Tensor, maps: int) -> torch.Tensor:
        if not self.contour or maps == 1:  # one map is the answer alone, in evaluation
            return super().targets(truth, maps)
        both = torch.stack([truth, contours(truth, self.width)], dim=1)  # (B, 2, 1, H, W)
        return both.expand(-1, -1, maps // 2, -1, -1).flatten(1, 2)
