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

"""DCAN: heads set by hand whose maps are known on paper, and the decision from objects and contours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import assert_scripted_gives_the_same, images
from scripts.networks import DCAN
from torch import nn

OBJECT_NAMES = ["fusion", "level 8", "level 16", "level 32"]
CONTOUR_NAMES = ["contour", "contour level 8", "contour level 16", "contour level 32"]


def scores(network: DCAN) -> list[nn.Conv2d]:
    """The classifying convolutions: objects' from shallow to deep, then contours'."""
    return [layer for name, layer in network.named_modules() if name.endswith(".score")]


def random_scores(network: DCAN) -> DCAN:
    """The network with scores that differ, since those of a new one are zeros."""
    with torch.no_grad():
        for score in scores(network):
            score.weight.normal_(std=0.1)
            score.bias.normal_()
    return network


def pass_through() -> DCAN:
    """A network whose scores are the largest red value of a cell."""
    network = DCAN()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                module.weight[0, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1.0
        for head in network.object_heads:
            head.scale.fill_(1.0)
    return network.eval()


@pytest.mark.parametrize(("contour", "names"), [(False, OBJECT_NAMES), (True, OBJECT_NAMES + CONTOUR_NAMES)])
@pytest.mark.parametrize("size", [(1, 3), (31, 33), (45, 61), (64, 32)])
def test_any_size_gives_the_named_maps_of_the_same_size(contour: bool, names: list[str], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = random_scores(DCAN(contour))
    assert network.map_names == names
    with torch.no_grad():
        training = network.train()(images(2, 3, *size))
        evaluation = network.eval()(images(2, 3, *size))
    assert training.shape == (2, len(names), *size)
    assert evaluation.shape == (2, 1, *size)
    for maps in (training, evaluation):
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert maps.unique().numel() > 1


def test_new_network_says_one_half() -> None:
    assert torch.equal(DCAN(contour=True)(images(1, 3, 40, 33)), torch.full((1, 8, 40, 33), 0.5))


@pytest.mark.parametrize("size", [(160, 192), (157, 131)])
@pytest.mark.parametrize(("level", "cell"), [(1, 8), (2, 16), (3, 32)])
def test_the_score_of_a_cell_is_at_the_cells_centre(level: int, cell: int, size: tuple[int, int]) -> None:
    """Cells that rise by 0.2 a row and 0.1 a column give a plane, 0.25 at the centre of the first."""
    height, width = size
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    image = torch.zeros(1, 3, height, width)
    image[0, 0] = 0.25 + 0.2 * (rows // cell) + 0.1 * (columns // cell)
    with torch.no_grad():
        maps = pass_through().maps(image)
    centre = (cell - 1) / 2
    expected = 0.25 + 0.2 * (rows - centre) / cell + 0.1 * (columns - centre) / cell
    inside = (slice(32, height - 32), slice(32, width - 32))  # at the border scores fade to zero
    torch.testing.assert_close(maps[0, level].logit()[inside], expected[inside], atol=1e-4, rtol=0)


def test_the_maps_of_a_flipped_image_are_the_flipped_maps() -> None:
    torch.manual_seed(0)
    network = random_scores(DCAN(contour=True)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(2, 3)) / 2)
        image = images(1, 3, 64, 96)
        maps = network.maps(image)
        torch.testing.assert_close(network.maps(image.flip(2, 3)), maps.flip(2, 3))
    assert maps.std(dim=(0, 2, 3)).min() > 1e-3


def test_the_fused_score_is_the_sum_of_the_levels() -> None:
    torch.manual_seed(0)
    network = random_scores(DCAN(contour=True)).train()
    with torch.no_grad():
        logits = network(images(1, 3, 40, 33)).double().logit()
    torch.testing.assert_close(logits[:, 0], logits[:, 1:4].sum(dim=1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits[:, 4], logits[:, 5:].sum(dim=1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("p_object", "p_contour", "decision"),
    [
        (0.9, 0.3, 0.7),  # an object
        (0.6, 0.2, 0.6),  # an object
        (0.9, 0.8, 0.2),  # a contour
        (0.4, 0.3, 0.4),  # background
    ],
)
def test_in_evaluation_the_contour_is_cut_out_of_the_object(p_object: float, p_contour: float, decision: float) -> None:
    network = DCAN(contour=True)
    for score, probability in ((scores(network)[1], p_object), (scores(network)[4], p_contour)):
        nn.init.constant_(score.bias, torch.tensor(probability).logit().item())
    image = images(1, 3, 8, 8)
    with torch.no_grad():
        training, evaluation, answer = network.train()(image), network.eval().maps(image), network(image)
    expected = torch.tensor([p_object, 0.5, p_object, 0.5, p_contour, 0.5, p_contour, 0.5])
    torch.testing.assert_close(training[0].mean(dim=(1, 2)), expected)
    torch.testing.assert_close(evaluation[:, :1], torch.full((1, 1, 8, 8), decision))
    assert torch.equal(evaluation[:, 1:], training[:, 1:])
    assert torch.equal(answer, evaluation[:, :1])


def test_without_contours_both_modes_have_the_same_first_map() -> None:
    torch.manual_seed(0)
    network = random_scores(DCAN())
    image = images(2, 3, 45, 61)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), network.train()(image)[:, :1])


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    network = random_scores(DCAN(contour=True)).train()
    network(images(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("contour", [False, True])
def test_scripted_network_gives_the_same_in_both_modes(tmp_path: Path, contour: bool) -> None:
    torch.manual_seed(0)
    network = random_scores(DCAN(contour, method="dcan"))
    assert network.method == "dcan"
    assert_scripted_gives_the_same(network, tmp_path, [(45, 61)], modes=[True, False])


def test_maps_are_float32_in_autocast() -> None:
    network = DCAN().eval()
    nn.init.constant_(scores(network)[0].bias, -12.0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network.maps(torch.zeros(1, 3, 32, 32))
    # 1 / (1 + e^12); in bfloat16 it would have 3 digits only
    torch.testing.assert_close(maps[:, :2], torch.full((1, 2, 32, 32), 6.1441746e-06), rtol=1e-5, atol=0)


def test_pretrained_weights_go_into_the_trunk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = DCAN()
    torch.save(source.state_dict(), tmp_path / "vgg.pt")
    network = DCAN(contour=True, pretrained=str(tmp_path / "vgg.pt"))
    for loaded, wanted in zip(network.features.parameters(), source.features.parameters(), strict=True):
        assert torch.equal(loaded, wanted)
    assert not torch.equal(network.object_heads[0].reduce.weight, source.object_heads[0].reduce.weight)
    assert caplog.records == []


def test_the_size_of_the_trunks_features_does_not_matter(tmp_path: Path) -> None:
    """A factor on the features of the third stage, which ImageNet makes large, goes through to all levels."""
    torch.manual_seed(1)
    maps = []
    trunk = DCAN().features.state_dict(prefix="features.")
    for factor in (1.0, 100.0):
        larger = {k: v * factor if k.startswith("features.14.") else v for k, v in trunk.items()}
        torch.save(larger, tmp_path / "vgg.pt")
        torch.manual_seed(0)
        network = DCAN(pretrained=str(tmp_path / "vgg.pt"))
        torch.manual_seed(0)
        with torch.no_grad():
            maps.append(random_scores(network).maps(images(1, 3, 45, 61)))
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-4)
    assert maps[0].std() > 0.005
