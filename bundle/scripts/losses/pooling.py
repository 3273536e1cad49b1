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
Pooling: from the probabilities of a bag's instances to the probability that the image is positive.

Shapes: instances are (B, M, ...), the probabilities of M maps of B images, any number of instances in the trailing
axes; a mask (B, ...) of the same trailing axes tells which of them count, all of them where it is None; weights
(B, ...) above 0 how often each does, once where they are None. An image of which none counts has NaN. Everything is
computed in float32 at least, autocast or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from scripts.runtime.errors import InputError
from scripts.runtime.values import positive_number

__all__ = [
    "POOLINGS",
    "Pooling",
    "generalized_mean",
    "log1mexp",
    "log_generalized_mean",
    "log_sum_exp",
    "log_sum_exp_of_scores",
    "masked_max",
    "masked_mean",
    "top_mean",
]

# Bounds of p. Below 1e-30 the gradient 1/p of a positive bag would overflow float32 when neighbouring pixels' are
# summed; above is the largest float32 under 1, which keeps log(1 - p) finite.
P_MIN = 1e-30
P_MAX = 1.0 - 2.0**-24


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0 without cancellation (Maechler 2012): log(-expm1(x)) near 0, else log1p(-exp(x))."""
    near = x > -math.log(2.0)
    # Each branch sees a harmless argument where the other one is taken, or its infinite gradient would turn into NaN.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor | None = None, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Mean of each map over the instances that count: (B, M, ...) to (B, M).

    Examples:
        >>> masked_mean(torch.tensor([[[0.2, 0.4, 0.9]]]), mask=torch.tensor([[True, True, False]]))
        tensor([[0.3000]])
    """
    values = _flat(values, mask)
    if weights is not None:
        weights = _flat_weights(weights, mask)
        return (values * weights).sum(dim=2) / weights.sum(dim=2)
    return values.mean(dim=2) if mask is None else values.sum(dim=2) / _flat_mask(mask).sum(dim=2)


