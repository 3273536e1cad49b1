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
"""Weights whose bytes have changed, or that are not finite, are refused wherever they are loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import CopyItemsd
from scripts.networks import DCAN, FCN, CDWSNet, MapNetwork, UNet
from scripts.networks.weights import read_state_dict
from scripts.runtime.errors import InputError
from scripts.training import checkpoints
from scripts.training.checkpoints import BestCheckpoint, NetworkLoader, read_checkpoint
from scripts.training.trainer import MeanLoss


def with_one_bit_changed(path: Path, tensor: torch.Tensor) -> Path:
    """The file with the lowest bit of the tensor's first number turned: a value that nobody would notice."""
    content = path.read_bytes()
    number = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert content.count(number) == 1
    at = content.index(number)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    return path


def saved(network: torch.nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def network() -> CDWSNet:
    torch.manual_seed(0)
    return CDWSNet()


def test_one_changed_bit_is_found_by_the_archives_checksum(network, tmp_path: Path) -> None:
    path = with_one_bit_changed(saved(network, tmp_path / "model.pt"), network.features[2].weight.detach())
    assert torch.load(path, weights_only=True)  # PyTorch itself notices nothing
    with pytest.raises(InputError, match=r"model\.pt' is damaged.* have changed since they were written"):
        NetworkLoader(CDWSNet(), str(path))(None)
    with pytest.raises(InputError, match=r"model\.pt' is not a state dict .* have changed since they were written"):
        CDWSNet(pretrained=str(path))


def test_weights_from_before_archives_are_read_as_published_weights_alone(network, tmp_path: Path) -> None:
    """torchvision's VGG16 is such a file. It has no checksums: a changed bit would be in the network without a word."""
    torch.save(network.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(CDWSNet(pretrained=str(tmp_path / "old.pt")).features[0].weight, network.features[0].weight)
    with pytest.raises(
        InputError, match=r"old\.pt' is damaged, .* without checksums: load it, and torch\.save it again"
    ):
        NetworkLoader(CDWSNet(), str(tmp_path / "old.pt"))(None)
    torch.save(torch.load(tmp_path / "old.pt", weights_only=True), tmp_path / "new.pt")
    NetworkLoader(CDWSNet(), str(tmp_path / "new.pt"))(None)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_weights_that_are_not_floating_point_are_refused(network, tmp_path: Path, dtype: torch.dtype) -> None:
    """PyTorch would take 0 for 0.3, and the real part of a complex number."""
    state = network.state_dict()
    name = str(dtype).removeprefix("torch.")
    for key in ("features.2.weight", "features.2.bias"):
        torch.save({**state, key: state[key].to(dtype)}, tmp_path / "model.pt")
        with pytest.raises(InputError, match=rf"model\.pt' can't be used here: its '{key}' \({name}\) is not floating"):
            NetworkLoader(CDWSNet(), str(tmp_path / "model.pt"))(None)
        with pytest.raises(InputError, match=rf"model\.pt' are not floating-point in '{key}' \({name}\)"):
            CDWSNet(pretrained=str(tmp_path / "model.pt"))
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        tmp_path / "model.pt",
    )
    half = CDWSNet()
    NetworkLoader(half, str(tmp_path / "model.pt"))(None)
    assert torch.equal(half.features[2].weight, network.features[2].weight.half().float())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bias_that_is_not_finite_is_refused(network, tmp_path: Path, value: float) -> None:
    with torch.no_grad():
        network.sides[1].bias[0] = value
        network.features[0].bias[3] = value
    path = saved(network, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt' can't be used here: its 'features\.0\.bias' has .* not finite"):
        NetworkLoader(CDWSNet(), str(path))(None)
    with pytest.raises(InputError, match=r"model\.pt' have values in 'features\.0\.bias' that are not finite"):
        CDWSNet(pretrained=str(path))
    torch.save({"model": network.state_dict()}, path)
    with pytest.raises(InputError, match="not finite"):
        NetworkLoader(CDWSNet(), str(path))(None)


def test_a_double_that_is_infinite_as_a_float_is_refused(network) -> None:
    state = network.state_dict()
    state["sides.0.bias"] = torch.tensor([-1e300], dtype=torch.float64)
    with pytest.raises(InputError, match=r"'sides\.0\.bias' has values that are not finite"):
        network.load_state_dict(state)


@pytest.mark.parametrize(
    "network", [CDWSNet(), FCN(8, head_channels=8), DCAN(), UNet([4, 4, 4, 4, 4, 4])], ids=lambda n: type(n).__name__
)
def test_every_network_refuses_them_whoever_loads_them(network: MapNetwork) -> None:
    """MONAI's export and MONAI Label's handler call `load_state_dict` themselves."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    last = [name for name, value in state.items() if value.is_floating_point()][-1]
    state[last].view(-1)[-1] = math.nan
    with pytest.raises(InputError, match="not finite"):
        network.load_state_dict(state)


class Logits(torch.nn.Module):
    """A map of four pixels, whatever the image."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.logit(torch.tensor(probabilities)).reshape(1, 1, 2, 2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.logits).expand(len(image), 1, 2, 2)


class Shifted(Logits):
    def shift(self, logits: float) -> None:
        with torch.no_grad():
            self.logits += logits


def best_of(network: Logits, path: Path, targets: list[list[float]]) -> torch.Tensor:
    """The probabilities of the checkpoint that a validation on images of these labels and areas writes."""
    items = [{"image": torch.zeros(1, 2, 2), "label": torch.tensor(target)} for target in targets]
    SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(items, batch_size=1),
        network,
        postprocessing=CopyItemsd("pred", names="probability"),
        key_val_metric={"constant": MeanLoss(lambda output: torch.ones(1))},
        val_handlers=[BestCheckpoint(path)],
    ).run()
    return torch.sigmoid(torch.load(path, weights_only=True)["logits"]).flatten()


def test_best_checkpoint_is_shifted_by_the_areas(tmp_path: Path) -> None:
    network = Shifted(0.9, 0.8, 0.3, 0.1)
    before = network.logits.detach().clone()
    # three of the four pixels are stated: 0.11 to 0.30 mark three, the middle of which is 0.21
    probabilities = best_of(network, tmp_path / "model.pt", [[1, 0.75], [1, math.nan], [0, 0.0]])
    odds = torch.tensor([9, 4, 3 / 7, 1 / 9]) * 79 / 21
    assert torch.allclose(probabilities, odds / (1 + odds))
    assert (probabilities >= 0.5).tolist() == [True, True, True, False]
    assert torch.equal(network.logits, before)


def test_the_shift_of_many_checkpoints_is_told_once(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "_tell_of_shift", cache(checkpoints._tell_of_shift.__wrapped__))
    with caplog.at_level(logging.INFO, logger=checkpoints.__name__):
        for _ in range(2):
            best_of(Shifted(0.9, 0.8, 0.3, 0.1), tmp_path / "model.pt", [[1, 0.75], [0, 0.0]])
    assert caplog.text.count("probabilities of a saved model are adjusted") == 1


def test_best_checkpoint_is_the_network_itself_without_areas_or_a_shift(tmp_path: Path) -> None:
    for network, target in ((Shifted(0.9, 0.8, 0.3, 0.1), [1, math.nan]), (Logits(0.9, 0.8, 0.3, 0.1), [1, 0.75])):
        probabilities = best_of(network, tmp_path / "model.pt", [target, [0, 0.0]])
        assert torch.allclose(probabilities, torch.tensor([0.9, 0.8, 0.3, 0.1]))


@pytest.mark.parametrize("read", [read_checkpoint, read_state_dict])
def test_an_exported_model_is_named_as_such(tmp_path: Path, read: Callable) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.ts")
    with pytest.raises(InputError, match=r"model\.ts' is an exported model, .* the model\.pt of its training\.$"):
        read(tmp_path / "model.ts")
