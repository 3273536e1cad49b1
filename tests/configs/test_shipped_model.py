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

"""The model that comes with the bundle: small, safe to load, used at its size, and as good as the documents say."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from PIL import Image
from scripts.networks.map_network import trained_as

MODEL = Path(__file__).resolve().parents[2] / "bundle" / "models" / "model.pt"
COLON = Path(__file__).resolve().parents[3] / "shared" / "data" / "colon"
MEGABYTE = 2**20


@pytest.fixture
def claimed(configs) -> dict[str, float]:
    return json.loads((configs / "metadata.json").read_text())["eval_metrics"]


def test_it_is_small_and_loads_without_pickled_code() -> None:
    assert MODEL.stat().st_size < 25 * MEGABYTE
    state = torch.load(MODEL, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert trained_as(state) == ("cdws", (112, 112))


def test_it_is_used_at_the_size_that_it_was_trained_at(configs, tmp_path, caplog) -> None:
    Image.fromarray(np.full((50, 70, 3), 200, np.uint8)).save(tmp_path / "a.png")
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.json"))
    parser.update({"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out")})
    with caplog.at_level(logging.WARNING):
        parser.get_parsed_content("inferring")
    assert parser.get_parsed_content("evaluator").state.batch[0]["image"].shape == (3, 112, 112)
    assert "trained on images of" not in caplog.text
    assert Image.open(tmp_path / "out" / "predictions" / "a_mask.png").size == (70, 50)


def test_the_model_card_has_the_numbers_of_the_metadata(configs, claimed) -> None:
    lines = (configs.parent / "docs" / "README.md").read_text().splitlines()
    names = next(i for i, line in enumerate(lines) if line.startswith("| F+ |"))
    shown = [cell.strip() for cell in lines[names + 2].strip("|").split("|")]
    assert shown == [f"{claimed[name]:.3f}" for name in ("f_pos", "f_neg", "ods", "px_ap", "auc", "accuracy")]


@pytest.mark.skipif(not COLON.is_dir(), reason="needs the colon biopsies")
def test_evaluation_gives_the_numbers_of_the_metadata(configs, claimed, tmp_path) -> None:
    run(
        "evaluating",
        config_file=[str(configs / f"{name}.json") for name in ("train", "minibatch", "colon", "evaluate")],
        dataset_dir=str(COLON),
        output_dir=str(tmp_path),
        logging_file=False,
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 120
    for name, value in claimed.items():
        assert metrics[name] == pytest.approx(value, abs=0.002), name  # other processors round otherwise
