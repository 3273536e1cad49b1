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

"""What every supervised network owes to training in micro-batches: an image's map depends on that image alone."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import DCAN, FCN, MapNetwork, UNet


def small_networks() -> list[MapNetwork]:
    return [*(FCN(s, head_channels=8) for s in (32, 16, 8)), DCAN(), DCAN(contour=True), UNet([4, 4, 4, 4, 4, 4])]


@pytest.mark.parametrize("network", small_networks(), ids=lambda n: f"{type(n).__name__}{len(n.map_names)}")
def test_a_map_does_not_depend_on_the_other_images(network: MapNetwork) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # scores start at zero, which would hide any difference
            if not parameter.any():
                parameter.normal_(std=0.01, generator=generator)
        image = torch.randn(2, 3, 45, 61, generator=generator)
        both = network.eval()(image)
        assert both.std() > 0
        torch.testing.assert_close(network(image[:1]), both[:1], rtol=1e-4, atol=1e-5)
