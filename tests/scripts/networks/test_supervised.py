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

"""FCN, DCAN and U-Net: parameters of the published networks, sizes, alignment, export."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scripts.networks import DCAN, FCN, MapNetwork, UNet
from scripts.networks.fcn import BilinearUpsampling

# Weights and biases of the published networks for PASCAL VOC's 21 classes, layer by layer.
TRUNK = 14_714_688  # VGG16's 13 convolutions
FC = 512 * 7 * 7 * 4096 + 4096 + 4096 * 4096 + 4096
SCORE_FR, SCORE_POOL4, SCORE_POOL3 = 4096 * 21 + 21, 512 * 21 + 21, 256 * 21 + 21
PUBLISHED = {
    32: TRUNK + FC + SCORE_FR + 21 * 21 * 64 * 64,
    16: TRUNK + FC + SCORE_FR + SCORE_POOL4 + 21 * 21 * (4 * 4 + 32 * 32),
    8: TRUNK + FC + SCORE_FR + SCORE_POOL4 + SCORE_POOL3 + 21 * 21 * (2 * 4 * 4 + 16 * 16),
}


def small_networks() -> list[MapNetwork]:
    return [*(FCN(s, head_channels=8) for s in (32, 16, 8)), DCAN(), DCAN(contour=True), UNet([4, 4, 4, 4, 4, 4])]


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_fcn_has_the_parameters_of_the_published_network(stride: int) -> None:
    with torch.device("meta"):
        network = FCN(stride, num_classes=21)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[stride]
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["fc6.weight"] == (4096, 512, 7, 7)
    assert shapes["fc7.weight"] == (4096, 4096, 1, 1)
    assert shapes["score_fr.weight"] == (21, 4096, 1, 1)
    final = {32: "upscore", 16: "upscore16", 8: "upscore8"}[stride]
    assert shapes[f"{final}.weight"] == (21, 21, 2 * stride, 2 * stride)
    fixed = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert fixed == [f"{final}.weight"]


def test_fcn_scores_500_pixels_on_16_cells() -> None:
    with torch.device("meta"):
        network = FCN(32, head_channels=8)
        assert network.fc6(network.features(torch.empty(1, 3, 500, 500))).shape == (1, 8, 16, 16)


@pytest.mark.parametrize("network", small_networks(), ids=lambda n: f"{type(n).__name__}{len(n.map_names)}")
@pytest.mark.parametrize("size", [(45, 61), (64, 32)])
def test_maps_are_probabilities_of_the_images_size_and_export(network: MapNetwork, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    maps = network.train()(image)
    assert maps.shape == (2, len(network.map_names), *size)
    assert maps.dtype == torch.float32
    assert 0 <= float(maps.min()) <= float(maps.max()) <= 1
    network.eval()
    with torch.no_grad():
        answer = network(image)
        assert answer.shape == (2, 1, *size)
        torch.testing.assert_close(torch.jit.script(network)(image), answer)
        torch.testing.assert_close(network(image[:1]), answer[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_upsampling_starts_as_bilinear_interpolation(factor: int) -> None:
    scores = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        upsampled = BilinearUpsampling(2, factor)(scores)
    expected = F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    inner = (..., slice(factor, -factor), slice(factor, -factor))  # beyond the map it takes zeros
    torch.testing.assert_close(upsampled[inner], expected[inner])


def test_contours_are_cut_out_of_the_answer_and_not_of_what_is_supervised() -> None:
    network = DCAN(contour=True)
    with torch.no_grad():
        network.object_heads[0].score.bias.fill_(2.0)
        network.contour_heads[1].score.bias.fill_(1.0)
    image = torch.zeros(1, 3, 32, 32)
    objects, contour = torch.sigmoid(torch.tensor(2.0)), torch.sigmoid(torch.tensor(1.0))
    trained = network.train()(image)
    torch.testing.assert_close(trained[:, 0], objects.expand(1, 32, 32))
    torch.testing.assert_close(trained[:, 4], contour.expand(1, 32, 32))
    torch.testing.assert_close(network.eval()(image)[:, 0], (1 - contour).expand(1, 32, 32))


def test_unet_has_ronnebergers_encoder() -> None:
    with torch.device("meta"):
        network = UNet()
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if "conv.weight" in name and p.ndim == 4]
    channels = [3, 64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]
    assert shapes[:10] == [(b, a, 3, 3) for a, b in pairwise(channels)]
