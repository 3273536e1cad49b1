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

"""Derivatives against finite differences, maps by a hand-made ensemble, and toy images in which a square is found."""

from __future__ import annotations

import copy
import math
import re
import sys
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset, MetaTensor
from monai.handlers import CheckpointSaver, StatsHandler, TensorBoardStatsHandler
from scripts.boosting import ensemble
from scripts.boosting import trainer as boosting
from scripts.boosting.bags import bag_losses
from scripts.boosting.ensemble import MILBoostNet
from scripts.boosting.trainer import BoostingTrainer
from scripts.losses.pooling import generalized_mean
from scripts.runtime.errors import InputError
from scripts.training.checkpoints import NetworkLoader
from scripts.training.progress import ProgressBar
from scripts.training.trainer import image_losses

lightgbm = pytest.importorskip("lightgbm")

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
HEIGHT, WIDTH = 64, 52
SQUARE = (slice(28, 60), slice(0, 24))  # reddish in positive images


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_item(index: int, height: int = HEIGHT, width: int = WIDTH) -> dict:
    """Noise, and every other one has the square."""
    generator = np.random.default_rng(index)
    image = 0.6 + 0.1 * generator.standard_normal((3, height, width))
    if index % 2 == 0:
        image[(0, *SQUARE)] += 0.2
        image[(1, *SQUARE)] -= 0.2
    image = torch.tensor(image.clip(0, 1), dtype=torch.float32)
    return {"image": (image - MEAN) / STD, "label": torch.tensor([float(index % 2 == 0), 0.3])}


def toy_data(images: int = 16) -> Dataset:
    return Dataset([toy_item(index) for index in range(images)])


def toy_trainer(network: MILBoostNet | None = None, **settings) -> BoostingTrainer:
    settings = {"max_epochs": 25, "device": "cpu", "dataset": toy_data(), **settings}
    return BoostingTrainer(network=network or MILBoostNet(16, 4), **settings)


def trained(**settings) -> MILBoostNet:
    trainer = toy_trainer(**settings)
    trainer.run()
    return trainer.network.eval()


def test_derivatives_in_chunks_are_those_of_all(monkeypatch) -> None:
    results = []
    for chunk in (1, 300, 2**20):
        monkeypatch.setattr(boosting, "CHUNK", chunk)
        trainer = toy_trainer(max_epochs=3)
        trainer.run()
        results.append(np.stack([trainer.gradient, trainer.curvature]))
    assert np.array_equal(results[0], results[2])
    assert np.array_equal(results[1], results[2])


def test_trees_get_scaled_derivatives() -> None:
    """At the start all p are 0.5: of N instances g is -1/2N and |H| (2 (1 - 1/N) - 0.5)/2N in a positive bag."""
    trainer = toy_trainer(negative_patches=30)
    trainer._start()
    assert trainer.labels.tolist() == [True, False] * 8
    patches = 13 * 10  # (64 - 16) / 4 + 1 by (52 - 16) / 4 + 1
    assert np.diff(trainer.bags).tolist() == [patches, 30] * 8
    scale = (patches + 30) / 2
    positive, negative = trainer.gradient[:patches], trainer.gradient[patches : patches + 30]
    assert positive == pytest.approx(-scale / (2 * patches))
    assert negative == pytest.approx(scale / (2 * 30))
    assert trainer.curvature[:patches] == pytest.approx(scale * (2 * (1 - 1 / patches) - 0.5) / (2 * patches))
    assert trainer.losses == pytest.approx(math.log(2))


def test_map_of_a_batch_is_that_of_each_image() -> None:
    network = trained(max_epochs=5)
    images = torch.stack([toy_item(index)["image"] for index in range(3)])
    result = network(images)
    assert torch.equal(network(MetaTensor(images)), result)
    assert result.shape == (3, 1, HEIGHT, WIDTH)
    assert all(torch.equal(network(image[None])[0], one) for image, one in zip(images, result, strict=True))
    assert torch.equal(network.train()(images), result)


