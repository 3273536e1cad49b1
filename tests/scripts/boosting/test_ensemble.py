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

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripts.boosting.ensemble import MILBoostNet
from scripts.runtime.errors import InputError

lightgbm = pytest.importorskip("lightgbm")


MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)


STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def stump(threshold: float, low: float, high: float, patch_size: int = 16) -> MILBoostNet:
    """A network of one tree, that has learned nothing: `low` where lightness is at most the threshold, else `high`."""
    network = MILBoostNet(patch_size, 4)
    names = network.features.names
    values = np.zeros((40, len(names)))
    values[:, 0] = [threshold - 1, threshold + 1] * 20
    parameters = {"objective": "none", "num_leaves": 2, "min_data_in_leaf": 1, "verbosity": -1, "num_threads": 1}
    data = lightgbm.Dataset(values, np.zeros(40), feature_name=names, params=parameters)
    booster = lightgbm.Booster(parameters | {"learning_rate": 1.0}, data)
    gradient = -np.tile([low, high], 20)
    booster.update(fobj=lambda scores, data: (gradient, np.ones(40)))
    network.adopt(booster)
    return network.eval()


def normalised(image: torch.Tensor) -> torch.Tensor:
    return ((image - MEAN) / STD)[None]


def test_map_lies_where_the_patches_are() -> None:
    """
    Light from row 24 on: patches from 0, 4, ..., 24 have their centres at 7.5, 11.5, ..., 31.5.

    That from 16 is light by 8 of 16 rows, that from 20 by 12. The threshold lies between those two.
    """
    image = torch.full((3, 40, 30), 0.2)
    image[:, 24:] = 0.9
    dark, light = 21.0, 90.0
    network = stump(dark + 0.6 * (light - dark), low=-2.0, high=3.0)
    result = network(normalised(image))
    assert result.shape == (1, 1, 40, 30)
    assert result.dtype == torch.float32
    low, high = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3))
    rows = np.interp(np.arange(40), np.arange(7) * 4 + 7.5, [low] * 5 + [high] * 2)
    expected = torch.tensor(rows, dtype=torch.float32).view(40, 1).expand(40, 30)
    torch.testing.assert_close(result[0, 0], expected)
    across = network(normalised(image.swapaxes(1, 2)))
    torch.testing.assert_close(across[0, 0], expected.T)


def test_normalisation_is_undone() -> None:
    network = MILBoostNet(16, 4)
    picture = torch.rand(3, 20, 24)
    other = MILBoostNet(16, 4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    normalised_otherwise = (picture - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / other.std
    expected = network.features(picture.numpy())
    for found in (network.patch_features(normalised(picture)[0]), other.patch_features(normalised_otherwise)):
        # grey levels may round the other way
        assert np.abs(found - expected)[..., :12].max() < 1e-3
        assert np.isclose(found, expected, atol=0.02).mean() > 0.99
    beyond = network.patch_features(normalised(picture * 3 - 1)[0])
    assert np.abs(beyond - network.features((picture * 3 - 1).clamp(0, 1).numpy()))[..., :12].max() < 1e-3


def test_network_of_no_trees_does_not_know() -> None:
    network = MILBoostNet(16, 4).to("cpu", memory_format=torch.channels_last).eval()
    assert torch.equal(network(torch.randn(2, 3, 20, 30)), torch.full((2, 1, 20, 30), 0.5))
    assert not list(network.parameters())
    assert network.map_names == ["map"]
    again = MILBoostNet(16, 4)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(torch.randn(2, 3, 20, 30)), torch.full((2, 1, 20, 30), 0.5))


def test_refuses_another_method() -> None:
    state = MILBoostNet(16, 4, method="mil_boosting").state_dict()
    with pytest.raises(InputError, match="trained as 'mil_boosting'"):
        MILBoostNet(16, 4, method="cdws").load_state_dict(state)
