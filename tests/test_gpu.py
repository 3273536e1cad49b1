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


"""What only a GPU can show. On another device (`TEST_DEVICE=cpu`) these tests can be rehearsed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.data import DataLoader, Dataset
from PIL import Image
from scripts.demo.dataset import make_demo_dataset
from scripts.losses.cdws import CDWSLoss
from scripts.networks import CDWSNet, MapNetwork, PyramidNet
from scripts.training.sampling import StepSampler
from scripts.training.trainer import AccumulatingTrainer, half_precision

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]
NETWORKS = {"cdws": CDWSNet, "recommended": PyramidNet}
ALIKE = 0.001  # of the pixels


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `dataset.json`."""
    folder = tmp_path_factory.mktemp("phantoms")
    return make_demo_dataset(folder, counts={"training": 4, "validation": 2}, size=(224, 224)).parent


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> MapNetwork:
    """With weights that make no map constant."""
    torch.manual_seed(0)
    made = NETWORKS[request.param]()
    for name, parameter in made.named_parameters():
        if "sides" in name or "heads" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.to(DEVICE, memory_format=torch.channels_last)


def images(count: int, size: int = 64) -> torch.Tensor:
    drawn = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return drawn.to(DEVICE, memory_format=torch.channels_last)


def masks(phantoms: Path, folder: Path, method: str, **settings: object) -> dict[str, np.ndarray]:
    """As inference writes them with the included model."""
    run(
        "inferring",
        config_file=[str(Path(__file__).parents[1] / "bundle" / "configs" / f"{name}.json") for name in method.split()],
        dataset_dir=str(phantoms / "images"),
        output_dir=str(folder),
        logging_file=False,
        **settings,
    )
    return {path.name: np.asarray(Image.open(path)) > 0 for path in folder.glob("predictions/*_mask.png")}


@pytest.mark.parametrize("method", ["inference", "inference recommended"])
@pytest.mark.parametrize("settings", [{"amp": False}, {"amp": True}], ids=["float32", "amp"])
def test_masks_are_those_of_the_cpu(phantoms, tmp_path, method, settings) -> None:
    expected = masks(phantoms, tmp_path / "cpu", method, device="$torch.device('cpu')")
    found = masks(phantoms, tmp_path / "gpu", method, device=f"$torch.device('{DEVICE}')", **settings)
    assert expected.keys() == found.keys()
    assert 0.02 < np.mean([mask.mean() for mask in expected.values()]) < 0.98
    assert np.mean([(found[name] != mask).mean() for name, mask in expected.items()]) <= ALIKE


def test_compiled_maps_are_those_of_the_network(network) -> None:
    backend = "inductor" if DEVICE.type == "cuda" else "aot_eager"  # which needs no compiler of C++
    compiled = torch.compile(copy.deepcopy(network), backend=backend)
    for mode in (True, False):
        network.train(mode)
        compiled.train(mode)
        for count in (2, 3) if DEVICE.type == "cuda" else (2,):  # another shape
            with torch.no_grad():
                expected, found = network(images(count)), compiled(images(count))
            assert expected.std() > 1e-3
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_half_precision_has_nearly_the_same_gradient(network) -> None:
    """bfloat16 has 8 bits: through forty layers of random weights a CPU's gradient is an eighth off."""
    target = torch.tensor([[1.0, 0.3], [0.0, 0.0]] * 2, device=DEVICE)
    gradients = []
    network.train()
    for amp in (False, True):
        network.zero_grad()
        with torch.autocast(DEVICE.type, dtype=half_precision(DEVICE), enabled=amp):
            maps = network(images(4))
        # not the paper's loss: it takes as many weights as there are maps
        torch.nn.functional.binary_cross_entropy(maps.mean((2, 3)), target[:, :1].expand(-1, maps.shape[1])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert 0 < (gradients[1] - gradients[0]).norm() < 0.25 * gradients[0].norm()


@pytest.fixture
def cramped() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@needs_cuda
def test_what_does_not_fit_into_the_gpu_goes_through_in_parts(cramped, caplog) -> None:
    """The driver refuses memory for real, half-way through a step; the weights after it are the same."""
    items = [{"image": image.cpu(), "label": torch.tensor([i % 2, 0.3])} for i, image in enumerate(images(16, 256))]
    torch.manual_seed(0)
    first = CDWSNet()
    weights, peaks = [], []
    for attempt in range(2):
        trained, dataset = copy.deepcopy(first).to(DEVICE), Dataset(items)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if attempt:
            torch.cuda.set_per_process_memory_fraction(0.6 * peaks[0] / torch.cuda.mem_get_info()[1])
        AccumulatingTrainer(
            device=DEVICE,
            train_data_loader=DataLoader(dataset, batch_sampler=StepSampler(dataset, "all", 16, seed=0)),
            network=trained,
            optimizer=torch.optim.SGD(trained.parameters(), lr=1.0),
            loss_function=CDWSLoss(reduction="none"),
            max_epochs=1,
        ).run()
        peaks.append(torch.cuda.max_memory_allocated())
        weights.append(torch.cat([p.detach().flatten().cpu() for p in trained.parameters()]))
    assert "16 images of 256x256 pixels do not fit into the memory of cuda" in caplog.text
    assert peaks[1] < 0.6 * peaks[0]
    before = torch.cat([p.detach().flatten() for p in first.parameters()])
    assert (weights[1] - weights[0]).norm() < 1e-2 * (weights[0] - before).norm()  # TF32 in another order


def test_a_next_round_follows_the_first(phantoms, tmp_path, configs) -> None:
    """Its ranking is made by networks on the device, and comes with the images from the processor."""
    settings = {"dataset_dir": str(phantoms), "pretrained": "random", "spatial_size": [64, 64], "steps": 2}
    settings |= {"device": f"$torch.device('{DEVICE}')", "logging_file": False}
    for name in ("recommended", "next_round"):
        used = ["train", *dict.fromkeys(("recommended", name))]
        files = [str(configs / f"{config}.json") for config in used]
        run("training", config_file=files, output_dir=str(tmp_path / name), **settings)
        settings["ranked_by"] = str(tmp_path / name / "models" / "model.pt")
    assert torch.load(settings["ranked_by"], map_location="cpu", weights_only=True)


@needs_cuda
def test_pinned_batches_are_the_same(phantoms, tmp_path, configs) -> None:
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in ("train", "recommended")])
    parser.update({"dataset_dir": str(phantoms), "output_dir": str(tmp_path), "pretrained": "random"})
    parser.update({"bundle_root": str(configs.parent)})
    given = parser.get_parsed_content("train#dataloader")
    for plain, pinned in zip(
        given,
        DataLoader(given.dataset, batch_sampler=given.batch_sampler, num_workers=2, pin_memory=True),
        strict=True,
    ):
        assert pinned["image"].as_tensor().is_pinned()
        moved = pinned["image"].as_tensor().to(DEVICE, non_blocking=True).cpu()
        torch.testing.assert_close(moved, plain["image"].as_tensor(), rtol=0, atol=0)
