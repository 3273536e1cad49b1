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

"""Normalisations folded into convolutions, against timm's own encoders, in float64."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from scripts.networks.encoders import create_encoder
from scripts.networks.folding import FoldedEncoder, normalisations
from torch import nn


def encoder_of(name: str, levels: int = 3) -> nn.Module:
    """With statistics and weights of its normalisations that matter, in evaluation."""
    torch.manual_seed(0)
    encoder = create_encoder(name, levels).double().eval()
    for norm in normalisations(encoder):
        for values in (norm.running_var, norm.weight.data):
            values.uniform_(0.5, 2)
        for values in (norm.running_mean, norm.bias.data):
            values.normal_()
    return encoder


def batch(size: int = 45) -> torch.Tensor:
    return torch.randn(2, 3, size, size + 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(encoder: nn.Module, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    encoder.zero_grad()
    sum(feature.square().mean() for feature in features).backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


FOLDED = ["tf_efficientnet_lite0", "resnet10t", "mobilenetv3_small_050", "regnety_002"]
# normalisations come first; the first feature map is a convolution's, before its normalisation
AS_THEY_ARE = ["densenet121", "ghostnet_050"]


@pytest.mark.parametrize("name", [*FOLDED, *AS_THEY_ARE])
def test_features_and_gradients_are_the_encoders(name: str) -> None:
    encoder = encoder_of(name)
    folded = FoldedEncoder(encoder, 3)
    assert bool(folded.pairs) == (name in FOLDED)
    expected, found = encoder(batch()), folded(encoder, batch())
    wanted = gradients(encoder, expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    mine = gradients(encoder, found)
    assert mine.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(mine[parameter], gradient, msg=parameter)
    with torch.no_grad():
        for one, other in zip(folded(encoder, batch()), expected, strict=True):
            torch.testing.assert_close(one, other.detach())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "levit_128s", "resnetblur50"])
def test_encoders_of_one_size_and_with_fixed_filters_are_as_they_were(name: str) -> None:
    """The first has no such normalisation, the second can't be tried, the third has tensors that are not saved."""
    encoder = encoder_of(name, 2)
    folded = FoldedEncoder(encoder, 3)
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(folded(encoder, images), encoder(images), strict=True):
            torch.testing.assert_close(one, other)


