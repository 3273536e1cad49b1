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

"""The loss of bags of instances, and its derivatives by the instances' scores."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit, log_expit

__all__ = ["bag_gradient", "bag_losses", "losses_and_derivatives"]

MAX_SCORE = 300.0  # beyond, O / (1 - P) would overflow; boosting gets nowhere near


def bag_losses(scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float = 4.0) -> np.ndarray:
    """
    Cross-entropy of each bag: -log P of a positive one, -log(1 - P) of a negative one.

    Everything is taken in the log domain, where neither P nor 1 - P loses its digits. Arguments as `bag_gradient`.

    Returns:
        (B,) float64, finite for every finite score; scores beyond +-300 count as +-300.

    Examples:
        Two bags of two instances of score 0, which is a probability of 1/2:

        >>> bag_losses(np.zeros(4), np.array([0, 2, 4]), np.array([True, False])).round(4)
        array([0.6931, 0.6931])
    """
    return losses_and_derivatives(scores, bags, labels, r)[0]


def bag_gradient(
    scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """
    First and second derivative of the bags' summed loss by each score.

    With the instance's share w_j = p_j^r / sum_k p_k^r of its bag, d log P / d h_j = w_j (1 - p_j), as
    log P = 1/r log(1/N sum_k p_k^r) and d log p_j / d h_j = 1 - p_j. The share itself has
    d w_j / d h_j = r w_j (1 - w_j) (1 - p_j), and 1 - p_j has -p_j (1 - p_j). So the derivatives of -log P are

        g_j = -w_j (1 - p_j)
        H_j = g_j (r (1 - w_j) (1 - p_j) - p_j)

    and those of -log(1 - P), with the odds O = P / (1 - P), which have d O / d log P = O / (1 - P), are

        g_j = O w_j (1 - p_j)
        H_j = g_j (w_j (1 - p_j) / (1 - P) + r (1 - w_j) (1 - p_j) - p_j)

    H can be negative: more of one instance gives it more of the share, too.

    Args:
        scores: (N,) h of all instances, those of a bag next to each other.
        bags: (B + 1,) where each bag begins, and where the last one ends; none is empty.
        labels: (B,) of bool, whether the bag is positive.
        r: sharpness of the generalized mean.

    Returns:
        Gradient and diagonal of the Hessian, (N,) float64 each.
    """
    return losses_and_derivatives(scores, bags, labels, r)[1:]


def losses_and_derivatives(
    scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`bag_losses` and `bag_gradient`, which have most of their work in common."""
    starts, sizes = bags[:-1], np.diff(bags)
    if bags[0] != 0 or bags[-1] != len(scores) or len(labels) != len(sizes) or (sizes < 1).any():
        raise ValueError(
            f"expected bags from 0 to {len(scores)}, none of them empty, and a label for each; "
            f"got {len(labels)} labels, and bags at {bags}"
        )

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, sizes)

    scores = np.clip(scores.astype(np.float64), -MAX_SCORE, MAX_SCORE)
    log_p, not_p = log_expit(scores), expit(-scores)
    # p^r in units of the bag's largest, and less 1, which keeps the digits of a bag in which all are close to 1
    peak = np.maximum.reduceat(log_p, starts)
    exponent = r * (log_p - spread(peak))
    bag_log_p = peak + np.log1p(np.add.reduceat(np.expm1(exponent), starts) / sizes) / r
    bag_log_not_p = _log1mexp(bag_log_p)
    share = np.exp(exponent)
    share /= spread(np.add.reduceat(share, starts))

    labels = np.asarray(labels, dtype=bool)
    slope = share * not_p
    gradient = slope * spread(np.where(labels, -1.0, np.exp(bag_log_p - bag_log_not_p)))
    odds_bend = slope * spread(np.where(labels, 0.0, np.exp(-bag_log_not_p)))
    hessian = gradient * (odds_bend + r * (1.0 - share) * not_p - np.exp(log_p))
    return -np.where(labels, bag_log_p, bag_log_not_p), gradient, hessian


def _log1mexp(x: np.ndarray) -> np.ndarray:
    """log(1 - exp(x)) for x < 0, as `scripts.losses.pooling.log1mexp`."""
    near = x > -math.log(2.0)
    return np.where(near, np.log(-np.expm1(x)), np.log1p(-np.exp(np.where(near, -1.0, x))))
