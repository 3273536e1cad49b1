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

"""Evaluation through its shipped config, of data sets that are not whole."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from monai.bundle import run
from PIL import Image
from scripts.data.datalist import load_datalist
from scripts.evaluation import report
from scripts.evaluation.scores import score_image
from scripts.runtime.errors import input_error_of

SIDE = 32
EXAMPLES = ("best", "median", "worst", "worst negative")


@pytest.fixture
def tests_alone(tmp_path):
    """A data set of a split ``test``, with masks; the right half of positive images is red."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, SIDE // 2 :] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    items = []
    for name, label in (("a $x_{", 1), ("b", 1), ("c", 0), ("d", 0)):
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        picture[..., 0] = mask * label
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        items.append({"image": f"{name}.png", "label": label} | ({"mask": "mask.png"} if label else {}))
    (tmp_path / "dataset.json").write_text(json.dumps({"test": items}))
    return tmp_path


def evaluate(configs, red_detector, folder, **options):
    run(
        "evaluating",
        config_file=[str(configs / "train.json"), str(configs / "evaluate.json")],
        dataset_dir=str(folder),
        output_dir=str(folder / "out"),
        ckpt_path=str(red_detector),
        fusion_weights=[1.0, 0.0, 0.0],
        spatial_size=[SIDE, SIDE],
        logging_file=False,
        **{"split": "test"} | options,
    )


def infer(configs, red_detector, folder, image, **options):
    run(
        "inferring",
        config_file=str(configs / "inference.json"),
        dataset_dir=str(folder / image),
        output_dir=str(folder / "out"),
        ckpt_path=str(red_detector),
        fusion_weights=[1.0, 0.0, 0.0],
        spatial_size=[SIDE, SIDE],
        logging_file=False,
        **options,
    )


def test_images_kept_in_memory_are_scored_as_others(configs, red_detector, tests_alone):
    scores = []
    for kept in ({}, {"cache_rate": 0.5}):  # some of them, others not
        evaluate(configs, red_detector, tests_alone, **kept)
        scores.append((tests_alone / "out" / "metrics.json").read_text())
        (tests_alone / "out" / "metrics.json").unlink()
    assert scores[0] == scores[1]


def test_validation_images_choose_the_same_thresholds_when_they_are_the_scored_ones(
    configs, red_detector, tests_alone, monkeypatch
):
    """In one pass over them, where scoring others takes a second one."""
    items = json.loads((tests_alone / "dataset.json").read_text())["test"]
    for item in items:
        item |= {"area": 0.5} if item["label"] else {}
    (tests_alone / "dataset.json").write_text(json.dumps({"test": items, "validation": items}))
    found, scored = {}, []
    monkeypatch.setattr(report, "score_image", lambda **image: scored.append(image) or score_image(**image))
    for split in ("test", "validation"):
        evaluate(configs, red_detector, tests_alone, split=split, area_step=0.25, allow_outside=True)
        found[split] = json.loads((tests_alone / "out" / "metrics.json").read_text()) | {"split": ""}
        (tests_alone / "out" / "metrics.json").unlink()
    assert len(scored) == 2 * 4 + 4
    assert found["validation"] == found["test"]
    assert found["validation"]["calibration_images"] == 4
    assert 0 < found["validation"]["image_threshold"] < 1


def test_a_part_that_is_too_small_is_neither_scored_nor_written(configs, red_detector, tests_alone):
    """Four red pixels of 1024 beside the true half: F is 1024 / 1028 with them, and 1 without."""
    picture = np.asarray(Image.open(tests_alone / "b.png")).copy()
    picture[8:10, 4:6, 0] = 255
    (tests_alone / "dataset.json").write_text(
        json.dumps({"test": [{"image": "b.png", "label": 1, "mask": "mask.png"}, {"image": "c.png", "label": 0}]})
    )
    Image.fromarray(picture).save(tests_alone / "b.png")
    for min_part, expected in ((4 / SIDE**2, 1024 / 1028), (5 / SIDE**2, 1.0)):
        evaluate(configs, red_detector, tests_alone, min_part=min_part)
        assert json.loads((tests_alone / "out" / "metrics.json").read_text())["f_pos"] == pytest.approx(expected)
        infer(configs, red_detector, tests_alone, "b.png", min_part=min_part)
        mask = np.asarray(Image.open(tests_alone / "out" / "predictions" / "b_mask.png")) > 0
        assert mask.sum() == (516 if expected < 1 else 512)


