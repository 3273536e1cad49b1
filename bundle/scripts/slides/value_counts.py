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


"""What is known of a slide as a whole: areas, and the probability that there is cancer on it."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit, logit, logsumexp

from scripts.pooling import P_MAX, P_MIN, Pooling

__all__ = ["ValueCounts"]


class ValueCounts:
    """
    How often each value of a 16-bit map occurs in tissue: all that pooling needs of a slide of any size.

    Args:
        counts: (65536,), of the values in 0..65535, which stand for probabilities in 0..1; all 0 where None.
    """

    def __init__(self, counts: np.ndarray | None = None) -> None:
        self.counts = np.zeros(65536, np.int64) if counts is None else counts

    def add(self, values: np.ndarray) -> None:
        """Count values, uint16 of any shape."""
        self.counts += np.bincount(values.ravel(), minlength=65536)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def at_least(self, value: int) -> int:
        return int(self.counts[value:].sum())

    def pooled(self, pool: Pooling) -> float:
        """
        The probability of the whole as `pool` has it of single pixels, of the same formulas weighted by the counts.

        0 where nothing was counted: there is no cancer where there is no tissue.
        """
        (values,) = np.nonzero(self.counts)
        if not len(values):
            return 0.0
        p, counts = values / 65535, self.counts[values]
        share = counts / counts.sum()
        if pool.kind == "mean":
            return float(share @ p)
        if pool.kind == "max":
            return float(p[-1])
        if pool.kind == "top_fraction":
            top = math.ceil(round(pool.top_fraction * counts.sum(), 6))
            taken = np.diff(np.minimum(np.cumsum(counts[::-1]), top), prepend=0)
            return float(taken @ p[::-1] / top)
        bounded = np.clip(p, P_MIN, P_MAX)
        if pool.kind == "log_sum_exp":
            return float(logsumexp(pool.r * p, b=share) / pool.r)
        if pool.kind == "log_sum_exp_of_scores":
            return float(expit(logsumexp(pool.r * logit(bounded), b=share) / pool.r))
        return float(np.exp(logsumexp(pool.r * np.log(bounded), b=share) / pool.r))
