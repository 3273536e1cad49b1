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
from scripts.images.originals import Originals
from scripts.networks import DCAN, FCN, MapNetwork, UNet
from scripts.networks.map_network import trained_as, trained_originals


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


def state_of(originals: Originals | None) -> dict[str, torch.Tensor]:
    network = MapNetwork(method="cdws").for_size([224, 112])
    network.learns_from(originals)
    return network.state_dict()


def test_a_checkpoint_says_how_large_its_images_were() -> None:
    state = state_of(Originals(522, 775, 1.25))
    assert trained_originals(state) == (522, 775, 1.25, None)
    assert trained_as(state) == ("cdws", (224, 112))
    again = MapNetwork()
    again.load_state_dict(state)
    assert trained_originals(again.state_dict()) == (522, 775, 1.25, None)
    assert trained_originals(state_of(Originals(522, 775, 1.25, 0.2521))) == (522, 775, 1.25, 0.2521)


def test_images_that_training_shrinks_far_are_warned_of(caplog) -> None:
    """By more than three, on both sides: here to a third, and by a pixel more."""
    state_of(Originals(700, 336))
    assert not caplog.text
    state_of(Originals(700, 337))
    assert "The pictures are large, 337 x 700 pixels, and training sees them at 112 x 224" in caplog.text


def test_a_checkpoint_of_before_says_nothing_of_it() -> None:
    state = state_of(None)
    assert trained_originals(state) is None
    assert trained_originals({"_extra_state": state["_extra_state"][:80]}) is None  # as version 0.6 wrote it
    assert trained_originals({}) is None


def test_an_average_over_sites_says_it_where_they_agree() -> None:
    """What federated averaging makes of the bytes."""

    def average(*originals: Originals) -> Originals | None:
        states = [state_of(one)["_extra_state"].float() for one in originals]
        return trained_originals({"_extra_state": sum(states) / len(states)})

    assert average(Originals(500, 500), Originals(500, 500), Originals(500, 500)) == (500, 500, 1.0, None)
    assert average(Originals(400, 500), Originals(600, 500)) is None  # the mean would look like 500 x 500
