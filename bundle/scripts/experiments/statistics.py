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


"""Means and spreads of a study, and the significance of differences between its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import numpy as np
from scipy.stats import wilcoxon

__all__ = ["holm", "mean_and_spread", "mean_by_group", "paired_p"]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation (of a sample, n - 1) where there are two values or more."""
    return mean(values), stdev(values) if len(values) > 1 else None


def mean_by_group(scores: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Images of one patient or slide are not independent: the mean score of each group; an image may be alone."""
    gathered = defaultdict(list)
    for image, score in scores.items():
        gathered[groups.get(image, image)].append(score)
    return {group: mean(values) for group, values in gathered.items()}


def paired_p(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """
    Two-sided Wilcoxon signed-rank test of the scores that two methods have on the same images.

    Differences of zero are split between the signs (``zsplit``); without any other difference p is 1.

    Raises:
        ValueError: when the images are not the same.

    Examples:
        >>> first, second = ({name: score for name in "abcdef"} for score in (0.9, 0.8))
        >>> paired_p(first, second)  # six of the same sign: 2 / 2^6
        0.03125
    """
    if first.keys() != second.keys():
        raise ValueError(f"the scores must be of the same images, got {len(first)} and {len(second)}.")
    # a mean over seeds may differ in the last bit
    differences = np.round([first[name] - second[name] for name in sorted(first)], 12)
    return float(wilcoxon(differences, zero_method="zsplit").pvalue) if np.any(differences) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """
    P-values corrected for their number (Holm 1979), in the order given.

    Examples:
        >>> holm([0.04, 0.01])
        [0.04, 0.02]
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.maximum.accumulate(np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1))
    result = np.empty(len(order))
    result[order] = np.minimum(corrected, 1)
    return result.tolist()
