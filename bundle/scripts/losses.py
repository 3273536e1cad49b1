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
The weakly supervised loss of CDWS-MIL (Jia et al. 2017, equations 1 to 12).

Shapes: a probability map is (B, M, H, W), M maps of B images; a weak target is (B, 2), the columns being the label
Y in {0, 1} and the rough area a in 0..1, NaN where it is not known. Everything is computed in float32, autocast or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["CDWSLoss", "area_loss", "generalized_mean", "log1mexp", "log_generalized_mean", "mil_loss"]

# Bounds of p. Below 1e-30 the gradient 1/p of a positive bag would overflow float32 when neighbouring pixels' are
# summed; above is the largest float32 under 1, which keeps log(1 - p) finite.
P_MIN = 1e-30
P_MAX = 1.0 - 2.0**-24
CONSTRAINTS = ("one_sided", "two_sided")


def log_generalized_mean(probability: torch.Tensor, r: float = 4.0) -> torch.Tensor:
    """
    Logarithm of the generalized mean (1/N sum p^r)^(1/r) of each map, equation (2).

    It is taken in the log domain with the largest p factored out, so that neither p^r nor a sum of many terms
    loses anything: a bag of 10^7 equal probabilities has exactly their value. p is clamped to [1e-30, 1 - 2^-24];
    nothing is added inside the root, which would put a floor under the result.

    Args:
        probability: (B, M, ...) in 0..1, any number of instances in the trailing axes.
        r: sharpness, > 0 and finite; 1 is the mean, and the larger the nearer the maximum.

    Returns:
        (B, M), at most 0; finite, with a finite gradient, for every p in 0..1.
    """
    log_p = probability.float().clamp(P_MIN, P_MAX).log().flatten(2)  # (B, M, N)
    peak = log_p.amax(dim=2, keepdim=True).detach()
    return peak.squeeze(2) + ((log_p - peak) * r).exp().mean(dim=2).log() / r


def generalized_mean(probability: torch.Tensor, r: float = 4.0) -> torch.Tensor:
    """Image-level probability of each map, equation (2): (B, M, ...) to (B, M)."""
    return log_generalized_mean(probability, r).exp()


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0 without cancellation (Maechler 2012): log(-expm1(x)) near 0, else log1p(-exp(x))."""
    near = x > -math.log(2.0)
    # Each branch sees a harmless argument where the other one is taken, or its infinite gradient would turn into NaN.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def mil_loss(probability: torch.Tensor, label: torch.Tensor, r: float = 4.0) -> torch.Tensor:
    """
    Cross-entropy between the pooled probability and the image label, equations (1) and (4).

    Args:
        probability: (B, M, ...) in 0..1.
        label: (B,), 0 or 1.
        r: sharpness of the generalized mean.

    Returns:
        (B, M): -log Y^ for a positive image, -log(1 - Y^) for a negative one; finite for every p in 0..1.
    """
    log_positive = log_generalized_mean(probability, r)
    # rounding may lift a bag of ones to 0, where log(1 - 1) has no value
    log_negative = log1mexp(log_positive.clamp(max=math.log(P_MAX)))
    return -torch.where(label.view(-1, 1) > 0.5, log_positive, log_negative)


def area_loss(
    probability: torch.Tensor,
    label: torch.Tensor,
    area: torch.Tensor,
    constraint: str = "one_sided",
    tolerance: float = 0.05,
) -> torch.Tensor:
    """
    Area constraint on the mean probability v of each positive image's maps, equations (7) and (8).

    ``"one_sided"``, the paper's: I(Y = 1 and v > a) (v - a)^2. It never asks for more, and once a map is small the MIL
    loss asks for little, so that large regions come out too small. ``"two_sided"``, an extension: the squared
    distance of v from [a - tolerance, a + tolerance].

    Args:
        probability: (B, M, ...) in 0..1.
        label: (B,), 0 or 1.
        area: (B,), rough area of the positive region as a fraction of the image; NaN where it is not known.
        constraint: ``"one_sided"`` or ``"two_sided"``.
        tolerance: for ``"two_sided"``; half the step of the annotation.

    Returns:
        (B, M); 0 for negative images and for images without an area.

    Raises:
        ValueError: for another constraint.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got '{constraint}'.")
    excess = probability.float().flatten(2).mean(dim=2) - area.view(-1, 1)
    distance = (excess.abs() - tolerance if constraint == "two_sided" else excess).clamp(min=0)
    constrained = (label.view(-1, 1) > 0.5) & ~area.view(-1, 1).isnan()
    # the NaN must go before the square, whose gradient it would get into
    return torch.where(constrained, distance, 0.0).square()


