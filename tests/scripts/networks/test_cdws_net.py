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

"""CDWSNet against torchvision's VGG16, and networks of weights set by hand whose output is known on paper."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from monai.networks import copy_model_state
from networks import assert_scripted_gives_the_same, images
from scripts.losses.cdws import CDWSLoss
from scripts.networks import CDWSNet, WeightedFusion, load_trunk_weights
from scripts.networks.map_network import trained_as
from scripts.runtime.errors import InputError
from torch import nn
from torchvision.models import vgg16

SHARED_WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "weights" / "vgg16_stages123_imagenet.pt"
IMAGENET_FILE = "vgg16-397923af.pth"  # as torchvision names it
STAGE_ENDS = (4, 9, 16, 23, 30)  # where torchvision's features begin to pool
# The corner pixel of a 4x4 cell of ones has 0.625^2 = 0.39 after upsampling, its neighbour outside 0.375.
SHOWN = 0.38
FUSION_WEIGHTS = {1: (1.0,), 2: (0.5, 0.5), 3: (0.2, 0.35, 0.45), 4: (0.25,) * 4, 5: (0.2,) * 5}


def torchvision_features() -> nn.Sequential:
    """VGG16's features without memory or values, as its classifier is large."""
    with torch.device("meta"):
        return vgg16(weights=None).features


def random_sides(network: CDWSNet) -> CDWSNet:
    """The network with sides and fusion that differ, since those of a new one are zeros."""
    with torch.no_grad():
        for side in network.sides:
            side.weight.normal_(std=0.1)
            side.bias.normal_()
        network.fusion.logits.normal_()
    return network


def pass_through(stages: int = 3, gain: float = 1.0, bias: float = 0.0) -> CDWSNet:
    """A network whose trunk hands the red channel on, and whose sides are sigmoid(gain red + bias)."""
    network = CDWSNet(stages=stages, fusion_weights=FUSION_WEIGHTS[stages])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for layer in network.features:
            if isinstance(layer, nn.Conv2d):
                layer.weight[0, 0, 1, 1] = 1.0
        for side in network.sides:
            side.weight[0, 0] = gain
            side.bias.fill_(bias)
    return network


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_trunk_has_torchvisions_names_and_shapes(stages: int) -> None:
    network = CDWSNet(stages=stages, fusion_weights=FUSION_WEIGHTS[stages])
    trunk = {k: v.shape for k, v in network.state_dict().items() if k.startswith("features.")}
    expected = torchvision_features()[: STAGE_ENDS[stages - 1]].state_dict(prefix="features.")
    assert trunk == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize("stages", [3, 5])
def test_maps_are_the_probabilities_of_torchvisions_stages_before_the_pool(stages: int) -> None:
    torch.manual_seed(0)
    network = random_sides(CDWSNet(stages=stages, fusion_weights=FUSION_WEIGHTS[stages])).eval()
    trunk = torchvision_features()[: STAGE_ENDS[stages - 1]].to_empty(device="cpu")
    trunk.load_state_dict(network.features.state_dict())
    image = images(1, 3, 24, 20)
    expected = []
    with torch.no_grad():
        for end, side in zip(STAGE_ENDS, network.sides, strict=False):
            features = trunk[:end](image)  # ends with the ReLU
            probability = (torch.einsum("bchw,c->bhw", features, side.weight[0, :, 0, 0]) + side.bias).sigmoid()
            expected.append(F.interpolate(probability[:, None], (24, 20), mode="bilinear"))
        weights = torch.tensor(FUSION_WEIGHTS[stages]).view(1, -1, 1, 1)
        sides = torch.cat(expected, dim=1)
        torch.testing.assert_close(network.maps(image)[:, 1:], sides)
        torch.testing.assert_close(network(image), (weights * sides).sum(1, keepdim=True))


def test_probabilities_are_upsampled_and_not_logits() -> None:
    network = pass_through(stages=2, gain=2.0, bias=-1.0)
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, :, 2:] = 3.0  # the second stage sees the columns 0, 3
    low, high = torch.sigmoid(torch.tensor([-1.0, 5.0])).tolist()
    row = [low, 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high, high]  # cell centres at 0.5 and 2.5
    torch.testing.assert_close(network.maps(image)[0, 2], torch.tensor([row] * 4))