def test_weights_that_change_are_followed() -> None:
    encoder = encoder_of("resnet10t")
    folded = FoldedEncoder(encoder, 3)
    other = {name: value * 1.1 for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(encoder.parameters(), 0.1, fused=True)  # which does not count its changes
    gradients(encoder, folded(encoder, batch()))

    def same() -> bool:
        with torch.no_grad():
            return all(torch.allclose(a, b) for a, b in zip(folded(encoder, batch()), encoder(batch()), strict=True))

    assert same()
    optimizer.step()
    assert same()
    encoder.conv1[0].weight.data.mul_(0.9)
    assert same()
    encoder.load_state_dict(other)
    assert same()
    normalisations(encoder)[0].running_var.data += 1
    assert same()
    encoder.bn1.eps = 0.5
    assert same()
    with torch.inference_mode():
        assert same()
    encoder.float()
    folded(encoder, batch().float())


def test_a_copy_has_weights_of_its_own() -> None:
    network = nn.Module()
    network.encoder = encoder_of("resnet10t")
    network.folded = FoldedEncoder(network.encoder, 3)
    with torch.no_grad():
        before = network.folded(network.encoder, batch())
        copy = deepcopy(network)
        for parameter in copy.encoder.parameters():
            parameter.mul_(1.1)
        for one, other in zip(copy.folded(copy.encoder, batch()), copy.encoder(batch()), strict=True):
            torch.testing.assert_close(one, other)
        for one, other in zip(network.folded(network.encoder, batch()), before, strict=True):
            assert torch.equal(one, other)


def assert_same(folded: FoldedEncoder, encoder: nn.Module) -> None:
    """The same answer, of the same draws, and the same gradients."""
    torch.manual_seed(0)
    found = folded(encoder, batch())
    mine = gradients(encoder, found)
    torch.manual_seed(0)
    expected = encoder(batch())
    wanted = gradients(encoder, expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert mine.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(mine[name], gradient, msg=name)


def test_parts_that_are_replaced_are_followed() -> None:
    encoder = encoder_of("resnet10t")
    folded = FoldedEncoder(encoder, 3)
    assert folded.pairs
    encoder.layer1[0].act1 = nn.GELU()
    assert_same(folded, encoder)
    encoder.layer1[0].conv1.padding_mode = "reflect"
    assert_same(folded, encoder)
    first = encoder.conv1[0]
    encoder.conv1[0] = nn.Conv2d(3, first.out_channels, 7, 2, 3, bias=False).double()  # a larger one
    assert_same(folded, encoder)
    heard = []
    patched = encoder.layer2.forward
    encoder.layer2.forward = lambda x: heard.append(x) or patched(x)
    assert_same(folded, encoder)
    assert len(heard) == 2


def test_modes_of_parts_are_followed() -> None:
    encoder = encoder_of("resnet10t")
    for block in (encoder.layer1[0], encoder.layer2[0]):
        block.act2 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    folded = FoldedEncoder(encoder, 3)
    assert folded.pairs
    encoder.layer2[0].act2.train()
    assert_same(folded, encoder)
    encoder.layer2[0].act2[1].p = 0.1
    encoder.layer1[0].act2.train()
    assert_same(folded, encoder)


def test_a_normalisation_with_a_dropout_in_it() -> None:
    encoder = encoder_of("tf_efficientnet_lite0", 1)
    norm = normalisations(encoder)[0]
    norm.drop = nn.Dropout(0.5)
    folded = FoldedEncoder(encoder, 3)
    assert folded.pairs
    norm.drop.train()
    assert_same(folded, encoder)


def test_what_an_encoder_keeps_for_answers_is_its_own() -> None:
    """Biases by position, which a training makes anew."""
    encoder = encoder_of("efficientvit_m0", 2)
    folded = FoldedEncoder(encoder, 3)
    assert folded.pairs
    with torch.no_grad():
        folded(encoder, batch())
    encoder.load_state_dict({name: value * 1.1 for name, value in encoder.state_dict().items()})
    mine = gradients(encoder, folded(encoder.train().eval(), batch()))
    wanted = gradients(encoder, encoder.train().eval()(batch()))
    torch.testing.assert_close(mine, wanted)


def test_a_weight_that_is_computed_from_others() -> None:
    encoder = encoder_of("resnet10t")
    before = FoldedEncoder(encoder, 3)
    nn.utils.parametrizations.weight_norm(encoder.layer1[0].conv1)
    for folded in (before, FoldedEncoder(encoder, 3)):
        assert_same(folded, encoder)


def test_an_answer_that_is_used_beside_its_normalisation_stays() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, dtype=torch.float64), nn.BatchNorm2d(4, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.conv(x)
            return [y + self.bn(y)]

    block = Block().eval()
    assert_same(FoldedEncoder(block, 3), block)


def test_the_programs_random_numbers_stay() -> None:
    encoder = encoder_of("resnet10t")
    before = torch.get_rng_state()
    FoldedEncoder(encoder, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_and_parts_that_are_used_twice() -> None:
    encoder = encoder_of("resnet10t")
    block = encoder.layer1[0]
    block.conv2.weight = block.conv1.weight
    folded = FoldedEncoder(encoder, 3)
    assert folded.pairs
    block.conv2 = block.conv1
    twice = FoldedEncoder(encoder, 3)
    assert not twice.pairs
    with torch.no_grad():
        for one in (folded, twice):
            for found, expected in zip(one(encoder, batch()), encoder(batch()), strict=True):
                torch.testing.assert_close(found, expected)


def test_a_stored_one() -> None:
    encoder = encoder_of("resnet10t")
    folded = pickle.loads(pickle.dumps(FoldedEncoder(encoder, 3)))
    torch.testing.assert_close(folded(encoder, batch())[-1], encoder(batch())[-1])


def test_it_goes_on_after_an_input_that_fails() -> None:
    encoder = encoder_of("resnet10t")
    folded = FoldedEncoder(encoder, 3)
    with pytest.raises(RuntimeError, match="channels"):
        folded(encoder, batch()[:, :2])
    torch.testing.assert_close(folded(encoder, batch())[-1], encoder(batch())[-1])


def test_threads_that_share_a_network_have_its_answer() -> None:
    encoder = encoder_of("resnet10t")
    folded = FoldedEncoder(encoder, 3)
    expected = encoder(batch())[-1]
    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(lambda _: folded(encoder, batch())[-1], range(24)):
            torch.testing.assert_close(found, expected)
    deepcopy(folded)  # nothing of them is left in it


def test_statistics_are_gathered_and_hooks_are_heard() -> None:
    encoder = encoder_of("resnet10t")
    folded = FoldedEncoder(encoder, 3)
    heard: list[nn.Module] = []
    with encoder.layer1.register_forward_hook(lambda module, *_: heard.append(module)):
        folded(encoder, batch())
    with encoder.layer2.register_full_backward_hook(lambda module, *_: heard.append(module)):
        folded(encoder, batch())[-1].sum().backward()
    assert heard == [encoder.layer1, encoder.layer2]
    norm = normalisations(encoder)[0].train()
    before = norm.running_mean.clone()
    folded(encoder, batch())
    assert not torch.allclose(norm.running_mean, before)
