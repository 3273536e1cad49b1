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

"""The record of a training follows from what was built: what changes the result changes it, and nothing else does."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import Trainer
from PIL import Image
from scripts.losses.constraints import CONSTRAINTS, AreaConstraint
from scripts.losses.pooling import POOLINGS, Pooling
from scripts.runtime.errors import InputError
from scripts.training.record import describe, record
from scripts.training.resume import fit

# Settings that no result depends on, or that only say where things are.
FREE = {"_desc_", "output_dir", "ckpt_dir", "max_epochs", "resume", "micro_batch_size", "superpixel_cache", "device"}
FREE |= {"num_workers", "cache_rate", "allow_outside", "tta", "min_part", "tiled"}
PYRAMID = {"_target_": "scripts.networks.PyramidNet", "encoder": "resnet10t"}
OTHERS = {
    "method": "mine",
    "superpixels": True,
    "pixel_labels": True,
    "spatial_size": [16, 16],
    "batch_size": 1,
    "learning_rate": 0.5,
    "side_learning_rate": 0.5,
    "weight_decay": 0.5,
    "lr_schedule": "one_cycle",
    "max_norm": 1.0,
    "colour_shift": 0.5,
    "artefacts": 0.5,
    "stain_shift": 0.5,
    "train_window": 0.5,
    "area_constraint": False,
    "constraint": "two_sided",
    "penalty": "relative",
    "side_area_weights": [1.0, 1.0, 1.0],
    "fusion_area_weight": 1.0,
    "area_weight_scale": 2.0,
    "barrier": {"start": 1.0, "growth": 2.0, "maximum": 9.0},
    "pooling": "max",
    "r": 2.0,
    "top_fraction": 0.5,
    "stages": 2,
    "deep_supervision": False,
    "fusion_weights": [0.1, 0.1, 0.8],
    "threshold": 0.4,
    "select_by": "image_labels",
    "val_interval": 2,
    "area_step": 0.2,
    "n_segments": 9,
    "seed": 1,
    "amp": True,
}
NEEDED = {
    "n_segments": {"superpixels": True},
    "stages": {"fusion_weights": [0.5, 0.5], "side_area_weights": [1.0, 1.0]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set of two images of each split, one positive."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / "mask.png")
    positive = {"label": 1, "area": 0.2, "mask": "mask.png"}
    splits = {"training": "ab", "validation": "cd"}
    content = {
        s: [{"image": f"{p}.png", **positive}, {"image": f"{n}.png", "label": 0}] for s, (p, n) in splits.items()
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


class Built:
    """A training as train.json builds it."""

    def __init__(self, configs: Path, data: Path, folder: Path, **changes: object) -> None:
        self.parser = ConfigParser()
        self.parser.read_config(str(configs / "train.json"))
        places = {"dataset_dir": str(data), "output_dir": str(folder), "ckpt_dir": str(folder / "models")}
        small = {"spatial_size": [8, 8], "pretrained": "random", "superpixel_cache": str(folder / "superpixels")}
        self.parser.update({**places, **small, **changes})
        self.parser.get_parsed_content("initialize")

    def trainer(self) -> Trainer:
        return self.parser.get_parsed_content("engine")

    def record(self) -> dict:
        return record(self.trainer(), self.parser.get_parsed_content("validate#evaluator"))

    def fit(self) -> None:
        self.parser.get_parsed_content("claim")
        self.parser.get_parsed_content("fit")


@pytest.fixture(scope="module")
def build(configs, data, tmp_path_factory):
    return partial(Built, configs, data, tmp_path_factory.mktemp("record"))


@pytest.fixture(scope="module")
def usual(build) -> dict:
    return build().record()


def settings_at_the_top(configs: Path) -> set[str]:
    content = json.loads((configs / "train.json").read_text())
    names = list(content)
    return set(names[: names.index("bundle_root")]) - FREE


def test_every_setting_is_tried(configs) -> None:
    assert settings_at_the_top(configs) == set(OTHERS) | {"dataset_dir", "pretrained"}


@pytest.mark.parametrize("name", OTHERS)
def test_each_setting_changes_the_record(build, usual, name: str) -> None:
    needed = NEEDED.get(name, {})
    before = build(**needed).record() if needed and name != "stages" else usual
    assert build(**needed, **{name: OTHERS[name]}).record() != before


def test_the_data_set_changes_the_record(build, usual, data, tmp_path) -> None:
    content = json.loads((data / "dataset.json").read_text())
    content["validation"][0]["area"] = 0.9
    for item in (item for items in content.values() for item in items):
        item |= {key: str(data / item[key]) for key in ("image", "mask") if key in item}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    other = build(dataset_dir=str(tmp_path), allow_outside=True).record()
    assert {key for key in usual if usual[key] != other[key]} == {"data.validation"}


def test_pretrained_weights_change_the_record(build, usual, tmp_path) -> None:
    network = build().parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "vgg.pt")
    other = build(pretrained=str(tmp_path / "vgg.pt")).record()
    assert {key for key in usual if usual[key] != other[key]} == {"network.pretrained"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_epochs": 3, "resume": False},
        {"micro_batch_size": 1, "num_workers": 1, "cache_rate": 0.0},
        {"output_dir": "elsewhere", "ckpt_dir": "elsewhere", "superpixel_cache": "elsewhere"},
    ],
)
def test_what_changes_no_result_is_not_in_the_record(build, usual, changes: dict, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert build(**changes).record() == usual
    assert not [value for value in usual.values() if " at 0x" in str(value)]  # of no other process


def test_of_the_recommended_network_options_layers_and_fixed_tensors_are_recorded(build) -> None:
    """And not how it is computed."""
    names = build(network_def=PYRAMID, spatial_size=[32, 32]).record()
    found = {name.split(".")[1] for name in names if name.startswith("network.")}
    options = {"map_names", "method", "tta", "pretrained", "border", "deep_supervision", "spatial_size"}
    assert found == {*options, "layers", "factor", "offset"}


def test_every_constraint_and_pooling_has_a_record_of_its_own() -> None:
    pieces = [describe((AreaConstraint(kind), Pooling(pool))) for kind in CONSTRAINTS for pool in POOLINGS]
    assert len({json.dumps(piece) for piece in pieces}) == len(CONSTRAINTS) * len(POOLINGS)


class AbsoluteExcess:
    """The constraint of docs/extending.md."""

    def __init__(self, tolerance: float = 0.05) -> None:
        self.tolerance = tolerance

    def __call__(self, v: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
        return ((v - area).abs() - self.tolerance).clamp(min=0)


def test_a_constraint_of_ones_own_is_recorded_and_refused_on_resuming(configs, data, tmp_path, caplog) -> None:
    """It was, under the name of the one that it replaced."""

    def stop(engine) -> None:
        if engine.state.iteration == 2:
            raise KeyboardInterrupt

    first = Built(configs, data, tmp_path, max_epochs=3)
    first.trainer().add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        first.fit()
    second = Built(configs, data, tmp_path, **{"loss#constraint": AbsoluteExcess(0.1)})
    assert second.record()["loss.constraint"].endswith("test_record.AbsoluteExcess")
    assert second.record()["loss.constraint.tolerance"] == 0.1
    evaluator, writer = (second.parser.get_parsed_content(name) for name in ("validate#evaluator", "summary_writer"))
    with pytest.raises(InputError, match=r"loss\.constraint was 'scripts\..*AreaConstraint', is '.*AbsoluteExcess'"):
        fit(second.trainer(), tmp_path / "models", evaluator, writer)


def test_a_circle_ends_and_shared_objects_are_named_once() -> None:
    circle: dict = {"name": "a"}
    circle["self"] = circle
    assert describe({"one": circle, "two": circle}) == {"one.name": "a"}


def test_values_of_all_kinds() -> None:
    values = {
        "nan": float("nan"),
        "none": None,
        "list": [1, None, {"x": 2}],
        "function": json.dumps,
        "partial": partial(json.dumps, indent=2),
        "class": Pooling,
        "path": Path("somewhere"),
        "logger": logging.getLogger("x"),
        "zeros": torch.zeros(2, 3),
    }
    found = describe(values)
    assert found.pop("zeros") == describe({"zeros": np.zeros((2, 3), np.float32)})["zeros"]
    assert found.pop("partial.arguments.0.indent") == 2
    assert found == {
        "nan": "nan",
        "list.0": 1,
        "list.2.x": 2,
        "function": "json.dumps",
        "partial": "json.dumps",
        "class": "scripts.losses.pooling.Pooling",
    }
