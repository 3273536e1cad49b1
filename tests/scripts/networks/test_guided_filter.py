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

"""Maps that are smoothed along the edges of their image."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts.networks.guided_filter import guided_filter
from scripts.runtime.errors import InputError

FLAT = 0.06


def by_least_squares(guide: np.ndarray, value: np.ndarray, radius: int) -> np.ndarray:
    """The filter as its authors define it: a ridge regression of each window, and the mean over windows."""
    height, width = guide.shape
    sums, counts = np.zeros_like(value), np.zeros_like(value)
    slopes, offsets = np.zeros_like(value), np.zeros_like(value)

    def window(row: int, column: int) -> tuple[slice, slice]:
        return (
            slice(max(row - radius, 0), min(row + radius + 1, height)),
            slice(max(column - radius, 0), min(column + radius + 1, width)),
        )

    for row in range(height):
        for column in range(width):
            at = window(row, column)
            known, wanted = guide[at].ravel(), value[at].ravel()
            rows = np.stack([known, np.ones_like(known)], axis=1)
            rows = np.vstack([rows, [np.sqrt(FLAT * known.size), 0]])
            solution = np.linalg.lstsq(rows, np.append(wanted, 0), rcond=None)[0]
            slopes[row, column], offsets[row, column] = solution
    for row in range(height):
        for column in range(width):
            at = window(row, column)
            sums[at] += slopes[row, column] * guide[at] + offsets[row, column]
            counts[at] += 1
    return np.clip(sums / counts, 0, 1)


@pytest.mark.parametrize("radius", [1, 2, 9])
def test_it_is_a_regression_on_the_guide_in_each_window(radius: int) -> None:
    """Up to windows larger than the image."""
    numbers = np.random.default_rng(radius)
    guide, value = numbers.normal(size=(6, 8)), numbers.random((6, 8))
    found = guided_filter(torch.tensor(guide)[None, None], torch.tensor(value)[None, None], radius)
    np.testing.assert_allclose(found[0, 0].numpy(), by_least_squares(guide, value, radius), atol=1e-5)


def test_a_map_is_smoothed_where_the_image_is_flat_and_not_across_its_edges() -> None:
    """Two halves, 4 apart, of which a noisy map knows: its noise goes, its step stays."""
    step = (torch.arange(40) >= 20).float().expand(1, 1, 40, 40)
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(1, 1, 40, 40)
    found = guided_filter(4 * step, (0.3 + 0.4 * step + noise).clamp(0, 1), radius=4)
    expected = 0.3 + 0.4 * step
    assert (found - expected).abs().max() < 0.06
    assert (found - expected).std() < 0.2 * noise.std()


def test_a_network_answers_with_the_filtered_map_in_evaluation_alone(lively_network, tmp_path: Path) -> None:
    network = copy.deepcopy(lively_network)
    image = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        plain, training = network.eval()(image), network.train()(image)
        network.guided(3)
        assert torch.equal(network.train()(image), training)
        expected = guided_filter(image.mean(1, keepdim=True), plain, 3)
        assert not torch.allclose(expected, plain, atol=1e-3)
        assert torch.equal(network.eval()(image), expected)
        torch.jit.script(network).save(tmp_path / "model.ts")
        assert torch.allclose(torch.jit.load(tmp_path / "model.ts")(image), expected, atol=1e-5)
        assert torch.equal(network.guided(0)(image), plain)


@pytest.mark.parametrize("radius", [-1, 2.5, True, "4"])
def test_what_is_no_radius_is_refused(lively_network, radius: object) -> None:
    with pytest.raises(InputError, match="guided_filter must be an integer of 0 or more"):
        copy.deepcopy(lively_network).guided(radius)
