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


"""Spread, Holm's correction, and the paired test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test
from scripts.experiments.statistics import holm, mean_and_spread, mean_by_group, paired_p


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([0.4]) == (0.4, None)


def test_holm_by_hand() -> None:
    # sorted 0.01 0.02 0.03 0.04 times 4 3 2 1: 0.04 0.06 0.06 0.04, which may not fall
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_images_of_a_group_are_averaged() -> None:
    assert mean_by_group({"a": 1.0, "b": 0.0, "c": 0.3}, {"a": "p", "b": "p"}) == {"p": 0.5, "c": 0.3}


def test_paired_p_agrees_with_a_permutation_test_of_the_signed_ranks() -> None:
    differences = np.array([0.01, 0.02, -0.03, 0.04, 0.05, 0.06, -0.07, 0.08, 0.09, 0.1])
    first = {str(i): 0.5 + d for i, d in enumerate(differences)}
    second = {str(i): 0.5 for i in range(10)}
    ranks = np.sign(differences) * np.arange(1, 11)
    exact = permutation_test((ranks,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired_p(first, second) == pytest.approx(exact, abs=1e-9)


def test_equal_scores_differ_in_nothing_and_other_images_are_refused() -> None:
    assert paired_p({"a": 0.1}, {"a": 0.1}) == 1
    with pytest.raises(ValueError, match="same images"):
        paired_p({"a": 0.1}, {"b": 0.1})