def test_finds_the_square() -> None:
    network = trained(max_epochs=40, dataset=toy_data(32), min_data_in_leaf=50)
    for index in range(100, 110):
        result = network(toy_item(index)["image"][None])[0, 0]
        if index % 2 == 0:
            assert result[36:52, :16].min() > 0.5
            assert result[:20].max() < 0.5  # centres of patches that end above the square
            assert result[:, 32:].max() < 0.5
        else:
            assert result.max() < 0.5
    images = torch.stack([toy_item(index)["image"] for index in range(100, 110)])
    probability = generalized_mean(network(images))[:, 0]
    assert (probability > 0.5).tolist() == [True, False] * 5


def test_loss_falls() -> None:
    losses = []
    trainer = toy_trainer()
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.mean_loss))
    trainer.run()
    assert len(losses) == 25
    assert losses[0] < math.log(2)  # it is that after the round
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert losses[-1] < 0.35


def test_losses_are_those_of_the_network_it_leaves() -> None:
    trainer = toy_trainer(max_epochs=7)
    trainer.run()
    data, network = trainer.dataset, trainer.network
    for item, loss in zip(data, image_losses(trainer.state.output).tolist(), strict=True):
        patches = network.patch_features(item["image"]).reshape(130, -1)
        scores = trainer.booster.predict(patches, raw_score=True, num_threads=1)
        label = np.array([bool(item["label"][0])])
        assert loss == pytest.approx(bag_losses(scores, np.array([0, 130]), label).item(), rel=1e-6)
    assert trainer.state.mean_loss == pytest.approx(image_losses(trainer.state.output).mean().item())


def test_second_run_continues() -> None:
    trainer = toy_trainer(max_epochs=4)
    trainer.run()
    first = trainer.state.mean_loss
    trainer.run()
    assert trainer.booster.num_trees() == 8
    assert trainer.state.mean_loss < first
    image = toy_item(0)["image"][None]
    assert torch.equal(trainer.network.eval()(image), trained(max_epochs=8)(image))


def test_one_seed_gives_one_network_and_another_another() -> None:
    states = [trained(max_epochs=5, negative_patches=40, seed=seed).state_dict()["ensemble"] for seed in (3, 3, 4)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_state_dict_round_trip(tmp_path: Path) -> None:
    network = trained()
    image = toy_item(100)["image"][None]
    expected = network(image)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    fresh = MILBoostNet(16, 4).to("cpu", memory_format=torch.channels_last).eval()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(image), expected)
    assert torch.equal(fresh.state_dict()["ensemble"], state["ensemble"])
    finer = MILBoostNet(16, 2).eval()
    finer.load_state_dict(state)
    assert not torch.equal(finer(image), expected)
    grown = trained(max_epochs=2)
    grown.load_state_dict(state)  # in the place of a live ensemble
    assert torch.equal(grown(image), expected)
    grown.load_state_dict(MILBoostNet(16, 4).state_dict())
    assert (grown(image) == 0.5).all()


def test_text_is_lightgbms() -> None:
    network = trained(max_epochs=3)
    text = bytes(network.state_dict()["ensemble"].tolist()).decode()
    booster = lightgbm.Booster(model_str=text)
    assert booster.num_trees() == 3
    assert booster.feature_name() == network.features.names


def test_state_dict_is_of_the_moment() -> None:
    trainer = toy_trainer(max_epochs=2)
    trainer.run()
    copied = copy.deepcopy(trainer.network).eval()
    early = trainer.network.state_dict()
    image = toy_item(100)["image"][None]
    expected = copied(image)
    trainer.run()
    assert not torch.equal(trainer.network.eval()(image), expected)
    assert torch.equal(copied(image), expected)
    fresh = MILBoostNet(16, 4).eval()
    fresh.load_state_dict(early)
    assert torch.equal(fresh(image), expected)


def flip(state: torch.Tensor) -> torch.Tensor:
    state = state.clone()
    state[len(state) // 2] ^= 4
    return state


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda state: state[:-80],
        lambda state: state[: len(state) // 2],
        lambda state: state[:1],
        lambda state: torch.zeros(500, dtype=torch.uint8),
        lambda state: torch.cat([state, state[:9]]),
    ],
)
def test_refuses_a_damaged_ensemble(damage, tmp_path: Path) -> None:
    state = trained(max_epochs=2).state_dict()
    state["ensemble"] = damage(state["ensemble"])
    with pytest.raises(InputError, match="the ensemble in it is damaged"):
        MILBoostNet(16, 4).load_state_dict(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"The checkpoint '.*a.pt' can't be used here: the ensemble in it is damaged"):
        NetworkLoader(MILBoostNet(16, 4), str(tmp_path / "a.pt"))(None)