def test_negative_features_are_cut_off_before_the_side() -> None:
    maps = pass_through(gain=1.0).maps(torch.full((1, 3, 4, 4), -2.0))
    torch.testing.assert_close(maps, torch.full((1, 4, 4, 4), 0.5))  # sigmoid(relu(-2)); without ReLU 0.119


def test_a_bright_square_shows_up_at_its_place_on_every_map() -> None:
    image = torch.zeros(1, 3, 32, 48)
    image[0, 0, 4:12, 24:44] = 1.0  # edges on the cells of the deepest stage, off the middle in both axes
    expected = torch.zeros(32, 48, dtype=torch.bool)
    expected[4:12, 24:44] = True
    maps = pass_through(gain=40.0, bias=-20.0).maps(image)[0]
    for shown in maps:
        assert torch.equal(shown > SHOWN, expected)


def test_pooling_takes_the_maximum_of_a_cell() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, 1, 6] = 1.0  # one pixel: the 2x2 cell of rows 0-1, columns 6-7; and the 4x4 cell 0-3, 4-7
    maps = pass_through(gain=40.0, bias=-20.0).maps(image)[0]
    assert maps[1].gt(SHOWN).nonzero().tolist() == [[1, 6]]
    assert maps[2].gt(SHOWN).nonzero().tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]
    assert maps[3].gt(SHOWN).sum().item() == 16
    assert maps[3, :4, 4:].gt(SHOWN).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (4, 7), (33, 500), (501, 32)])
def test_any_size_from_four_pixels_gives_probabilities_of_the_same_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = random_sides(CDWSNet())
    with torch.no_grad():
        training = network.train()(images(2, 3, *size))
        evaluation = network.eval()(images(2, 3, *size))
    assert training.shape == (2, 4, *size)
    assert evaluation.shape == (2, 1, *size)
    for maps in (training, evaluation):
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert maps.std() > 0


def test_images_of_a_batch_do_not_influence_one_another() -> None:
    torch.manual_seed(0)
    network = random_sides(CDWSNet()).train()
    batch = images(3, 3, 12, 8)
    alone = torch.cat([network(image[None]) for image in batch])
    torch.testing.assert_close(network(batch), alone)


def test_new_network_says_one_half_and_fuses_by_the_plain_mean() -> None:
    torch.manual_seed(0)
    network = CDWSNet()
    assert torch.equal(network(images(1, 3, 8, 8)), torch.full((1, 4, 8, 8), 0.5))
    logits = network.fusion.logits.detach().clone()
    random_sides(network)
    with torch.no_grad():
        network.fusion.logits.copy_(logits)
    maps = network(images(1, 3, 8, 8))
    torch.testing.assert_close(maps[:, 0], maps[:, 1:].mean(dim=1))