def log_generalized_mean(
    probability: torch.Tensor,
    r: float = 4.0,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Logarithm of the generalized mean (1/N sum p^r)^(1/r) of each map, equation (2) of Jia et al. 2017.

    It is taken in the log domain with the largest p factored out, so that neither p^r nor a sum of many terms
    loses anything: a bag of 10^7 equal probabilities has exactly their value. p is clamped to [1e-30, 1 - 2^-24];
    nothing is added inside the root, which would put a floor under the result.

    Args:
        probability: (B, M, ...) in 0..1.
        r: sharpness, > 0 and finite; 1 is the mean, and the larger the nearer the maximum.
        mask, weights: (B, ...), which instances count, and how often.

    Returns:
        (B, M), at most 0; finite, with a finite gradient, for every p in 0..1.
    """
    log_p = _flat(probability, mask).clamp(P_MIN, P_MAX).log()
    peak = log_p.amax(dim=2, keepdim=True).detach()
    return peak.squeeze(2) + masked_mean(((log_p - peak) * r).exp(), mask, weights).log() / r


def generalized_mean(
    probability: torch.Tensor,
    r: float = 4.0,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Generalized mean of each map: (B, M, ...) to (B, M). Arguments as `log_generalized_mean`.

    Examples:
        >>> generalized_mean(torch.tensor([[[0.6, 0.8, 0.0, 0.0]]]), r=2.0)  # the root of 1 / 4
        tensor([[0.5000]])
    """
    return log_generalized_mean(probability, r, mask, weights).exp()


def log_sum_exp(
    probability: torch.Tensor,
    r: float = 4.0,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Log-sum-exp pooling 1/r log(1/N sum exp(r p)) (Pinheiro & Collobert, CVPR 2015), between mean and maximum.

    Args:
        probability: (B, M, ...) in 0..1.
        r: sharpness, > 0 and finite: towards 0 it is the mean, towards infinity the maximum.
        mask, weights: (B, ...), which instances count, and how often.

    Returns:
        (B, M) in 0..1. Unlike the generalized mean it keeps every gradient finite by itself: exp(r p) is never small.
    """
    p = _flat(probability, mask)
    peak = p.amax(dim=2, keepdim=True).detach()
    # expm1 and log1p keep the digits of a bag of small probabilities, of which exp(r p) is 1 + little
    return peak.squeeze(2) + torch.log1p(masked_mean(torch.expm1(r * (p - peak)), mask, weights)) / r


def log_sum_exp_of_scores(
    probability: torch.Tensor,
    r: float = 5.0,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Logarithm of sigmoid(1/r log(1/N sum exp(r s))), the scores s being the logits of p.

    This is an image classifier whose score map is pooled by log-sum-exp, as Pinheiro & Collobert (CVPR 2015) have it,
    and whose class activation map is p.

    Args:
        probability: (B, M, ...) in 0..1, clamped to [1e-30, 1 - 2^-24].
        r: sharpness, > 0 and finite.
        mask, weights: (B, ...), which instances count, and how often.

    Returns:
        (B, M), at most 0.
    """
    p = _flat(probability, mask).clamp(P_MIN, P_MAX)
    scores = p.log() - torch.log1p(-p)
    peak = scores.amax(dim=2, keepdim=True).detach()
    pooled = peak.squeeze(2) + masked_mean(((scores - peak) * r).exp(), mask, weights).log() / r
    return torch.nn.functional.logsigmoid(pooled)


def top_mean(
    probability: torch.Tensor,
    fraction: float = 0.1,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Mean of the largest instances, as many as make up `fraction` of the bag, rounded up (as Durand et al., CVPR 2016).

    Args:
        probability: (B, M, ...) in 0..1.
        fraction: above 0 and up to 1, of the instances that count.
        mask, weights: (B, ...), which instances count, and how often.

    Returns:
        (B, M) in 0..1.

    Examples:
        >>> top_mean(torch.tensor([[[0.1, 0.8, 0.2, 0.6]]]), fraction=0.5)
        tensor([[0.7000]])
    """
    p = _flat(probability, mask)
    if weights is not None:
        descending, order = p.sort(dim=2, descending=True)
        weights = _flat_weights(weights, mask).expand_as(p)
        top = torch.tensor([_top_count(fraction, n) for n in weights[:, 0].sum(dim=1).tolist()], device=p.device)
        reached = weights.gather(2, order).cumsum(dim=2).minimum(top.view(-1, 1, 1))
        taken = reached.diff(dim=2, prepend=torch.zeros_like(reached[..., :1]))
        return (descending * taken).sum(dim=2) / reached[..., -1]
    if mask is None:
        return p.topk(_top_count(fraction, p.shape[2]), dim=2).values.mean(dim=2)
    # what doesn't count goes behind the zeros that do
    descending = p.masked_fill(~_flat_mask(mask), -1.0).sort(dim=2, descending=True).values
    counted = [_top_count(fraction, int(n)) for n in _flat_mask(mask).sum(dim=2)]
    ranks = torch.arange(p.shape[2], device=p.device)
    return masked_mean(descending, ranks < torch.tensor(counted, device=p.device).unsqueeze(1))


def masked_max(
    values: torch.Tensor, mask: torch.Tensor | None = None, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Largest value of each map among the instances that count, however often: (B, M, ...) to (B, M)."""
    peak = _flat(values, mask).amax(dim=2)
    return peak if mask is None else torch.where(_flat_mask(mask).any(dim=2), peak, math.nan)


def _log(pooled: torch.Tensor) -> torch.Tensor:
    return pooled.clamp(min=P_MIN).log()


# By their names in a config. Each takes the probabilities (B, M, ...), a mask and weights (B, ...) which may be None,
# and the `Pooling`, of whose options it uses what it needs; it returns the logarithm of the probability (B, M).
POOLINGS: dict[str, Callable[..., torch.Tensor]] = {
    "generalized_mean": lambda p, mask, weights, options: log_generalized_mean(p, options.r, mask, weights),
    "log_sum_exp": lambda p, mask, weights, options: _log(log_sum_exp(p, options.r, mask, weights)),
    "log_sum_exp_of_scores": lambda p, mask, weights, options: log_sum_exp_of_scores(p, options.r, mask, weights),
    "top_fraction": lambda p, mask, weights, options: _log(top_mean(p, options.top_fraction, mask, weights)),
    "mean": lambda p, mask, weights, options: _log(masked_mean(p, mask, weights)),
    "max": lambda p, mask, weights, options: _log(masked_max(p, mask, weights)),
}


class Pooling:
    """
    One of the poolings by its name.

    Args:
        kind: one of `POOLINGS`.
        r: sharpness of the generalized mean (the paper's) and of both log-sum-exps.
        top_fraction: share of the instances that ``"top_fraction"`` averages.

    Raises:
        InputError: for an unknown `kind`, an `r` that is not above 0 and finite, a `top_fraction` outside 0..1.

    Examples:
        >>> Pooling("generalized_mean", r=2.0)(torch.tensor([[[0.6, 0.8]]]))
        tensor([[0.7071]])
    """

    def __init__(self, kind: str = "generalized_mean", r: float = 4.0, top_fraction: float = 0.1) -> None:
        if kind not in POOLINGS:
            raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, got '{kind}'.")
        positive_number("r", r)
        positive_number("top_fraction", top_fraction)
        if top_fraction > 1:
            raise InputError(f"top_fraction must be above 0 and up to 1, got {top_fraction}.")
        self.kind = kind
        self.r = r
        self.top_fraction = top_fraction

    def log(
        self, probability: torch.Tensor, mask: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Logarithm of the image-level probability of each map.

        Args:
            probability: (B, M, ...) in 0..1.
            mask, weights: (B, ...), which instances count, and how often. A subclass may leave the weights out: nothing
                gives them but whole slides, which then repeat each instance as often, see `ValueCounts.pooled`.

        Returns:
            (B, M), in log(1e-30)..log(1 - 2^-24), so that the logarithm of its complement is finite, too.
        """
        log_pooled = POOLINGS[self.kind](probability, mask, weights, self)
        return log_pooled.clamp(max=math.log(P_MAX))

    def __call__(
        self, probability: torch.Tensor, mask: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Image-level probability of each map, (B, M) in 0..1. Arguments as `log`."""
        return self.log(probability, mask, **_given(weights)).exp()


def _given(weights: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Weights where there are some, as an argument that the methods of a subclass need not take."""
    return {} if weights is None else {"weights": weights}


def _flat(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    (B, M, N), in float32 unless it is double already, and 0 for instances that don't count.

    0 is no more than any probability. What padding holds, NaN perhaps, must be gone before anything is computed from
    it, or it gets into the gradient.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32)).flatten(2)
    return values if mask is None else torch.where(_flat_mask(mask), values, 0.0)


def _flat_mask(mask: torch.Tensor) -> torch.Tensor:
    """(B, 1, N) of bool."""
    return mask.flatten(1).unsqueeze(1) > 0


def _flat_weights(weights: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, 1, N), 0 for instances that don't count."""
    weights = weights.flatten(1).unsqueeze(1)
    return weights if mask is None else torch.where(_flat_mask(mask), weights, 0)


def _top_count(fraction: float, instances: float) -> float:
    # 0.07 * 100 is 7.000000000000001 in binary
    return min(instances, max(1, math.ceil(round(fraction * instances, 6))))