def test_refuses_an_ensemble_of_other_patches_or_features(monkeypatch) -> None:
    network = trained(max_epochs=2)
    with pytest.raises(
        InputError, match="trained with patches of 16 pixels, the settings have 32; set patch_size to 16"
    ):
        MILBoostNet(32, 4).load_state_dict(network.state_dict())
    other = MILBoostNet(16, 4)
    other.load_state_dict(network.state_dict())
    monkeypatch.setattr(other.features, "names", other.features.names[::-1])
    with pytest.raises(InputError, match="trained on other patch features"):
        other(toy_item(0)["image"][None])


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("split_feature", lambda n: [10**6, *n[1:]]),
        ("split_feature", lambda n: [-1, *n[1:]]),
        ("left_child", lambda n: [10**6, *n[1:]]),
        ("right_child", lambda n: [-(10**6), *n[1:]]),
        ("left_child", lambda n: [0, *n[1:]]),  # round and round
        ("right_child", lambda n: n[:-1]),
        ("num_leaves", lambda n: [10**6]),
        ("num_cat", lambda n: [1]),
    ],
)
def test_refuses_a_tree_whose_indices_are_out_of_range(field: str, change) -> None:
    """LightGBM would follow them, and end the process; the checksum says nothing of who has written it."""
    network = trained(max_epochs=2)
    text = ensemble._unpacked(network.state_dict()["ensemble"], 16)
    line = re.search(rf"^{field}=(.*)$", text, re.M)
    numbers = change([int(number) for number in line[1].split()])
    text = text.replace(line[0], f"{field}={' '.join(map(str, numbers))}", 1)
    other = MILBoostNet(16, 4)
    other.load_state_dict(network.state_dict() | {"ensemble": ensemble._packed(text, 16)})
    with pytest.raises(InputError, match="tree 0 of the network's ensemble is damaged"):
        other(toy_item(0)["image"][None])


def test_refuses_what_lightgbm_cannot_read() -> None:
    network = MILBoostNet(16, 4)
    network.load_state_dict(network.state_dict() | {"ensemble": ensemble._packed("no trees at all", 16)})
    with pytest.raises(InputError, match=r"LightGBM can't read the network's ensemble \(.*\)"):
        network(toy_item(0)["image"][None])


@pytest.mark.parametrize("error", [ImportError("No module named 'lightgbm'"), OSError("libgomp.so.1: cannot open")])
def test_names_the_remedy_when_there_is_no_lightgbm(error: Exception, monkeypatch) -> None:
    state = trained(max_epochs=1).state_dict()

    class Finder:
        def find_spec(self, name: str, path=None, target=None) -> None:
            if name == "lightgbm":
                raise error

    monkeypatch.delitem(sys.modules, "lightgbm")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    network = MILBoostNet(16, 4)
    network.load_state_dict(state)
    message = rf"{str(error)[:9]}.*'pip install lightgbm'.*'apt-get install libgomp1'"
    with pytest.raises(InputError, match=message):
        network(toy_item(0)["image"][None])
    with pytest.raises(InputError, match=message):
        toy_trainer()


def test_negative_patches_are_drawn_from_negative_images() -> None:
    def kept(**settings) -> list[list[int]]:
        patches, labels = toy_trainer(**settings)._choose_patches()
        assert labels == [True, False] * 8
        return [array.tolist() for array in patches]

    whole = list(range(130))
    assert kept(negative_patches="all") == [whole] * 16
    assert kept() == [whole] * 16  # 2000 are more than there are
    few = kept(negative_patches=20)
    assert few[::2] == [whole] * 8
    for patches in few[1::2]:
        assert len(patches) == 20
        assert sorted(set(patches)) == patches
        assert set(patches) <= set(whole)
    assert len(set(map(tuple, few[1::2]))) == 8
    assert kept(negative_patches=20) == few
    assert kept(negative_patches=20, seed=1) != few


