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
from scipy.ndimage import gaussian_filter
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
    row = next(line for line in lines if line.startswith("| `model.pt` |"))
    shown = [cell.strip() for cell in row.strip("|").split("|")[1:]]
    assert shown == [f"{claimed[name]:.3f}" for name in ("f_pos", "f_neg", "ods", "px_ap", "auc", "accuracy")]


RECOMMENDED = MODEL.with_name("area_ranked.pt")


def test_the_recommended_model_is_small_and_loads_without_pickled_code() -> None:
    assert RECOMMENDED.stat().st_size < 20 * MEGABYTE
    state = torch.load(RECOMMENDED, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert trained_as(state) == ("area_ranked", (224, 224))


def not_tissue() -> dict[str, np.ndarray]:
    """Pictures of glass, of no light, of noise, of a pen on glass, and of tissue far out of focus: 200 x 240."""
    rng = np.random.default_rng(0)
    pictures = {f"grey{level}": np.full((200, 240, 3), level) for level in (0, 60, 128, 200, 240, 255)}
    pictures["noise"] = 243 + rng.normal(0, 4, (200, 240, 3))
    rows, columns = np.mgrid[:200, :240]
    pictures["pen"] = np.where((abs(rows - columns) < 12)[..., None], (25, 35, 120), (243, 240, 243))
    cells = gaussian_filter((rng.random((200, 240)) < 0.02).astype(float), 2)
    stained = 240 - np.clip(cells / cells.max(), 0, 1)[..., None] * (140, 190, 90)
    pictures["blurred"] = gaussian_filter(stained, (9, 9, 0))
    return pictures


def test_glass_ink_and_blur_are_not_cancer_for_the_recommended_model(configs, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    for name, picture in not_tissue().items():
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(tmp_path / "images" / f"{name}.png")
    run(
        "inferring",
        config_file=[str(configs / f"{name}.json") for name in ("inference", "recommended")],
        dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "out"),
        logging_file=False,
    )
    page = (tmp_path / "out" / "predictions" / "index.html").read_text()
    assert "area_ranked.pt, which comes with" in page
    assert "trained at 224 x 224 pixels on H&amp;E-stained colon biopsies" in page
    for name in not_tissue():
        probability = np.asarray(Image.open(tmp_path / "out" / "predictions" / f"{name}_probability.png")) / 65535
        assert probability.mean() < 0.1, name
        assert (probability >= 0.5).mean() < 0.01, name


@pytest.mark.skipif(not COLON.is_dir(), reason="needs the colon biopsies")
def test_evaluation_of_the_recommended_model_gives_the_numbers_of_its_card(configs, tmp_path) -> None:
    run(
        "evaluating",
        config_file=[str(configs / f"{name}.json") for name in ("train", "recommended", "evaluate")],
        dataset_dir=str(COLON),
        output_dir=str(tmp_path),
        ckpt_path=str(configs.parent / "models" / "area_ranked.pt"),
        logging_file=False,
    )
    assert not (tmp_path / "side_outputs.png").exists()  # the network has one output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    lines = (configs.parent / "docs" / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| `area_ranked.pt` |"))
    names = ("f_pos", "f_neg", "ods", "px_ap", "auc", "accuracy")
    for name, cell in zip(names, row.strip("|").split("|")[1:], strict=True):
        assert metrics[name] == pytest.approx(float(cell), abs=0.003), name  # other processors round otherwise


@pytest.mark.skipif(not COLON.is_dir(), reason="needs the colon biopsies")
def test_evaluation_gives_the_numbers_of_the_metadata(configs, claimed, tmp_path) -> None:
    run(
        "evaluating",
        config_file=[str(configs / f"{name}.json") for name in ("train", "minibatch", "colon", "evaluate")],
        dataset_dir=str(COLON),
        output_dir=str(tmp_path),
        ckpt_path=str(configs.parent / "models" / "model.pt"),
        logging_file=False,
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 120
    for name, value in claimed.items():
        assert metrics[name] == pytest.approx(value, abs=0.002), name  # other processors round otherwise