class CDWSLoss(nn.Module):
    """
    MIL loss and area constraint of every side output and of the fusion, summed, equations (6), (9), (11) and (12).

    Args:
        side_area_weights: eta_t of each side; 0 leaves the constraint out.
        fusion_area_weight: eta_fuse.
        constraint: ``"one_sided"`` (the paper's) or ``"two_sided"``, see `area_loss`.
        tolerance: of ``"two_sided"``.
        r: sharpness of the generalized mean.
        reduction: ``"mean"`` over the images, or ``"none"`` for one value an image. The paper sums over the
            images; the mean makes the loss independent of their number.

    Raises:
        ValueError: for an unknown `reduction`, a weight below 0 or an `r` that is not above 0 and finite.
    """

    def __init__(
        self,
        side_area_weights: Sequence[float] = (2.5, 5.0, 10.0),
        fusion_area_weight: float = 10.0,
        constraint: str = "one_sided",
        tolerance: float = 0.05,
        r: float = 4.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        area_weights = (fusion_area_weight, *side_area_weights)
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got '{reduction}'.")
        if constraint not in CONSTRAINTS:
            raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got '{constraint}'.")
        if min(area_weights) < 0 or not 0 < r < math.inf:
            raise ValueError(f"area weights must be >= 0 and r > 0 and finite, got {list(area_weights)} and {r}.")
        self.names = ("fusion", *(f"side{t}" for t in range(1, len(area_weights))))
        self.constraint = constraint
        self.tolerance = tolerance
        self.r = r
        self.reduction = reduction
        self.area_weights = area_weights  # not a buffer: a config doesn't move the loss to the network's device

    def terms(self, prediction: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        The loss in its parts, image by image.

        Args:
            prediction: (B, 1 + T, H, W) in 0..1, fused first, as the network gives it in training; or the fused map
                alone, (B, 1, H, W), as in evaluation: then the sides' terms are left out.
            target: (B, 2), label and area.

        Returns:
            ``mil`` and ``area``, each (B, M); the area's with its weights applied.

        Raises:
            ValueError: when the shapes don't fit each other or the number of weights.
        """
        maps = prediction.shape[1]
        if maps not in (1, len(self.names)):
            raise ValueError(f"expected 1 or {len(self.names)} maps ({', '.join(self.names)}), got {maps}.")
        if target.shape != (prediction.shape[0], 2):
            raise ValueError(f"expected a target of shape ({prediction.shape[0]}, 2), got {tuple(target.shape)}.")
        label, area = target[:, 0], target[:, 1]
        area_weights = torch.tensor(self.area_weights[:maps], device=prediction.device)
        with torch.autocast(prediction.device.type, enabled=False):
            return {
                "mil": mil_loss(prediction, label, self.r),
                "area": area_loss(prediction, label, area, self.constraint, self.tolerance) * area_weights,
            }

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Total loss: a scalar for reduction ``"mean"``, (B,) for ``"none"``. Arguments and errors as `terms`."""
        total = torch.stack(list(self.terms(prediction, target).values())).sum(dim=(0, 2))
        return total.mean() if self.reduction == "mean" else total