def test_fusion_is_learned_in_training_and_fixed_in_evaluation() -> None:
    fusion = WeightedFusion((0.2, 0.35, 0.45))
    with torch.no_grad():
        fusion.logits.copy_(torch.tensor([1.0, 2.0, 5.0]).log() + 7)  # weights 1/8, 2/8, 5/8
    sides = torch.tensor([0.8, 0.4, 0.1]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    trained, fixed = fusion.train()(sides), fusion.eval()(sides)
    torch.testing.assert_close(trained, torch.full((2, 1, 4, 5), 0.8 / 8 + 0.8 / 8 + 0.5 / 8))
    torch.testing.assert_close(fixed, torch.full((2, 1, 4, 5), 0.16 + 0.14 + 0.045))


def test_test_weights_are_the_constructors_and_not_the_checkpoints() -> None:
    first = pass_through()
    second = CDWSNet(fusion_weights=(1.0, 0.0, 0.0))
    second.load_state_dict(first.state_dict())
    image = images(1, 3, 8, 8)
    torch.testing.assert_close(second.eval()(image), first.maps(image)[:, 1:2])


# Table I of the paper: receptive field and stride of conv1_2, conv2_2, conv3_3, conv4_3 and conv5_3.
TABLE_I = [(5, 1), (14, 2), (40, 4), (92, 8), (196, 16)]


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_receptive_fields_and_strides_are_those_of_table_i(stages: int) -> None:
    network = CDWSNet(stages, [1 / stages] * stages)
    assert network.receptive_fields() == {f"side {t}": row for t, row in enumerate(TABLE_I[:stages], start=1)}
    assert CDWSNet(stages, deep_supervision=False).receptive_fields() == {"map": TABLE_I[stages - 1]}


@pytest.mark.parametrize(("stage", "field", "stride"), [(t, *row) for t, row in enumerate(TABLE_I, start=1)])
def test_a_feature_depends_on_just_the_pixels_of_its_receptive_field(stage: int, field: int, stride: int) -> None:
    """A second method: which pixels the gradient of one feature reaches, with weights that let everything through."""
    network = CDWSNet(stage, [1 / stage] * stage)
    for module in network.features:
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    network.features = torch.nn.Sequential(
        *(torch.nn.AvgPool2d(2) if isinstance(m, torch.nn.MaxPool2d) else m for m in network.features)
    )
    size = 2 * field + 4 * stride
    image = torch.ones(1, 3, size, 24, requires_grad=True)  # along one axis; a narrow image is enough
    features = network.features(image)
    middle = features.shape[2] // 2
    reached = []
    for row in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(features[0, 0, row, 0], image, retain_graph=True)
        reached.append(gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten())
    assert len(reached[0]) == int(reached[0][-1] - reached[0][0]) + 1 == field
    assert int(reached[1][0] - reached[0][0]) == stride


def test_without_deep_supervision_there_is_one_map_the_deepest() -> None:
    torch.manual_seed(0)
    full = random_sides(CDWSNet())
    single = CDWSNet(deep_supervision=False)
    single.features.load_state_dict(full.features.state_dict())
    single.sides[0].load_state_dict(full.sides[2].state_dict())
    image = images(2, 3, 17, 12)
    for training in (True, False):
        torch.testing.assert_close(single.train(training)(image), full.maps(image)[:, 3:])
    assert {name for name, _ in single.named_parameters()} == {
        name for name, _ in full.named_parameters() if name.startswith("features.")
    } | {"sides.0.weight", "sides.0.bias"}
    scripted = torch.jit.script(single)
    torch.testing.assert_close(scripted(image), single(image))


def test_a_state_dict_of_another_method_is_refused_by_whatever_loads_it() -> None:
    state = CDWSNet(method="dws").state_dict()
    for strict in (True, False):
        CDWSNet(method="dws").load_state_dict(state, strict=strict)
        CDWSNet().load_state_dict(state, strict=strict)  # a network without a name takes any
        with pytest.raises(InputError, match="trained as 'dws', but the settings are those of 'cdws with superpixels'"):
            CDWSNet(method="cdws with superpixels").load_state_dict(state, strict=strict)
    with pytest.raises(InputError, match="trained as 'dws'"):
        copy_model_state(CDWSNet(method="cdws"), state)


def test_weights_without_a_method_load_into_any() -> None:
    state = CDWSNet(method="dws").state_dict()
    del state["_extra_state"]
    network = CDWSNet(method="cdws")
    network.load_state_dict(state)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
    network.load_state_dict(CDWSNet().state_dict())


def test_the_method_survives_a_file(tmp_path: Path) -> None:
    torch.save(CDWSNet(method="cdws with superpixels").state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    with pytest.raises(InputError, match="trained as 'cdws with superpixels', but the settings are those of 'cdws'"):
        CDWSNet(method="cdws").load_state_dict(state)


def test_weights_of_another_size_are_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    state = CDWSNet(method="cdws").for_size([112, 96]).state_dict()
    assert trained_as(state) == ("cdws", (112, 96))
    for same in (CDWSNet(), CDWSNet().for_size((112, 96))):
        same.load_state_dict(state)
    CDWSNet().for_size((500, 500)).load_state_dict(CDWSNet().state_dict())  # of no known size
    assert not caplog.records
    other = CDWSNet().for_size((500, 500))
    other.load_state_dict(state)
    assert "112x96" in caplog.text
    assert '--spatial_size "[112,96]"' in caplog.text
    assert trained_as(other.state_dict())[1] == (500, 500)  # what it is trained at from now on


def test_an_average_over_sites_keeps_method_and_size() -> None:
    states = [CDWSNet(method="cdws").for_size((500, 500)).state_dict() for _ in range(3)]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float32)
    averaged = sum(w * s["_extra_state"].float() for w, s in zip(weights, states, strict=True))
    assert trained_as({"_extra_state": averaged}) == ("cdws", (500, 500))


def test_scripted_network_gives_the_same_in_both_modes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_scripted_gives_the_same(random_sides(CDWSNet()), tmp_path, [(9, 14)], modes=[True, False])


def test_after_one_step_every_parameter_is_reached() -> None:
    """In the first step the zeros of the sides keep the trunk and the fusion out of it."""
    torch.manual_seed(0)
    network = CDWSNet().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    target = torch.tensor([[1.0, 0.2], [0.0, float("nan")]])
    for _ in range(2):
        optimizer.zero_grad()
        CDWSLoss()(network(images(2, 3, 8, 8)), target).backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if not p.grad.abs().max() > 0] == []


