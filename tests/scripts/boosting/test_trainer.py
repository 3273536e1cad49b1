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
from scripts.boosting import trainer as boosting
from scripts.boosting.trainer import BoostingTrainer, MILBoostNet, bag_gradient, bag_losses
from scripts.losses.pooling import generalized_mean
from scripts.runtime.errors import InputError
from scripts.training.checkpoints import NetworkLoader
from scripts.training.progress import ProgressBar
from scripts.training.trainer import MeanLoss, image_losses

lightgbm = pytest.importorskip("lightgbm")

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
HEIGHT, WIDTH = 64, 52
SQUARE = (slice(28, 60), slice(0, 24))  # reddish in positive images
BAGS = np.array([0, 3, 4, 9, 10, 12])
LABELS = np.array([True, True, False, False, True])


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


def loss_of(scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float) -> float:
    """The loss as it is written on paper, bag by bag."""
    total = 0.0
    for index, positive in enumerate(labels):
        p = 1 / (1 + np.exp(-scores[bags[index] : bags[index + 1]]))
        bag_p = np.mean(p**r) ** (1 / r)
        total -= np.log(bag_p) if positive else np.log(1 - bag_p)
    return total


@pytest.mark.parametrize("r", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_derivatives_are_those_of_finite_differences(r: float, spread: float) -> None:
    scores = spread * np.random.default_rng(0).standard_normal(12)
    gradient, hessian = bag_gradient(scores, BAGS, LABELS, r)
    assert bag_losses(scores, BAGS, LABELS, r).sum() == pytest.approx(loss_of(scores, BAGS, LABELS, r), rel=1e-12)
    for j, step in enumerate(np.eye(12)):
        left, middle, right = (loss_of(scores + h * step, BAGS, LABELS, r) for h in (-1e-4, 0.0, 1e-4))
        assert gradient[j] == pytest.approx((right - left) / 2e-4, rel=1e-6, abs=1e-8)
        assert hessian[j] == pytest.approx((right - 2 * middle + left) / 1e-8, rel=1e-4, abs=1e-6)


def test_derivatives_of_one_instance_are_those_of_logistic_regression() -> None:
    scores = np.array([0.7, 0.7, -1.9, -1.9])
    gradient, hessian = bag_gradient(scores, np.arange(5), np.array([True, False, True, False]))
    p = 1 / (1 + np.exp(-scores))
    assert gradient == pytest.approx(p - [1, 0, 1, 0])
    assert hessian == pytest.approx(p * (1 - p))


def test_curvature_of_a_positive_bag_may_be_negative() -> None:
    """Two instances at p = 0.5, r = 4: w = 0.5, g = -0.25, H = -0.25 (4 * 0.5 * 0.5 - 0.5) = -0.125."""
    gradient, hessian = bag_gradient(np.zeros(2), np.array([0, 2]), np.array([True]))
    assert gradient.tolist() == [-0.25, -0.25]
    assert hessian.tolist() == [-0.125, -0.125]


@pytest.mark.parametrize("size", [40.0, 300.0, 1e6])
@pytest.mark.parametrize("positive", [True, False])
def test_extreme_scores_are_finite(size: float, positive: bool) -> None:
    for scores in ([size] * 3, [-size] * 3, [size, -size, 0.0], [-size, -size, size]):
        arguments = np.array(scores), np.array([0, 3]), np.array([positive])
        results = bag_losses(*arguments), *bag_gradient(*arguments)
        assert all(np.isfinite(result).all() for result in results)


@pytest.mark.parametrize("score", [40.0, -40.0])
def test_extreme_losses_keep_their_digits(score: float) -> None:
    """All p alike, P = p: -log p = log(1 + exp(-h)), and -log(1 - p) = log(1 + exp(h))."""
    scores, bags = np.full(8, score), np.array([0, 3, 8])
    losses = bag_losses(scores, bags, np.array([True, False]))
    assert losses == pytest.approx([np.logaddexp(0, -score), np.logaddexp(0, score)], rel=1e-12)
    gradient, _ = bag_gradient(scores, bags, np.array([True, False]))
    p, q = 1 / (1 + math.exp(-score)), 1 / (1 + math.exp(score))
    assert gradient == pytest.approx([-q / 3] * 3 + [p / 5] * 5, rel=1e-12)


def test_negative_bag_close_to_one_keeps_its_digits() -> None:
    """Near to 1 every generalized mean is the mean: 1 - P is the mean of 1 - p, to the first order."""
    scores = np.array([40.0, 35.0, 36.0])
    loss = bag_losses(scores, np.array([0, 3]), np.array([False])).item()
    assert loss == pytest.approx(-math.log(np.exp(-scores).mean()), rel=1e-12)


def test_bag_probability_is_the_generalized_mean() -> None:
    scores = np.random.default_rng(1).standard_normal(3)
    probability = generalized_mean(torch.from_numpy(scores).sigmoid().view(1, 1, 3), r=3.0).item()
    losses = [bag_losses(scores, np.array([0, 3]), np.array([label]), r=3.0).item() for label in (True, False)]
    assert losses == pytest.approx([-math.log(probability), -math.log(1 - probability)])


@pytest.mark.parametrize(
    ("bags", "labels"), [([0, 3, 3, 6], [1, 0, 1]), ([0, 3], [1]), ([1, 6], [1]), ([0, 3, 6], [1])]
)
def test_refuses_bags(bags: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError, match="expected bags from 0 to 6, none of them empty"):
        bag_gradient(np.zeros(6), np.array(bags), np.array(labels))


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


def stump(threshold: float, low: float, high: float, patch_size: int = 16) -> MILBoostNet:
    """A network of one tree, that has learned nothing: `low` where lightness is at most the threshold, else `high`."""
    network = MILBoostNet(patch_size, 4)
    names = network.features.names
    values = np.zeros((40, len(names)))
    values[:, 0] = [threshold - 1, threshold + 1] * 20
    parameters = {"objective": "none", "num_leaves": 2, "min_data_in_leaf": 1, "verbosity": -1, "num_threads": 1}
    data = lightgbm.Dataset(values, np.zeros(40), feature_name=names, params=parameters)
    booster = lightgbm.Booster(parameters | {"learning_rate": 1.0}, data)
    gradient = -np.tile([low, high], 20)
    booster.update(fobj=lambda scores, data: (gradient, np.ones(40)))
    network.adopt(booster)
    return network.eval()


def normalised(image: torch.Tensor) -> torch.Tensor:
    return ((image - MEAN) / STD)[None]


def test_map_lies_where_the_patches_are() -> None:
    """
    Light from row 24 on: patches from 0, 4, ..., 24 have their centres at 7.5, 11.5, ..., 31.5.

    That from 16 is light by 8 of 16 rows, that from 20 by 12. The threshold lies between those two.
    """
    image = torch.full((3, 40, 30), 0.2)
    image[:, 24:] = 0.9
    dark, light = 21.0, 90.0
    network = stump(dark + 0.6 * (light - dark), low=-2.0, high=3.0)
    result = network(normalised(image))
    assert result.shape == (1, 1, 40, 30)
    assert result.dtype == torch.float32
    low, high = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3))
    rows = np.interp(np.arange(40), np.arange(7) * 4 + 7.5, [low] * 5 + [high] * 2)
    expected = torch.tensor(rows, dtype=torch.float32).view(40, 1).expand(40, 30)
    torch.testing.assert_close(result[0, 0], expected)
    across = network(normalised(image.swapaxes(1, 2)))
    torch.testing.assert_close(across[0, 0], expected.T)


