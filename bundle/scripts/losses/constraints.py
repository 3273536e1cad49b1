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
Area constraints: what a map's mean probability v costs when it disagrees with the rough area a.

Everything works on v (B, M) of M maps of B images and on a (B,), both fractions of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from scripts.losses.pooling import masked_mean
from scripts.runtime.errors import InputError
from scripts.runtime.values import number, positive_number

__all__ = ["CONSTRAINTS", "PENALTIES", "AreaConstraint", "area_loss", "barrier_sharpness", "check_areas", "log_barrier"]


def one_sided(v: torch.Tensor, area: torch.Tensor, scale: torch.Tensor, **_: float) -> torch.Tensor:
    """
    (v - a)^2 where v > a, equation (8) of Jia et al. 2017.

    It never asks for more, and once a map is small the MIL loss asks for little, so that large regions come out too
    small.
    """
    return ((v - area) / scale).clamp(min=0).square()


def two_sided(v: torch.Tensor, area: torch.Tensor, scale: torch.Tensor, tolerance: float, **_: float) -> torch.Tensor:
    """Squared distance of v from a +- `tolerance`: size penalty of Kervadec et al., Medical Image Analysis 2019."""
    return (((v - area).abs() - tolerance) / scale).clamp(min=0).square()


def barriers(
    v: torch.Tensor, area: torch.Tensor, scale: torch.Tensor, tolerance: float, sharpness: float
) -> torch.Tensor:
    """
    Extended log-barriers of both ends of a +- `tolerance` (Kervadec et al., arXiv 1904.04205).

    They hold v inside, and the harder the larger their sharpness.
    """
    above, below = (v - area - tolerance) / scale, (area - tolerance - v) / scale
    return log_barrier(above, sharpness) + log_barrier(below, sharpness)


def no_cost(v: torch.Tensor, area: torch.Tensor, **_: object) -> torch.Tensor:
    """0, whatever the area."""
    return torch.zeros_like(v)


# By their names in a config. Each takes v (B, M), the area (B, 1), and by name what it needs of the unit of the excess
# `scale` (B, 1), the tolerance and the sharpness; it returns the cost (B, M).
CONSTRAINTS: dict[str, Callable[..., torch.Tensor]] = {
    "one_sided": one_sided,
    "two_sided": two_sided,
    "log_barrier": barriers,
    "none": no_cost,
}
PENALTIES = ("absolute", "relative")


