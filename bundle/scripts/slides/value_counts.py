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

from inspect import signature

import numpy as np
import torch

from scripts.losses.pooling import Pooling

__all__ = ["ValueCounts"]

MOST_REPEATED = 2**26  # values, 256 MiB


class ValueCounts:
    """
    How often each value of a 16-bit map occurs in tissue: all that pooling needs of a slide of any size.

    Args:
        counts: (65536,), of the values in 0..65535, which stand for probabilities in 0..1; all 0 where None.

    Examples:
        >>> counts = ValueCounts()
        >>> counts.add(np.array([0, 65535, 65535, 65535], np.uint16))
        >>> counts.total, counts.pooled(Pooling("mean"))
        (4, 0.75)
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

    def pooled(self, pool: Pooling) -> float | None:
        """
        The probability of the whole: what `pool` makes of all the values as one map.

        The values are weighted by their counts; or repeated, for a subclass of `Pooling` whose methods take no weights.

        Returns:
            It, in 0..1; 0 where nothing was counted: there is no cancer where there is no tissue. None where the values
            would have to be repeated and are too many.
        """
        (values,) = np.nonzero(self.counts)
        if not len(values):
            return 0.0
        counts = torch.from_numpy(self.counts[values])
        p = torch.from_numpy(values / 65535)  # in double precision: counts go into the billions
        if all("weights" in signature(method).parameters for method in (pool.__call__, pool.log)):
            return float(pool(p[None, None], weights=counts.double()[None]))
        if self.total > MOST_REPEATED:
            return None
        return float(pool(p.float().repeat_interleave(counts)[None, None]))
