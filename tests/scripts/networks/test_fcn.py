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

"""FCN against the published layer shapes, torchvision's VGG16, and scores set by hand whose map is known on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import assert_scripted_gives_the_same, images
from scripts.networks import FCN
from scripts.networks.fcn import BilinearUpsampling, load_head_weights
from scripts.runtime.errors import InputError
from torch import nn
from torchvision.models import vgg16

WIDTH = 8  # of the head, as the published one is 4096 wide
TRUNK_PARAMETERS = 14_714_688
FINAL = {32: "upscore", 16: "upscore16", 8: "upscore8"}


def random_scores(network: FCN) -> FCN:
    """The network with scores that differ, since those of a new one are zeros."""
    with torch.no_grad():
        for name, layer in network.named_children():
            if name.startswith("score_"):
                layer.weight.normal_(std=0.1)
                layer.bias.normal_()
    return network


def pass_through(stride: int, score: str) -> FCN:
    """A network in which just one score is not zero: the largest red value of its cell."""
    network = FCN(stride, head_channels=WIDTH)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                module.weight[0, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1.0
        network.scales.fill_(1.0)
        for name, layer in network.named_children():
            if name.startswith("score_") and name != score:
                layer.weight.zero_()
    return network.eval()


def ramp(cells: int, height: int, width: int, corner: float) -> torch.Tensor:
    """A plane over the pixels that is 0.25 at `corner`, rises by 0.2 a row and 0.1 a column of so many pixels."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    return 0.25 + 0.2 * (rows - corner) / cells + 0.1 * (columns - corner) / cells


def published_shapes(stride: int) -> dict[str, tuple[int, ...]]:
    """The head's layers in the published prototxt files for the 20 classes of PASCAL VOC and background."""
    shapes: dict[str, tuple[int, ...]] = {
        "fc6.weight": (4096, 512, 7, 7),
        "fc6.bias": (4096,),
        "fc7.weight": (4096, 4096, 1, 1),
        "fc7.bias": (4096,),
        "score_fr.weight": (21, 4096, 1, 1),
        "score_fr.bias": (21,),
    }
    pool4 = {"upscore2.weight": (21, 21, 4, 4), "score_pool4.weight": (21, 512, 1, 1), "score_pool4.bias": (21,)}
    pool3 = {"upscore_pool4.weight": (21, 21, 4, 4), "score_pool3.weight": (21, 256, 1, 1), "score_pool3.bias": (21,)}
    return {
        32: shapes | {"upscore.weight": (21, 21, 64, 64)},
        16: shapes | pool4 | {"upscore16.weight": (21, 21, 32, 32)},
        8: shapes | pool4 | pool3 | {"upscore8.weight": (21, 21, 16, 16)},
    }[stride]


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_layers_are_the_published_ones(stride: int) -> None:
    with torch.device("meta"):
        network = FCN(stride, num_classes=21)
        trunk = vgg16(weights=None).features
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    head = {name: shape for name, shape in shapes.items() if not name.startswith("features.")}
    assert head == published_shapes(stride)
    expected = {f"features.{name}": tuple(p.shape) for name, p in trunk.named_parameters()}
    assert {name: shape for name, shape in shapes.items() if name not in head} == expected


@pytest.mark.parametrize(
    ("stride", "head"),
    [
        (32, 102_764_544 + 16_781_312 + 86_037 + 1_806_336),
        (16, 102_764_544 + 16_781_312 + 86_037 + 7_056 + 10_773 + 451_584),
        (8, 102_764_544 + 16_781_312 + 86_037 + 7_056 + 10_773 + 7_056 + 5_397 + 112_896),
    ],
)
def test_number_of_parameters_is_the_published_one(stride: int, head: int) -> None:
    with torch.device("meta"):
        network = FCN(stride, num_classes=21)
    assert sum(p.numel() for p in network.parameters()) == TRUNK_PARAMETERS + head


