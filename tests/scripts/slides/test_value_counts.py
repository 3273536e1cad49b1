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
from scripts.pooling import KINDS, Pooling
from scripts.slides.value_counts import ValueCounts


@pytest.mark.parametrize("kind", KINDS)
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


def test_no_tissue_no_cancer():
    assert ValueCounts().pooled(Pooling()) == 0
