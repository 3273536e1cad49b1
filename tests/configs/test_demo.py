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

"""The demo from data to masks, through the shipped configs, at a tiny size."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from monai.bundle import run
from PIL import Image
from scripts.metrics import (
    compute_boundary_counts,
    compute_boundary_scores,
    compute_pixel_average_precision,
    compute_pixel_counts,
)
from scripts.networks.map_network import trained_originals
from scripts.runtime.errors import input_error_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_training_writes_best_and_last_checkpoint(demo_run):
    best = torch.load(demo_run / "models" / "model.pt", weights_only=True)
    last = torch.load(demo_run / "models" / "last.pt", weights_only=True)
    assert set(best) == set(last["model"])
    assert last["optimizer"]["state"]
    assert trained_originals(best) == (32, 32, 1.0, None)  # pixels of the training images in their files


def test_a_healthy_run_warns_of_nothing(demo_run):
    """But that configs can run code, which MONAI says before it has read any."""
    lines = (demo_run / "warnings.txt").read_text().splitlines()
    assert [line.partition(" [")[0] for line in lines] == ["parsing config_file"] * 3


def test_training_moves_every_parameter(demo_run):
    """Zero-initialised sides and biases must have been reached by the gradient."""
    state = torch.load(demo_run / "models" / "last.pt", weights_only=True)["model"]
    assert all(value.abs().sum() > 0 for value in state.values())


def test_tensorboard_has_losses_metrics_and_map_images(demo_run):
    log = EventAccumulator(str(demo_run), size_guidance={"images": 0}).Reload()
    tags = log.Tags()
    assert {"epoch_loss", "val_loss", "f_mean", "f_pos", "f_neg"} <= set(tags["scalars"])
    assert [event.step for event in log.Scalars("f_mean")] == [1, 2]
    assert {"test/curves", "test/examples"} <= set(tags["images"])
    # input, truth, fusion and three sides of 32 x 32, side by side
    image = log.Images(next(tag for tag in tags["images"] if "side 3/" in tag))[0]
    assert (image.width, image.height) == (6 * 32, 32)


def test_evaluation_agrees_with_the_predictions_written(demo_run):
    """Region scores recomputed from the mask files of the inference run and the truth's files."""
    metrics = json.loads((demo_run / "metrics.json").read_text())
    items = json.loads((demo_run / "data" / "dataset.json").read_text())["test"]
    f = {0: [], 1: []}
    for item in items:
        name = item["image"].split("/")[1].removesuffix(".png")
        predicted = np.asarray(Image.open(demo_run / "predictions" / f"{name}_mask.png")) > 0
        if item["label"]:
            truth = np.asarray(Image.open(demo_run / "data" / item["mask"])) > 0
        else:
            predicted, truth = ~predicted, np.ones_like(predicted)
        f[item["label"]].append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
    assert metrics["f_pos"] == pytest.approx(np.mean(f[1]), abs=1e-6)
    assert metrics["f_neg"] == pytest.approx(np.mean(f[0]), abs=1e-6)
    assert metrics["f_mean"] == pytest.approx((metrics["f_pos"] + metrics["f_neg"]) / 2)
    assert metrics["split"] == "test"
    assert metrics["all_ones_f_neg"] == 0


def test_boundary_and_pixel_scores_agree_with_the_maps_written(demo_run):
    """ODS, OIS and AP from the probability maps of the inference run, through the functions instead of the metrics."""
    metrics = json.loads((demo_run / "metrics.json").read_text())
    items = json.loads((demo_run / "data" / "dataset.json").read_text())["test"]
    boundary, pixels = [], 0
    for item in items:
        name = item["image"].split("/")[1].removesuffix(".png")
        probability = np.asarray(Image.open(demo_run / "predictions" / f"{name}_probability.png")) / 65535
        truth = np.zeros_like(probability, bool)
        if item["label"]:
            truth = np.asarray(Image.open(demo_run / "data" / item["mask"])) > 0
            boundary.append(compute_boundary_counts(probability, truth))
        pixels = pixels + compute_pixel_counts(probability, truth)
    scores = compute_boundary_scores(np.stack(boundary))
    for name in ("ods", "ois", "boundary_ap"):
        assert metrics[name] == pytest.approx(getattr(scores, name), abs=0.01), name
    assert metrics["px_ap"] == pytest.approx(compute_pixel_average_precision(pixels), abs=0.01)


def test_thresholds_are_chosen_on_validation(demo_run, configs, tmp_path):
    """Evaluating the test split or the validation split, the thresholds are the same."""
    run(
        "evaluating",
        config_file=[str(configs / f"{name}.json") for name in ("train", "demo", "evaluate")],
        split="validation",
        output_dir=str(tmp_path),
        ckpt_dir=str(demo_run / "models"),
        demo_dir=str(demo_run / "data"),
        spatial_size=[32, 32],
        logging_file=False,
    )
    validation, test = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, demo_run))
    for name in ("image_threshold", "best_threshold"):
        assert validation[name] == test[name]
    # chosen on these very images, it can't be worse than 0.5, which is among the candidates
    assert validation["best_threshold_f_mean"] >= validation["f_mean"]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "examples.png").stat().st_size > 1000


def test_per_image_table_has_a_row_per_image_of_the_split(demo_run):
    with (demo_run / "metrics_per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows].count("1") == 2
    assert len(rows) == 4
    metrics = json.loads((demo_run / "metrics.json").read_text())
    positives = [float(row["f_measure"]) for row in rows if row["label"] == "1"]
    assert np.mean(positives) == pytest.approx(metrics["f_pos"])


def test_inference_writes_three_pictures_and_a_row_for_each_image(demo_run):
    images = sorted((demo_run / "data" / "images").glob("*.png"))
    with (demo_run / "predictions" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(path) for path in images]
    for path, row in zip(images, rows, strict=True):
        outputs = [demo_run / "predictions" / f"{path.stem}_{kind}.png" for kind in ("mask", "probability", "overlay")]
        mask, probability, overlay = (np.asarray(Image.open(output)) for output in outputs)
        assert mask.shape == probability.shape == overlay.shape[:2] == (32, 32)
        assert float(row["area_fraction"]) == pytest.approx((mask > 0).mean(), abs=1e-6)
        # pooled by the generalized mean, from the 16-bit file
        pooled = ((probability / 65535.0) ** 4).mean() ** 0.25
        assert float(row["probability"]) == pytest.approx(pooled, abs=1e-4)


def test_same_seed_gives_the_same_weights(demo_run, configs, tmp_path):
    shutil.copytree(demo_run / "data", tmp_path / "data")
    run(
        "training",
        config_file=[str(configs / "train.json"), str(configs / "demo.json")],
        max_epochs=2,
        val_interval=1,
        output_dir=str(tmp_path),
        demo_dir=str(tmp_path / "data"),
        spatial_size=[32, 32],
        logging_file=False,
    )
    first = torch.load(demo_run / "models" / "last.pt", weights_only=True)["model"]
    second = torch.load(tmp_path / "models" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_missing_data_set_is_an_error_and_is_not_made(configs, tmp_path):
    config = [str(configs / "train.json"), str(configs / "demo.json")]
    with pytest.raises(RuntimeError) as caught:
        run("training", config_file=config, dataset_dir=str(tmp_path / "mine"), output_dir=str(tmp_path / "out"))
    assert str(tmp_path / "mine") in str(input_error_of(caught.value))
    assert not (tmp_path / "mine").exists()