def test_scores_of_500_pixels_are_16_cells_as_published() -> None:
    with torch.device("meta"):
        network = FCN(8, num_classes=21)
        shapes = {}
        for name, layer in network.named_children():
            layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape)}))
        maps = network.maps(torch.zeros(1, 3, 500, 500))
    assert shapes["score_fr"] == (1, 21, 16, 16)
    assert shapes["score_pool4"] == (1, 21, 32, 32)
    assert shapes["score_pool3"] == (1, 21, 63, 63)
    assert maps.shape == (1, 21, 500, 500)


@pytest.mark.parametrize(("factor", "groups"), [(2, 1), (8, 3), (32, 1)])
def test_upsampling_is_bilinear_interpolation_of_each_channel(factor: int, groups: int) -> None:
    scores = images(2, 3, 5, 4)
    upsampled = BilinearUpsampling(3, factor, groups)(scores)
    expected = F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    assert upsampled.shape == expected.shape
    inside = (..., slice(factor // 2, -factor // 2), slice(factor // 2, -factor // 2))
    torch.testing.assert_close(upsampled[inside], expected[inside])


def test_upsampling_fades_to_zero_outside_of_the_map() -> None:
    """A cell of 1 by factor 2 has the triangle 1/4, 3/4, 3/4, 1/4, of which the outer ones are cut off."""
    upsampled = BilinearUpsampling(1, 2)(torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(upsampled, torch.full((1, 1, 2, 2), 9 / 16))


@pytest.mark.parametrize("factor", [0, 3, -2])
def test_upsampling_refuses_a_factor_without_a_middle(factor: int) -> None:
    with pytest.raises(ValueError, match=f"factor must be a positive even number, got {factor}"):
        BilinearUpsampling(1, factor)


@pytest.mark.parametrize("size", [(160, 192), (157, 131)])
@pytest.mark.parametrize(
    ("stride", "score", "cell"),
    [
        (32, "score_fr", 32),
        (16, "score_fr", 32),
        (16, "score_pool4", 16),
        (8, "score_fr", 32),
        (8, "score_pool4", 16),
        (8, "score_pool3", 8),
    ],
)
def test_the_score_of_a_cell_is_at_the_cells_centre(stride: int, score: str, cell: int, size: tuple[int, int]) -> None:
    """Cells that rise by a constant step give a plane: bilinear interpolation keeps it however often it is done."""
    height, width = size
    cells = ramp(cells=1, height=height // cell + 1, width=width // cell + 1, corner=0)
    image = torch.zeros(1, 3, height, width)
    image[0, 0] = cells.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    with torch.no_grad():
        maps = pass_through(stride, score).maps(image)
    expected = ramp(cells=cell, height=height, width=width, corner=(cell - 1) / 2)
    inside = (slice(32, height - 32), slice(32, width - 32))  # at the border scores fade to zero
    torch.testing.assert_close(maps[0, 0].logit()[inside], expected[inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_the_map_of_a_flipped_image_is_the_flipped_map(stride: int) -> None:
    torch.manual_seed(0)
    network = random_scores(FCN(stride, head_channels=WIDTH)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(2, 3)) / 2)
        image = images(1, 3, 64, 96)
        maps = network(image)
        torch.testing.assert_close(network(image.flip(2, 3)), maps.flip(2, 3))
    assert maps.std() > 0.01


@pytest.mark.parametrize("size", [(1, 3), (31, 33), (45, 61), (64, 32)])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_any_size_gives_probabilities_of_the_same_size(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = random_scores(FCN(stride, head_channels=WIDTH))
    for training in (True, False):
        with torch.no_grad():
            maps = network.train(training)(images(2, 3, *size))
        assert maps.shape == (2, 1, *size)
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert maps.unique().numel() > 1


def test_new_network_says_one_half() -> None:
    network = FCN(head_channels=WIDTH, num_classes=2)
    assert torch.equal(network(images(1, 3, 40, 33)), torch.full((1, 2, 40, 33), 0.5))
    assert network.map_names == ["class 0", "class 1"]


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_gradient_reaches_all_but_the_final_upsampling(stride: int) -> None:
    torch.manual_seed(0)
    network = random_scores(FCN(stride, head_channels=WIDTH)).train()
    network(images(2, 3, 64, 64)).square().mean().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name for name, _ in network.named_parameters()} - reached == {f"{FINAL[stride]}.weight"}


@pytest.mark.parametrize(("score", "last"), [("score_fr", 28), ("score_pool4", 21), ("score_pool3", 14)])
def test_each_score_alone_teaches_the_trunk(score: str, last: int) -> None:
    """From its own stage's last convolution, of torchvision's index, to the first."""
    network = pass_through(8, score)
    network(images(1, 3, 64, 64).abs()).mean().backward()
    reached = {
        index
        for index, layer in enumerate(network.features)
        if any(p.grad is not None and p.grad.any() for p in layer.parameters())
    }
    assert max(reached) == last
    assert min(reached) == 0


@pytest.mark.parametrize("layers", [("fc7",), ("fc6", "fc7")])
def test_negative_features_of_the_head_count_for_nothing(layers: tuple[str, ...]) -> None:
    """Neither behind fc7 nor behind fc6, where fc7 would make them positive."""
    network = pass_through(32, "score_fr")
    image = torch.ones(1, 3, 96, 96)
    with torch.no_grad():
        assert network(image)[0, 0, 48, 48].item() == pytest.approx(0.7310586)  # sigmoid(1)
        for layer in layers:
            getattr(network, layer).weight.neg_()
        assert network(image)[0, 0, 48, 48].item() == 0.5


def test_dropout_is_for_training() -> None:
    torch.manual_seed(0)
    network = random_scores(FCN(head_channels=WIDTH))
    image = images(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(network.train()(image), network(image))
        assert torch.equal(network.eval()(image), network(image))


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_scripted_network_gives_the_same(tmp_path: Path, stride: int) -> None:
    torch.manual_seed(0)
    network = random_scores(FCN(stride, head_channels=WIDTH, method="fcn")).eval()
    assert network.method == "fcn"
    assert_scripted_gives_the_same(network, tmp_path, [(45, 61), (64, 32)])


def test_maps_are_float32_in_autocast() -> None:
    network = FCN(32, head_channels=WIDTH).eval()
    nn.init.constant_(network.score_fr.bias, -12.0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network(torch.zeros(1, 3, 96, 96))
    # 1 / (1 + e^12); in bfloat16 it would have 3 digits only
    assert maps[0, 0, 48, 48].item() == pytest.approx(6.1441746e-06, rel=1e-5)


def classifier(width: int = WIDTH) -> dict[str, torch.Tensor]:
    """What a VGG16 with a narrow classifier has of it."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (width, 25088), "0.bias": (width,), "3.weight": (width, width), "3.bias": (width,)}
    return {f"classifier.{name}": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def test_fc6_and_fc7_compute_what_the_classifier_does() -> None:
    network = FCN(head_channels=WIDTH)
    state = classifier()
    load_head_weights(network, state, "state")
    features = images(2, 512, 7, 7)
    expected = F.linear(features.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"])
    # the kernel covers all features where it is centred; 25088 products, added in another order
    torch.testing.assert_close(network.fc6(features)[:, :, 3, 3], expected, rtol=1e-4, atol=1e-2)
    expected = F.linear(expected, state["classifier.3.weight"], state["classifier.3.bias"])
    torch.testing.assert_close(network.fc7(network.fc6(features))[:, :, 3, 3], expected, rtol=1e-4, atol=1e-2)


def first_stage() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {f"features.{k}": v.shape for k, v in vgg16(weights=None).features[:4].state_dict().items()}
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def test_pretrained_weights_from_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "vgg.pt"
    torch.save(first_stage() | classifier(), path)
    network = FCN(head_channels=WIDTH, pretrained=str(path))
    assert torch.equal(network.features[2].weight, torch.ones(64, 64, 3, 3))
    assert torch.equal(network.fc6.weight.flatten(), classifier()["classifier.0.weight"].flatten())
    assert torch.equal(network.fc7.bias, classifier()["classifier.3.bias"])
    assert network.score_fr.weight.abs().max() == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"The weights '{path}' end with stage 1; stages 2 to 5 are random."
    ]


def test_a_full_trunk_has_no_missing_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FCN(head_channels=WIDTH)
    trunk = {k: v for k, v in source.state_dict().items() if k.startswith("features.")}
    torch.save(trunk | classifier(), tmp_path / "vgg.pt")
    network = FCN(head_channels=WIDTH, pretrained=str(tmp_path / "vgg.pt"))
    for loaded, wanted in zip(network.features.parameters(), source.features.parameters(), strict=True):
        assert torch.equal(loaded, wanted)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "'x.pt' have no classifier; fc6 and fc7 are random"),
        (classifier(width=5), f"'x.pt' has 5 channels and the network's head {WIDTH}; fc6 and fc7 are random"),
    ],
)
def test_a_head_without_weights_stays_random_with_a_warning(
    caplog: pytest.LogCaptureFixture, state: dict, message: str
) -> None:
    network = FCN(head_channels=WIDTH)
    before = network.fc6.weight.clone()
    load_head_weights(network, state, "x.pt")
    assert torch.equal(network.fc6.weight, before)
    assert before.std() > 0
    assert message in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier.3.weight": None}, r"'x.pt' lack 'classifier\.3\.weight'"),
        ({"classifier.0.weight": torch.ones(WIDTH, 512)}, "'x.pt' don't fit VGG16: .*shape"),
        ({"classifier.3.bias": torch.ones(WIDTH + 1)}, "'x.pt' don't fit VGG16: .*size mismatch for bias"),
        ({"classifier.0.weight": 3}, "'x.pt' don't fit VGG16"),
        ({"classifier.0.bias": 3}, "'x.pt' don't fit VGG16"),
    ],
)
def test_refuses_a_classifier_of_no_use(changes: dict, message: str) -> None:
    state = {k: v for k, v in (classifier() | changes).items() if v is not None}
    with pytest.raises(InputError, match=message):
        load_head_weights(FCN(head_channels=WIDTH), state, "x.pt")


@pytest.mark.parametrize("stride", [4, 64, 0])
def test_refuses_another_stride(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride must be 32, 16 or 8, got {stride}"):
        FCN(stride, head_channels=WIDTH)


def test_the_size_of_the_trunks_features_does_not_matter(tmp_path: Path) -> None:
    """A factor on the features of the third stage, which ImageNet makes large, goes through to all scores."""
    torch.manual_seed(1)
    maps = []
    trunk = FCN(head_channels=WIDTH).features.state_dict(prefix="features.")
    for factor in (1.0, 100.0):
        larger = {k: v * factor if k.startswith("features.14.") else v for k, v in trunk.items()}
        torch.save(larger, tmp_path / "vgg.pt")
        torch.manual_seed(0)
        network = FCN(head_channels=WIDTH, pretrained=str(tmp_path / "vgg.pt"))
        torch.manual_seed(0)
        with torch.no_grad():
            maps.append(random_scores(network).eval().maps(images(1, 3, 45, 61)))
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-4)
    assert maps[0].std() > 0.005


def test_fc6_is_the_convolution_of_its_name() -> None:
    """The published layers applied one by one, on a size that pooling rounds up."""
    torch.manual_seed(0)
    network = random_scores(FCN(32, head_channels=WIDTH)).eval()
    image = images(1, 3, 70, 100)
    with torch.no_grad():
        network.fc6.bias.normal_()
        x = network.fc7(network.fc6(network.features(image)).relu()).relu()
        scores = network.upscore(network.score_fr(x * network.scales[0]))[..., :70, :100]
        torch.testing.assert_close(network(image), scores.sigmoid())
