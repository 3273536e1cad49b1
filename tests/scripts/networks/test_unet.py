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

"""U-Net against the paper's layers, and what its normalisation promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import assert_scripted_gives_the_same, images, learn_bright_square
from scripts.networks import UNet
from torch import nn

SMALL = (4, 4, 8, 8, 16, 4)
# The paper's 3x3 convolutions, two a level; an image has three channels here and one there.
ENCODER = [
    *((3, 64), (64, 64)),
    *((64, 128), (128, 128)),
    *((128, 256), (256, 256)),
    *((256, 512), (512, 512)),
    *((512, 1024), (1024, 1024)),
]
DECODER = [*((1024, 512), (512, 512)), *((512, 256), (256, 256)), *((256, 128), (128, 128)), *((192, 64), (64, 64))]
UPSAMPLING = [(1024, 512), (512, 256), (256, 128), (128, 128)]


def small() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL)


def test_layers_are_the_papers() -> None:
    with torch.device("meta"):
        network = UNet()
    shapes = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(o, i, 3, 3) for i, o in ENCODER + DECODER] + [(1, 64, 1, 1)]
    upsampling = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert upsampling == [(i, o, 2, 2) for i, o in UPSAMPLING]
    assert [m.kernel_size for m in network.modules() if isinstance(m, nn.MaxPool2d)] == [2] * 4
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout) and m.p > 0] == []


def test_number_of_parameters() -> None:
    """Weights and biases of convolutions, gain and offset of the normalisation behind each 3x3 one."""
    with torch.device("meta"):
        network = UNet()
    convolutions = sum(9 * i * o + o for i, o in ENCODER + DECODER)
    upsampling = sum(4 * i * o + o for i, o in UPSAMPLING)
    normalisation = sum(2 * o for _, o in ENCODER + DECODER)
    assert sum(9 * i * o + o for i, o in ENCODER) == 18_843_200
    assert sum(p.numel() for p in network.parameters()) == convolutions + upsampling + normalisation + 65


def test_the_deepest_features_are_a_sixteenth_of_the_image() -> None:
    network = small()
    shapes = []
    network.unet.down_4.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    network(images(1, 3, 64, 96))
    assert shapes == [(1, 16, 4, 6)]


@pytest.mark.parametrize("size", [(32, 32), (45, 61), (64, 33)])
def test_any_size_from_32_pixels_gives_probabilities_of_the_same_size(size: tuple[int, int]) -> None:
    network = small()
    for training in (True, False):
        with torch.no_grad():
            maps = network.train(training)(images(2, 3, *size))
        assert maps.shape == (2, 1, *size)
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert maps.std() > 0


def test_smaller_images_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        small().eval()(images(1, 3, 31, 31))


def test_a_new_network_is_not_saturated() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        maps = UNet()(images(1, 3, 64, 64))
    assert maps.min() > 0.05
    assert maps.max() < 0.95


def test_gradients_do_not_depend_on_how_a_batch_is_divided() -> None:
    network = small().train()
    batch = images(3, 3, 45, 61) * torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1, 1)
    together = network(batch)
    together.sum().backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    for t, image in enumerate(batch):
        alone = network(image[None])
        torch.testing.assert_close(alone, together[t : t + 1])
        alone.sum().backward()
    for parameter, wanted in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-2, rtol=1e-3)


def test_training_and_evaluation_are_the_same() -> None:
    network = small()
    image = images(2, 3, 45, 61)
    with torch.no_grad():
        assert torch.equal(network.train()(image), network.eval()(image))


def test_a_bright_square_comes_out_where_it_is() -> None:
    assert learn_bright_square(small(), steps=30) > 0.97


def test_scripted_network_gives_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UNet(SMALL, method="unet").eval()
    assert network.method == "unet"
    assert_scripted_gives_the_same(network, tmp_path, [(45, 61), (64, 32)])


def test_maps_are_float32_in_autocast() -> None:
    network = small().eval()
    nn.init.zeros_(network.unet.final_conv.weight)
    nn.init.constant_(network.unet.final_conv.bias, -12.0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network(images(1, 3, 32, 32))
    # 1 / (1 + e^12); in bfloat16 it would have 3 digits only
    torch.testing.assert_close(maps, torch.full((1, 1, 32, 32), 6.1441746e-06), rtol=1e-5, atol=0)


def test_refuses_features_that_are_not_six() -> None:
    with pytest.raises(ValueError, match="6"):
        UNet((4, 8))