class AreaConstraint:
    """
    Cost of a map whose mean probability v is not the area a.

    Args:
        kind: one of `CONSTRAINTS`.
        tolerance: half the width of the interval of those that have one, a fraction of the image; by default half a
            step of the annotation.
        penalty: ``"absolute"`` measures excess as a fraction of the image; ``"relative"`` as one of the area, so that
            small lesions count as much as large ones.
        sharpness: t of the log-barrier in the first epoch.
        growth, maximum: of the sharpness, see `barrier_sharpness`; by default it stays what it is.

    Raises:
        InputError: for an unknown `kind` or `penalty`, a negative `tolerance`, a `sharpness`, a `growth` or a
            `maximum` that is not above 0.

    Examples:
        >>> v, area = torch.tensor([[0.5, 0.75]]), torch.tensor([[0.5]])
        >>> AreaConstraint("one_sided")(v, area)
        tensor([[0.0000, 0.0625]])
    """

    def __init__(
        self,
        kind: str = "one_sided",
        tolerance: float = 0.05,
        penalty: str = "absolute",
        sharpness: float = 5.0,
        growth: float = 1.0,
        maximum: float | None = None,
    ) -> None:
        if kind not in CONSTRAINTS:
            raise InputError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got '{kind}'.")
        if penalty not in PENALTIES:
            raise InputError(f"penalty must be one of {', '.join(PENALTIES)}, got '{penalty}'.")
        number("tolerance", tolerance)
        self.kind = kind
        self.tolerance = tolerance
        self.penalty = penalty
        self.schedule = {"start": sharpness, "growth": growth, "maximum": sharpness if maximum is None else maximum}
        for name, value in self.schedule.items():
            positive_number(f"barrier#{name}", value)
        self.set_sharpness(sharpness)

    def set_epoch(self, epoch: int) -> None:
        """Set the sharpness of an epoch, from 1; a trainer does so at the start of each."""
        self.set_sharpness(barrier_sharpness(epoch, **self.schedule))

    def set_sharpness(self, sharpness: float) -> None:
        """Set t of the log-barrier. Raises InputError unless it is above 0."""
        positive_number("sharpness", sharpness)
        self.sharpness = sharpness

    def __call__(self, v: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
        """
        Args:
            v: (B, M) in 0..1.
            area: (B, 1), above 0; known for all.

        Returns:
            (B, M) cost; of the log-barrier below 0 well inside the interval.
        """
        scale = area if self.penalty == "relative" else torch.ones_like(area)
        return CONSTRAINTS[self.kind](v, area, scale=scale, tolerance=self.tolerance, sharpness=self.sharpness)


def log_barrier(z: torch.Tensor, sharpness: float) -> torch.Tensor:
    """
    Extended log-barrier of the constraint z <= 0 (Kervadec et al., arXiv 1904.04205).

    -log(-z) / t up to z = -1/t^2, from there on the tangent t z + (2 log t + 1) / t: finite, and of finite slope,
    however much the constraint is violated, so that no feasible start is needed.

    Args:
        z: any shape, below 0 where the constraint holds.
        sharpness: t > 0.

    Examples:
        >>> log_barrier(torch.tensor([-1.0, 0.0]), sharpness=1.0)  # -log 1, and the tangent's 0 + 1
        tensor([-0., 1.])
    """
    t = sharpness
    inside = z <= -1 / t**2
    # the logarithm sees a harmless argument where the tangent is taken, or its NaN would get into the gradient
    barrier = -torch.log(-torch.where(inside, z, -1.0)) / t
    return torch.where(inside, barrier, t * z + (2 * math.log(t) + 1) / t)


def barrier_sharpness(current_step: int, start: float, growth: float, maximum: float) -> float:
    """
    Schedule of the log-barrier's t: `start` in the first epoch, `growth` times as much in each that follows.

    A `maximum` keeps long trainings from being all constraint: outside of the interval the slope is t.

    Args:
        current_step: epoch, from 1.

    Examples:
        >>> [barrier_sharpness(epoch, start=5.0, growth=2.0, maximum=15.0) for epoch in (1, 2, 3)]
        [5.0, 10.0, 15.0]
    """
    exponent = (current_step - 1) * math.log(growth)
    return maximum if exponent > math.log(maximum / start) else start * math.exp(exponent)  # which can't overflow


def check_areas(label: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """
    The rough areas (B,) as they are.

    Raises:
        InputError: when that of a positive image is known, and not above 0 and up to 1.
    """
    wrong = area[(label > 0.5) & ~area.isnan() & ~((area > 0) & (area <= 1))]
    if len(wrong):
        raise InputError(f"an area must be a fraction of the image, above 0 and up to 1; got {float(wrong[0]):g}.")
    return area


def area_loss(
    probability: torch.Tensor,
    label: torch.Tensor,
    area: torch.Tensor,
    constraint: AreaConstraint | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Area constraint on the mean probability v of each positive image's maps, equations (7) and (8).

    Args:
        probability: (B, M, ...) in 0..1.
        label: (B,), 0 or 1.
        area: (B,), rough area of the positive region as a fraction of the image; NaN where it is not known.
        constraint: what a disagreement costs; the paper's by default.
        mask: (B, ...), which instances count.

    Returns:
        (B, M); 0 for negative images and for images without an area.

    Raises:
        InputError: for an area of a positive image that is not above 0 and up to 1.

    Examples:
        >>> maps = torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]]])  # v is 0.5
        >>> area_loss(maps, label=torch.tensor([1, 0]), area=torch.tensor([0.3, torch.nan]))  # (0.5 - 0.3)^2
        tensor([[0.0400],
                [0.0000]])
    """
    constraint = constraint or AreaConstraint()
    constrained = ((label > 0.5) & ~area.isnan()).view(-1, 1)
    # the NaN must go before the cost is computed, whose gradient it would get into
    known_area = torch.where(constrained, check_areas(label, area).view(-1, 1), 1.0)
    return torch.where(constrained, constraint(masked_mean(probability, mask), known_area), 0.0)