def test_maps_are_float32_in_autocast() -> None:
    network = pass_through(gain=-1.0)
    image = torch.full((1, 3, 4, 4), 12.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network(image)
    assert maps.dtype == torch.float32
    # 1 / (1 + e^12); in bfloat16 it would have 3 digits only
    torch.testing.assert_close(maps, torch.full((1, 4, 4, 4), 6.1441746e-06), rtol=1e-5, atol=0)


@pytest.mark.parametrize("extra", [False, True], ids=["exact trunk", "full VGG16"])
def test_pretrained_weights_from_a_file(tmp_path: Path, extra: bool) -> None:
    source = CDWSNet(stages=1, fusion_weights=(1.0,))
    state = {k: v for k, v in source.state_dict().items() if k.startswith("features.")}
    if extra:
        state |= {"features.28.weight": torch.zeros(512, 512, 3, 3), "classifier.6.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "vgg.pt")
    network = CDWSNet(stages=1, fusion_weights=(1.0,), pretrained=str(tmp_path / "vgg.pt"))
    for loaded, wanted in zip(network.features.parameters(), source.features.parameters(), strict=True):
        assert torch.equal(loaded, wanted)


def test_loading_the_trunk_leaves_sides_and_fusion(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = random_sides(CDWSNet())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.save({k: v + 1 for k, v in before.items()}, tmp_path / "state.pt")
    load_trunk_weights(network, str(tmp_path / "state.pt"))
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.startswith("features.")}


def small_state(**changes: object) -> dict[str, object]:
    names = ("features.0.weight", "features.0.bias", "features.2.weight", "features.2.bias")
    shapes = ((64, 3, 3, 3), (64,), (64, 64, 3, 3), (64,))
    state = {name: torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    return {k: v for k, v in (state | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (small_state(**{"features.2.bias": None}), "lack 'features.2.bias'"),
        ({"state_dict": small_state()}, "lack 'features.0.bias'"),
        ({}, "lack 'features.0.bias'"),
        (small_state(**{"features.0.weight": torch.ones(64, 1, 3, 3)}), r"don't fit VGG16: .*\[64, 1, 3, 3\]"),
        (small_state(**{"features.0.weight": 3}), "don't fit VGG16"),
        ([torch.ones(3)], "holds a list, not a state dict"),
        (torch.ones(3), "holds a Tensor, not a state dict"),
        (b"garbage", "not a state dict that PyTorch can read"),
        (b"", "not a state dict that PyTorch can read"),
        (b"\x80", "not a state dict that PyTorch can read"),
        (b"0", "not a state dict that PyTorch can read"),  # unpickling pops from an empty stack: IndexError
        (b"PK\x03\x04 half a zip", "not a state dict that PyTorch can read"),
    ],
)
def test_refuses_a_file_of_no_use(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=f"(?s){path}.*{message}"):
        CDWSNet(stages=1, fusion_weights=(1.0,), pretrained=str(path))


def test_deeper_stages_that_a_file_lacks_stay_random_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(small_state(), tmp_path / "one_stage.pt")
    network = CDWSNet(pretrained=str(tmp_path / "one_stage.pt"))
    assert torch.equal(network.features[2].weight, torch.ones(64, 64, 3, 3))
    assert network.features[5].weight.std() > 0
    assert f"'{tmp_path}/one_stage.pt' end with stage 1; stages 2 to 3 are random" in caplog.text


def test_a_hole_in_the_middle_of_a_file_is_no_missing_stage(tmp_path: Path) -> None:
    state = {k: v for k, v in CDWSNet().state_dict().items() if k.startswith("features.")}
    del state["features.5.weight"]
    torch.save(state, tmp_path / "hole.pt")
    with pytest.raises(InputError, match=r"lack 'features\.5\.weight'"):
        CDWSNet(pretrained=str(tmp_path / "hole.pt"))


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no pretrained weights '{tmp_path}/none.pt'; give 'imagenet', 'random', or"):
        CDWSNet(pretrained=str(tmp_path / "none.pt"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and an empty cache of torch, whose path it is."""

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache


def test_imagenet_offline_names_both_remedies(offline: Path) -> None:
    with pytest.raises(InputError) as caught:
        CDWSNet(pretrained="imagenet")
    message = str(caught.value)
    assert "no route to host" in message
    assert f"put https://download.pytorch.org/models/{IMAGENET_FILE} into '{offline / IMAGENET_FILE}'" in message
    assert "give a file of VGG16 weights by --pretrained PATH" in message


def test_imagenet_from_torchvisions_cache_needs_no_network(offline: Path) -> None:
    state = {k: v + 0.5 for k, v in small_state().items()}
    torch.save(state, offline / IMAGENET_FILE)
    network = CDWSNet(stages=1, fusion_weights=(1.0,), pretrained="imagenet")
    assert torch.equal(network.features[2].weight, torch.full((64, 64, 3, 3), 1.5))


@pytest.mark.parametrize("content", [b"", b"garbage", b"0"])
def test_damaged_file_in_torchvisions_cache_is_named(offline: Path, content: bytes) -> None:
    (offline / IMAGENET_FILE).write_bytes(content)
    with pytest.raises(InputError, match=f"into '{offline / IMAGENET_FILE}', or give a file"):
        CDWSNet(pretrained="imagenet")


@pytest.mark.skipif(not SHARED_WEIGHTS.exists(), reason="shared/weights is not there")
def test_the_shared_imagenet_weights_load() -> None:
    network = CDWSNet(pretrained=str(SHARED_WEIGHTS))
    published = torch.load(SHARED_WEIGHTS, weights_only=True)
    assert torch.equal(network.features[14].weight, published["features.14.weight"])
    assert network.features[0].bias.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0, "fusion_weights": ()}, "stages must be a whole number from 1 to 5; got 0"),
        ({"stages": 6, "fusion_weights": (1 / 6,) * 6}, "stages must be a whole number from 1 to 5; got 6"),
        ({"stages": 2}, r"fusion_weights must be a list of 2 numbers, .*; got \(0.2, 0.35, 0.45\)"),
        ({"fusion_weights": (0.5, 0.5)}, r"fusion_weights must be a list of 3 numbers, .*; got \(0.5, 0.5\)"),
        ({"fusion_weights": (0.2, 0.3, 0.4)}, r"non-negative and sum to 1, got \[0.2, 0.3, 0.4\]"),
        ({"fusion_weights": (-0.2, 0.7, 0.5)}, r"non-negative and sum to 1, got \[-0.2, 0.7, 0.5\]"),
    ],
)
def test_refuses_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CDWSNet(**options)


def test_dropout_hides_features_from_the_sides_in_training_alone() -> None:
    """The sides see nothing, sigmoid(bias), or the red twice as bright, sigmoid(2 gain red + bias)."""
    network = pass_through(gain=1.0, bias=-1.0)
    hiding = CDWSNet(dropout=0.5)
    hiding.load_state_dict(network.state_dict())
    image = torch.ones(1, 3, 16, 16)
    torch.testing.assert_close(hiding.eval()(image), network.eval()(image))
    torch.manual_seed(0)
    seen = {round(v, 4) for _ in range(20) for v in hiding.train()(image)[0, 1:, 8, 8].tolist()}
    assert seen == {round(torch.sigmoid(torch.tensor(v)).item(), 4) for v in (-1.0, 1.0)}


def test_pretrained_weights_fit_any_number_of_channels(tmp_path) -> None:
    """So many equal channels give the maps of the same grey as RGB, and each channel has a part in them."""
    torch.manual_seed(0)
    rgb = CDWSNet()
    torch.save({k: v for k, v in rgb.state_dict().items() if k.startswith("features")}, tmp_path / "vgg.pt")
    grey = torch.randn(1, 1, 12, 12)
    for channels in (1, 5):
        network = CDWSNet(pretrained=str(tmp_path / "vgg.pt"), in_channels=channels)
        found = network.features(grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found, rgb.features(grey.expand(-1, 3, -1, -1)))
        weights = network.features[0].weight
        assert weights.shape == (64, channels, 3, 3)
        assert (weights == weights[:, :1]).all()
