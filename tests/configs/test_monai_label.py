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

"""The configs as MONAI Label uses them, without MONAI Label; tests/monailabel has it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from PIL import Image
from scripts.monai_label.apply_overlays import apply_overlays


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Those of the copy that MONAI Label gets."""
    folder = tmp_path_factory.mktemp("apps") / "cdws_mil_segmentation"
    apply_overlays(folder)
    return folder / "configs"


@pytest.fixture
def labelled(tmp_path) -> list[dict]:
    """Images with their masks: the upper half."""
    rng = np.random.default_rng(0)
    mask = np.zeros((24, 16), np.uint8)
    mask[:12] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    items = []
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (24, 16, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        items.append({"image": str(tmp_path / f"{name}.png"), "label": str(tmp_path / "mask.png")})
    return items


def train(configs, folder, training: list[dict], validation: list[dict], model: str) -> dict:
    """Returns the trained weights. `model` is what there is to begin with."""
    handlers = json.loads((configs / "train.json").read_text())["train"]["handlers"]
    loader = {"_target_": "CheckpointLoader", "load_path": model, "load_dict": {"model": "$@network"}, "strict": False}
    run(
        run_id="run",
        config_file=str(configs / "train.json"),
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        output_dir=str(folder),
        ckpt_dir=str(folder),
        spatial_size=[16, 24],
        device="cpu",
        **{
            "train#trainer#max_epochs": 1,
            "train#dataset#data": training,
            "validate#dataset#data": validation,
            "train#handlers": [loader, *handlers],
        },
    )
    content = torch.load(folder / "model.pt", weights_only=True)
    return content.get("model", content)


@pytest.mark.parametrize("held_out", [0, 1])
def test_training_goes_on_from_the_model_and_leaves_a_better_one(
    configs, red_detector, tmp_path, labelled, held_out, monkeypatch
):
    """Without the internet: ImageNet's weights, which the config asks for, would be replaced anyway."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing cached"))
    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **kwargs: pytest.fail("it wants the internet"))
    weights = train(configs, tmp_path, labelled[held_out:], labelled[:held_out], str(red_detector))
    before = torch.load(red_detector, weights_only=True)
    moved = abs(weights["features.0.weight"] - before["features.0.weight"]).max().item()
    assert moved == pytest.approx(0.001, rel=0.01)  # Adam's first step


def test_threshold_of_the_options_panel_and_of_the_command_line(configs):
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.json"))
    parser["threshold"] = 0.3
    options = parser.get_parsed_content("displayable_configs")
    assert options["threshold"] == 0.3
    parser["displayable_configs"].update({"threshold": 0.7})  # as MONAI Label does with what a user chose
    parser.parse()
    [discrete] = [t for t in parser.get_parsed_content("postprocessing").transforms if "Discrete" in type(t).__name__]
    assert discrete({"pred": torch.tensor([[0.6, 0.8]])})["pred"].tolist() == [[0.0, 1.0]]
