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

"""The table of predictions: what lies in its folder is replaced only when it says that it is its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ignite.engine import Engine
from scripts.evaluation.predictions import ImageThreshold, PredictionTable
from scripts.runtime.errors import InputError


def run(folder: Path) -> None:
    engine = Engine(lambda engine, batch: [])
    PredictionTable(str(folder)).attach(engine)
    engine.run([0])


@pytest.mark.parametrize("name", ["a_mask.png", "p1_mask.nii.gz", "b_overlay.png", "c_heat.png", "predictions.csv"])
def test_files_called_as_results_are_not_replaced_unless_a_table_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("drawn for a week")
    with pytest.raises(InputError, match=f"{name}' would be replaced by a result, and may be yours"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / "predictions.csv.part").touch()  # of a run that was stopped
    run(tmp_path)
    run(tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == "image,probability,area_fraction,positive\n"


def test_other_files_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "index.html", "predictions.csv"]


def test_a_page_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path)
    (tmp_path / "index.html").write_text("<title>my site</title>")
    with pytest.raises(InputError, match=r"index\.html' would be replaced by a result, and may be yours"):
        run(tmp_path)
    assert (tmp_path / "index.html").read_text() == "<title>my site</title>"


def test_results_of_an_earlier_run_s_images_are_removed_when_a_run_without_them_ends(tmp_path: Path, caplog) -> None:
    """Only those that the earlier table tells of, here one of version 0.6, and that of a run that was stopped."""
    (tmp_path / "predictions.csv").write_text(
        "image,probability,area_fraction\n/in/a.png,0.5,0.1\n../../b.tif,0.5,0.1\n"
    )
    (tmp_path / "predictions.csv.part").write_text("image,probability,area_fraction,positive\nc.png,0.5,0.1,yes\n")
    for name in ("a_mask.png", "a_probability.png", "b_overlay.png", "c_heat.png", "mine_mask.png", "a.png"):
        (tmp_path / name).touch()
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "index.html", "mine_mask.png", "predictions.csv"}
    assert "results of 3 images that are not in this one (a, b, c)" in caplog.text


def test_results_named_after_folders_are_removed_as_others(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("image,probability,area_fraction\n/in/sub/a.png,0.5,0.1\n")
    for name in ("sub_a_mask.png", "other_a_mask.png"):
        (tmp_path / name).touch()
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "other_a_mask.png", "predictions.csv"}


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"image_threshold": 0.3}', 0.3),
        ('{"image_threshold": null}', 0.5),
        ('{"image_threshold": NaN}', 0.5),
        ('{"auc": 1}', 0.5),
        ("[1]", 0.5),
        ("{", 0.5),
        (None, 0.5),
    ],
)
def test_yes_is_from_what_evaluation_has_chosen(tmp_path: Path, content: str | None, value: float) -> None:
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    is_positive = ImageThreshold("auto", str(path))
    assert is_positive.value == value
    assert [is_positive(p) for p in (value, value - 1e-6)] == ["yes", "no"]
    assert ("evaluation in" in str(is_positive)) == (value == 0.3)
    assert ImageThreshold(0.7, str(path)).value == 0.7


@pytest.mark.parametrize(("images", "told"), [(8, ", roughly: on 8 images alone)."), (40, "metrics.json).")])
def test_a_threshold_of_few_images_is_called_rough(tmp_path: Path, images: int, told: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"image_threshold": 0.613, "calibration_images": images}))
    assert str(ImageThreshold("auto", str(path))).endswith(told)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"model_checksum": "1a", "spatial_size": [8, 6]}, "chosen by the evaluation in"),
        ({"model_checksum": "2b", "spatial_size": [8, 6]}, "is of another model: evaluate again"),
        ({"spatial_size": [8, 6]}, "does not say of which model it is: evaluate again"),
        ({"model_checksum": "1a", "spatial_size": [6, 8]}, r"is of images resized to \[6, 8\], not \[8, 6\]: evaluate"),
    ],
)
def test_a_threshold_is_of_one_model_at_one_size(tmp_path: Path, said: dict, why: str) -> None:
    """Nor does what it measured on masks say anything of another."""
    (tmp_path / "metrics.json").write_text(json.dumps({"image_threshold": 0.3, "f_pos": 0.8, **said}))
    model = {"model": "m.pt", "model_checksum": "1a"}
    is_positive = ImageThreshold("auto", str(tmp_path / "metrics.json"), [8, 6], model)
    assert is_positive.value == (0.3 if "chosen" in why else 0.5)
    assert re.search(why, str(is_positive))
    not_compared = "" if "chosen" in why else " On your images no evaluation has compared its outlines with masks."
    drawn = "The line is where the map reaches 0.4, which a no may have too."
    assert is_positive.note("The line", 0.4).endswith(f" {drawn} Model: m.pt.{not_compared}")


@pytest.mark.parametrize(("f_pos", "compared"), [({"f_pos": 0.8}, True), ({}, False), ({"f_pos": None}, False)])
def test_the_page_says_where_no_masks_have_been_compared(tmp_path: Path, f_pos: dict, compared: bool) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"image_threshold": 0.3, **f_pos}))
    note = ImageThreshold("auto", str(tmp_path / "metrics.json")).note("The line", 0.4)
    assert ("On your images no evaluation has compared its outlines with masks." in note) != compared


@pytest.mark.parametrize("value", [1.5, "high", True, None])
def test_a_threshold_of_images_is_a_fraction(value: object) -> None:
    with pytest.raises(InputError, match="image_threshold must be"):
        ImageThreshold(value)
