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

"""Two sites train one network by federated averaging through MONAI's client; their images and labels stay with them."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from monai.bundle import run
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from scripts.demo.dataset import make_demo_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COUNTS = {"north": 5, "south": 2}  # training images
ROUNDS = 3
LEARNING_RATE = 0.01
PLAIN = {  # one step of plain gradient descent a round, so that averaging is exact
    "spatial_size": [32, 32],
    "pretrained": "random",
    "batch_size": "all",
    "micro_batch_size": 2,
    "learning_rate": LEARNING_RATE,
    "optimizer": {"_target_": "torch.optim.SGD", "params": "@parameters"},
    "train#augmentation": [{"_target_": "SelectItemsd", "keys": ["image", "label"]}],
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> dict[str, Path]:
    """A folder with a data set of its own for each site."""
    folders = {}
    for seed, (site, count) in enumerate(COUNTS.items()):
        folder = tmp_path_factory.mktemp(site)
        make_demo_dataset(folder / "data", counts={"training": count, "validation": 2}, size=(32, 32), seed=seed)
        folders[site] = folder
    return folders


def client(site: str, folder: Path, configs: Path) -> MonaiAlgo:
    settings = {
        "dataset_dir": str(folder / "data"),
        "output_dir": str(folder / "runs"),
        "ckpt_dir": str(folder / "models"),
        **PLAIN,
    }
    algorithm = MonaiAlgo(
        bundle_root=str(configs.parent),
        send_weight_diff=False,
        config_train_filename="configs/train.json",
        train_kwargs=dict(settings),
        config_evaluate_filename=["configs/train.json", "configs/federated.json"],
        eval_kwargs=dict(settings),
    )
    algorithm.initialize({ExtraItems.CLIENT_NAME: site})
    return algorithm


def average(weights: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What a server does: the mean over the sites, weighted by their training images, whatever a tensor's type."""
    total = sum(COUNTS.values())
    names = next(iter(weights.values()))
    return {
        name: sum(weights[site][name].double() * count for site, count in COUNTS.items()).float() / total
        for name in names
    }


@pytest.fixture(scope="module")
def federation(sites, configs):
    """Clients after all rounds; of each round the average, what each site started from and sent, and its metrics."""
    clients = {site: client(site, folder, configs) for site, folder in sites.items()}
    weights = {k: v.clone() for k, v in next(iter(clients.values())).get_weights().weights.items()}
    history = [{"average": weights}]
    for _ in range(ROUNDS):
        sent, started, metrics, losses = {}, {}, {}, {}
        for site, algorithm in clients.items():
            shared = {name: value.clone() for name, value in weights.items()}
            metrics[site] = dict(algorithm.evaluate(ExchangeObject(weights=shared)).metrics)
            algorithm.train(ExchangeObject(weights=shared, weight_type=WeightType.WEIGHTS))
            started[site] = {name: value.clone() for name, value in algorithm.global_weights.items()}
            losses[site] = algorithm.trainer.state.metrics["epoch_loss"]
            sent[site] = algorithm.get_weights()
        weights = average({site: answer.weights for site, answer in sent.items()})
        history.append({"average": weights, "sent": sent, "metrics": metrics, "started": started, "losses": losses})
    return clients, history


@pytest.fixture(scope="module")
def pooled(sites, configs, tmp_path_factory) -> Path:
    """One process that has the images of both sites, trained from the same weights for as many steps."""
    folder = tmp_path_factory.mktemp("pooled")
    content = {"training": [], "validation": []}
    for site in sites.values():
        datalist = json.loads((site / "data" / "dataset.json").read_text())
        for split, items in content.items():
            for item in datalist[split]:
                paths = {k: str(site / "data" / item[k]) for k in ("image", "mask") if k in item}
                items.append({k: v for k, v in item.items() if k != "group"} | paths)
    (folder / "dataset.json").write_text(json.dumps(content))
    options = {"dataset_dir": str(folder), "output_dir": str(folder), "ckpt_dir": str(folder), "max_epochs": ROUNDS}
    options["allow_outside"] = True
    run("training", config_file=str(configs / "train.json"), logging_file=False, **PLAIN, **options)
    return folder


def test_a_round_averaged_is_a_full_batch_step_over_all_images(federation, pooled):
    _, history = federation
    expected = torch.load(pooled / "last.pt", weights_only=True)["model"]
    start, end = (history[i]["average"] for i in (0, ROUNDS))
    for name, value in expected.items():
        torch.testing.assert_close(end[name], value.float(), rtol=1e-5, atol=1e-6, msg=name)
    weights = set(start) - {"_extra_state"}
    assert all(not torch.equal(start[name].float(), end[name]) for name in weights)


def test_every_site_starts_a_round_from_the_average_and_ends_elsewhere(federation):
    _, history = federation
    for before, after in pairwise(history):
        for site in COUNTS:
            for name, value in before["average"].items():
                assert torch.equal(after["started"][site][name].float(), value.float()), name
        north, south = (after["sent"][site].weights for site in COUNTS)
        assert not torch.equal(north["features.0.weight"], south["features.0.weight"])


def test_the_average_gets_better_as_pooled_training_does(federation, pooled):
    """A full-batch step's loss is that of the average it starts from, on the site's images."""
    _, history = federation
    losses = [
        sum(done["losses"][site] * count for site, count in COUNTS.items()) / sum(COUNTS.values())
        for done in history[1:]
    ]
    expected = [event.value for event in EventAccumulator(str(pooled)).Reload().Scalars("epoch_loss")]
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0]


def test_nothing_but_weights_and_counters_leaves_a_site(federation, sites):
    clients, history = federation
    for site, algorithm in clients.items():
        answer = history[-1]["sent"][site]
        shapes = {name: value.shape for name, value in algorithm.trainer.network.state_dict().items()}
        assert {name: value.shape for name, value in answer.weights.items()} == shapes
        assert all(isinstance(value, (int, float)) for value in answer.statistics.values())
        assert answer.optim is None
        assert answer.metrics is None
        assert all(isinstance(value, float) for value in history[-1]["metrics"][site].values())


def test_sites_keep_their_checkpoints_apart(federation, sites):
    for folder in sites.values():
        assert (folder / "models" / "last.pt").is_file()


def test_scripts_must_be_importable(configs):
    """MonaiAlgo doesn't put the bundle on the path, so the page tells a site to do so."""
    assert str(configs.parent) in [str(Path(p).resolve()) for p in sys.path if p]
    page = (configs.parent.parent / "docs" / "scaling.md").read_text()
    assert "PYTHONPATH=bundle" in page