def test_only_patches_with_their_centre_on_the_image_count() -> None:
    """Centres lie at 8, 12, ..., 56 by 8, 12, ..., 44; rows to 20 and columns from 12 leave 4 x 9 of them."""
    item = toy_item(0)
    valid = torch.zeros(1, HEIGHT, WIDTH)
    valid[:, :21, 12:] = 1
    trainer = toy_trainer(dataset=Dataset([item | {"valid": valid}]))
    patches, _ = trainer._choose_patches()
    assert patches[0].tolist() == [row * 10 + column for row in range(4) for column in range(1, 10)]


def test_remembers_the_features_of_one_image(monkeypatch) -> None:
    """The features of each image are computed for the bins and for the data, and nothing keeps them."""
    asked, given, alive = [], [], []
    compute, remember = MILBoostNet.patch_features, boosting.LastImage.__call__

    def count(self: MILBoostNet, image: torch.Tensor) -> np.ndarray:
        asked.append(float(image.sum()))
        return compute(self, image)

    def watch(self: boosting.LastImage, index: int) -> np.ndarray:
        features = remember(self, index)
        if not given or given[-1]() is not features:
            given.append(weakref.ref(features))
        alive.append(sum(reference() is not None for reference in given))
        return features

    monkeypatch.setattr(MILBoostNet, "patch_features", count)
    monkeypatch.setattr(boosting.LastImage, "__call__", watch)
    trainer = toy_trainer(max_epochs=2)
    trainer.run()
    sums = [float(item["image"].sum()) for item in trainer.dataset]
    assert asked == sums * 2
    assert set(alive) == {1}
    assert len(given) == 32
    assert all(reference() is None for reference in given)


def test_with_the_handlers_of_the_bundle(tmp_path: Path) -> None:
    network = MILBoostNet(16, 4)
    losses = []
    trainer = toy_trainer(
        network,
        max_epochs=4,
        train_handlers=[
            CheckpointSaver(str(tmp_path), {"model": network}, save_final=True, final_filename="last.pt"),
            ProgressBar("training", ["mean_loss"]),
            StatsHandler(name="train", iteration_log=False),
            TensorBoardStatsHandler(log_dir=str(tmp_path), iteration_log=False),
        ],
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: losses.append(engine.state.metrics["epoch_loss"]))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda _: network.eval())  # as a validation leaves it
    trainer.run()
    assert len(losses) == 4
    assert losses[-1] == pytest.approx(trainer.state.mean_loss)
    assert trainer.state.best_metric == pytest.approx(min(losses))
    assert trainer.state.best_metric_epoch == 4
    fresh = MILBoostNet(16, 4).eval()
    NetworkLoader(fresh, str(tmp_path / "last.pt"))(None)
    image = toy_item(100)["image"][None]
    assert torch.equal(fresh(image), network.eval()(image))


def test_refuses_a_small_image() -> None:
    item = toy_item(0)
    named = item | {"image": MetaTensor(item["image"][:, :12], meta={"filename_or_obj": "small.png"})}
    with pytest.raises(
        InputError, match=r"'small\.png': an image of 12 x 52 pixels is smaller than a patch of 16 x 16"
    ):
        toy_trainer(dataset=Dataset([item, named])).run()
    unnamed = item | {"image": item["image"][:, :, :15]}
    with pytest.raises(InputError, match="image 1 of the training set: an image of 64 x 15 pixels"):
        toy_trainer(dataset=Dataset([item, unnamed])).run()
    with pytest.raises(InputError, match="15 x 20 pixels is smaller"):
        MILBoostNet(16, 4)(torch.zeros(1, 3, 15, 20))


def test_refuses_a_training_set_with_nothing_to_train_with() -> None:
    item = toy_item(0) | {"valid": torch.zeros(1, HEIGHT, WIDTH)}
    with pytest.raises(InputError, match="image 0 of the training set: no patch has its centre on the image"):
        toy_trainer(dataset=Dataset([item])).run()
    with pytest.raises(InputError, match="there is no image to train with"):
        toy_trainer(dataset=Dataset([])).run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("r", "learning_rate") for value in (0, -1.0, math.inf, math.nan, "4", True)],
        *[("num_leaves", value) for value in (1, 8.0, "8", True)],
        *[("min_data_in_leaf", value) for value in (0, 2.5, None)],
        *[("negative_patches", value) for value in (0, -5, 20.0, "many", None, True)],
    ],
)
def test_refuses_a_setting(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} must be .*got {value!r}"):
        toy_trainer(**{name: value})