def test_a_large_picture_is_scored_by_the_mask_that_inference_writes(configs, red_detector, tests_alone):
    """Its red stripes, as wide as a picture's of the training size, would be lost if it were shrunk to that size."""
    stripes = np.zeros((3 * SIDE, 3 * SIDE), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 255
    Image.fromarray(np.stack([stripes, 0 * stripes, 0 * stripes], axis=2)).save(tests_alone / "large.png")
    Image.fromarray(stripes).save(tests_alone / "stripes.png")
    items = [{"image": "large.png", "label": 1, "mask": "stripes.png"}, {"image": "c.png", "label": 0}]
    (tests_alone / "dataset.json").write_text(json.dumps({"test": items}))
    found = {}
    for tiled in ("auto", False):
        settings = {"original_size": [SIDE, SIDE], "tiled": tiled}
        evaluate(configs, red_detector, tests_alone, **settings)
        with (tests_alone / "out" / "metrics_per_image.csv").open(newline="") as file:
            found[tiled] = next(csv.DictReader(file))
        infer(configs, red_detector, tests_alone, "large.png", **settings)
        mask = np.asarray(Image.open(tests_alone / "out" / "predictions" / "large_mask.png")) > 0
        assert float(found[tiled]["area_predicted"]) == pytest.approx(mask.mean())
        assert float(found[tiled]["f_measure"]) == pytest.approx(
            2 * (mask & (stripes > 0)).sum() / (mask.sum() + (stripes > 0).sum())
        )
        with (tests_alone / "out" / "predictions" / "predictions.csv").open(newline="") as file:
            assert float(next(csv.DictReader(file))["probability"]) == pytest.approx(
                float(found[tiled]["probability"]), rel=1e-4
            )
    assert float(found["auto"]["f_measure"]) > 0.95
    assert float(found[False]["f_measure"]) < 0.8


def test_a_test_set_alone_is_scored_without_what_validation_would_choose(configs, red_detector, tests_alone, caplog):
    evaluate(configs, red_detector, tests_alone)
    metrics = json.loads((tests_alone / "out" / "metrics.json").read_text())
    assert metrics["auc"] == 1.0
    assert metrics["f_pos"] > 0.9
    assert metrics["f_neg"] == 1.0
    assert not {"accuracy", "image_threshold", "best_threshold", "best_threshold_f_mean"} & set(metrics)
    assert "no validation images to choose thresholds on" in caplog.text
    assert (tests_alone / "out" / "examples.png").is_file()  # with a title that is no formula
    assert (tests_alone / "out" / "side_outputs.png").is_file()


@pytest.mark.parametrize("masked", [0, 1])
def test_without_masks_the_examples_are_shown_by_probability(
    configs, red_detector, tests_alone, caplog, monkeypatch, masked
):
    items = json.loads((tests_alone / "dataset.json").read_text())["test"]
    for item in items[masked:]:
        item.pop("mask", None)
    (tests_alone / "dataset.json").write_text(json.dumps({"test": items}))
    texts, write = [], Axes.text
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, s, **more: texts.append(s) or write(axes, x, y, s, **more))
    evaluate(configs, red_detector, tests_alone)
    with (tests_alone / "out" / "metrics_per_image.csv").open() as file:
        known = {
            Path(row["image"]).name: f"probability {float(row['probability']):.2f}" for row in csv.DictReader(file)
        }
    titles = [text.split("\n") for text in texts if ".png" in text and "\n" in text]
    assert [title for title, _ in titles] == [
        f"{what}, {known[name]}" for what, (_, name) in zip(EXAMPLES, titles, strict=True)
    ]
    assert f"{2 - masked} images have no mask" in caplog.text
    assert not (tests_alone / "out" / "curves.png").exists()
    with Image.open(tests_alone / "out" / "examples.png") as image:
        picture = np.asarray(image.convert("L"))
    height, width = picture.shape
    truths = picture[height // 8 : -height // 8, round(width * 0.27) : round(width * 0.45)]
    assert (truths == 153).mean() > 0.1  # 0.6 of 255: grey
    assert (tests_alone / "out" / "side_outputs.png").is_file()


def test_an_image_that_vanishes_is_named_and_the_others_are_scored(configs, red_detector, tests_alone, monkeypatch):
    def then_remove(*arguments, **options):
        found = load_datalist(*arguments, **options)
        (tests_alone / "b.png").unlink()
        return found

    monkeypatch.setattr("scripts.data.datalist.load_datalist", then_remove)
    with pytest.raises(RuntimeError) as caught:
        evaluate(configs, red_detector, tests_alone)
    assert f"'{tests_alone / 'b.png'}': can't be read" in str(input_error_of(caught.value))
    assert json.loads((tests_alone / "out" / "metrics.json").read_text())["images"] == 3
    with (tests_alone / "out" / "metrics_per_image.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [
            str(tests_alone / name) for name in ("a $x_{.png", "c.png", "d.png")
        ]


EVALUATE_AND_REMOVE = """
import sys
from pathlib import Path
import scripts.data.datalist as datalist
from monai.bundle import run
check = datalist.load_datalist
def then_remove(*arguments, **options):
    found = check(*arguments, **options)
    Path(sys.argv[1], "b.png").unlink(missing_ok=True)
    return found
datalist.load_datalist = then_remove
run("evaluating", config_file=sys.argv[4:], dataset_dir=sys.argv[1], output_dir=sys.argv[2], ckpt_path=sys.argv[3],
    fusion_weights=[1.0, 0.0, 0.0], split="test", spatial_size=[32, 32], logging_file=False,
    device="$torch.device('cpu')")
"""


def test_an_image_that_vanishes_costs_no_other_in_many_processes(configs, red_detector, tests_alone, quick_python):
    """The second of four: the second process has the fourth left, and rows stay in the order of the images."""
    (tests_alone / "evaluate.py").write_text(EVALUATE_AND_REMOVE)
    command = [quick_python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tests_alone / "evaluate.py"), str(tests_alone), str(tests_alone / "out"), str(red_detector)]
    command += [str(configs / f"{name}.json") for name in ("train", "evaluate", "multi_gpu_evaluate")]
    environment = os.environ | {"PYTHONPATH": str(configs.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode != 0
    assert f"  - '{tests_alone / 'b.png'}': can't be read" in done.stderr, done.stderr[-3000:]
    assert json.loads((tests_alone / "out" / "metrics.json").read_text())["images"] == 3
    with (tests_alone / "out" / "metrics_per_image.csv").open() as file:
        rows = [(Path(row["image"]).name, row["label"]) for row in csv.DictReader(file)]
    assert rows == [("a $x_{.png", "1"), ("c.png", "0"), ("d.png", "0")]
    assert (tests_alone / "out" / "examples.png").is_file()
