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


"""Pooling of counted values against pooling of the values one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripts.losses.pooling import POOLINGS, Pooling
from scripts.slides.value_counts import ValueCounts


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("top_fraction", [0.03, 0.5, 1.0])
def test_pooled_as_one_by_one(kind, top_fraction):
    values = np.random.default_rng(0).beta(0.5, 2, 5000)
    values = np.rint(values * 65535).astype(np.uint16)
    values[:900] = 0
    counts = ValueCounts()
    counts.add(values[:2000].reshape(40, 50))
    counts.add(values[2000:])
    pool = Pooling(kind, r=3.0, top_fraction=top_fraction)
    expected = float(pool(torch.tensor(values / 65535)[None, None]))
    assert counts.pooled(pool) == pytest.approx(expected, rel=1e-6)


def test_worked_out_by_hand():
    counts = ValueCounts()
    counts.add(np.array([0, 0, 0, 65535], np.uint16))
    assert counts.pooled(Pooling(r=2.0)) == pytest.approx(0.5)  # sqrt(1 / 4)
    assert (counts.total, counts.at_least(1)) == (4, 1)


class Half(Pooling):
    """Of a user: sure of nothing."""

    def log(self, probability, mask=None):
        return torch.full(probability.shape[:2], 0.5).log()


class Median(Pooling):
    """Of a user: the lower median, which no average of distinct values is."""

    def log(self, probability, mask=None):
        return probability.flatten(2).median(dim=2).values.log()


class Halved(Pooling):
    """Of a user: half of what it would be otherwise, and it takes weights."""

    def log(self, probability, mask=None, weights=None):
        return super().log(probability, mask, weights) - np.log(2)


class Called(Pooling):
    def __call__(self, probability, mask=None):
        return probability.flatten(2).amin(dim=2)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [(Half(), 0.5), (Median(), 0.2), (Halved("mean"), 0.18), (Called(), 0.2)],
    ids=lambda value: type(value).__name__,
)
def test_a_pooling_of_one_s_own_gives_on_a_slide_what_it_gives_on_the_same_map(pool, expected):
    """Of 0.2 three times, 0.4 and 0.8 the median is 0.2, the mean 0.36; of the three values 0.4 and 0.47."""
    values = np.array([[0.2, 0.8, 0.2, 0.4, 0.2]])
    counts = ValueCounts()
    counts.add((values * 65535).astype(np.uint16))
    assert float(pool(torch.tensor(values)[None])) == pytest.approx(expected, rel=1e-4)
    assert counts.pooled(pool) == pytest.approx(expected, rel=1e-4)


def test_values_that_are_too_many_to_be_repeated_have_no_probability():
    counts = ValueCounts()
    counts.counts[32768] = 10**12
    assert counts.pooled(Half()) is None
    assert counts.pooled(Pooling()) == pytest.approx(32768 / 65535)


def test_no_tissue_no_cancer():
    assert ValueCounts().pooled(Pooling()) == 0