def test_map_of_a_batch_is_that_of_each_image() -> None:
    network = trained(max_epochs=5)
    images = torch.stack([toy_item(index)["image"] for index in range(3)])
    result = network(images)
    assert torch.equal(network(MetaTensor(images)), result)
    assert result.shape == (3, 1, HEIGHT, WIDTH)
    assert all(torch.equal(network(image[None])[0], one) for image, one in zip(images, result, strict=True))
    assert torch.equal(network.train()(images), result)


def test_normalisation_is_undone() -> None:
    network = MILBoostNet(16, 4)
    picture = torch.rand(3, 20, 24)
    other = MILBoostNet(16, 4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    normalised_otherwise = (picture - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / other.std
    expected = network.features(picture.numpy())
    for found in (network.patch_features(normalised(picture)[0]), other.patch_features(normalised_otherwise)):
        # grey levels may round the other way
        assert np.abs(found - expected)[..., :12].max() < 1e-3
        assert np.isclose(found, expected, atol=0.02).mean() > 0.99
    beyond = network.patch_features(normalised(picture * 3 - 1)[0])
    assert np.abs(beyond - network.features((picture * 3 - 1).clamp(0, 1).numpy()))[..., :12].max() < 1e-3


def test_network_of_no_trees_does_not_know() -> None:
    network = MILBoostNet(16, 4).to("cpu", memory_format=torch.channels_last).eval()
    assert torch.equal(network(torch.randn(2, 3, 20, 30)), torch.full((2, 1, 20, 30), 0.5))
    assert not list(network.parameters())
    assert network.map_names == ["map"]
    again = MILBoostNet(16, 4)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(torch.randn(2, 3, 20, 30)), torch.full((2, 1, 20, 30), 0.5))


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
    with pytest.raises(InputError, match="for other features of the patches"):
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
    text = boosting._unpacked(network.state_dict()["ensemble"], 16)
    line = re.search(rf"^{field}=(.*)$", text, re.M)
    numbers = change([int(number) for number in line[1].split()])
    text = text.replace(line[0], f"{field}={' '.join(map(str, numbers))}", 1)
    other = MILBoostNet(16, 4)
    other.load_state_dict(network.state_dict() | {"ensemble": boosting._packed(text, 16)})
    with pytest.raises(InputError, match="tree 0 of the network's ensemble is damaged"):
        other(toy_item(0)["image"][None])


def test_refuses_what_lightgbm_cannot_read() -> None:
    network = MILBoostNet(16, 4)
    network.load_state_dict(network.state_dict() | {"ensemble": boosting._packed("no trees at all", 16)})
    with pytest.raises(InputError, match=r"LightGBM can't read the network's ensemble \(.*\)"):
        network(toy_item(0)["image"][None])


def test_refuses_another_method() -> None:
    state = MILBoostNet(16, 4, method="mil_boosting").state_dict()
    with pytest.raises(InputError, match="trained as 'mil_boosting'"):
        MILBoostNet(16, 4, method="cdws").load_state_dict(state)


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
        key_train_metric={"train_loss": MeanLoss()},
        metric_cmp_fn=lambda loss, lowest: loss < lowest,
        train_handlers=[
            CheckpointSaver(str(tmp_path), {"model": network}, save_final=True, final_filename="last.pt"),
            ProgressBar("training", ["mean_loss"]),
            StatsHandler(name="train", iteration_log=False),
            TensorBoardStatsHandler(log_dir=str(tmp_path), iteration_log=False),
        ],
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: losses.append(engine.state.metrics["train_loss"]))
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
