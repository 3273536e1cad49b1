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

"""The side-by-side study: a small one, read back from its own files, and gone on with."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "docs" / "compare_methods.py"
SETTINGS = ["--spatial_size", "[32,32]", "--pretrained", "random", "--max_epochs", "1"]
SIZES = ["--seeds", "3", "--training", "2", "--validation", "2"]


def compare(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *arguments, *SIZES, *SETTINGS]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def study(demo_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    done = compare(demo_run / "data", folder, "--rows", "dws + superpixels")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_table_has_the_scores_of_the_runs(study) -> None:
    metrics = json.loads((study / "dws_superpixels_seed3" / "metrics.json").read_text())
    assert metrics["split"] == "test"
    rows = [line.split("|") for line in (study / "table.md").read_text().splitlines()]
    with (study / "dws_superpixels_seed3" / "metrics_per_image.csv").open() as file:
        images = list(csv.DictReader(file))
    marked = [float(image["area_predicted"]) for image in images if int(image["label"])]
    assert [cell.strip() for cell in rows[0][2:5]] == ["F+", "F-", "marked"]
    assert [cell.strip() for cell in rows[2][1:5]] == [
        "dws + superpixels",
        f"{metrics['f_pos']:.3f}",
        f"{metrics['f_neg']:.3f}",
        f"{sum(marked) / len(marked):.3f}",
    ]
    assert [cell.strip() for cell in rows[3][1:4]] == ["all pixels marked", f"{metrics['all_ones_f_pos']:.3f}", "0.000"]


def test_the_reduced_data_set_trains_on_few_and_tests_on_all(study, demo_run) -> None:
    reduced = json.loads((study / "data" / "dataset.json").read_text())
    original = json.loads((demo_run / "data" / "dataset.json").read_text())
    for part in ("training", "validation"):
        assert sorted(item["label"] for item in reduced[part]) == [0, 1]
    chosen = [item["image"] for part in ("training", "validation") for item in reduced[part]]
    assert len(set(chosen)) == 4
    names = {Path(item["image"]).name for item in original["training"]}
    assert {Path(image).name for image in chosen} <= names
    assert [Path(i["image"]).name for i in reduced["test"]] == [Path(i["image"]).name for i in original["test"]]


def test_what_is_finished_is_not_run_again_and_a_failure_is_named(study, demo_run) -> None:
    log = study / "dws_superpixels_seed3" / "log.txt"
    before = log.stat().st_mtime_ns
    done = compare(demo_run / "data", study, "--rows", "dws + superpixels", "dws", "--penalty", "none")
    assert log.stat().st_mtime_ns == before
    assert done.returncode == 1
    failed = study / "dws_seed3" / "log.txt"
    assert f"error: training of 'dws' with seed 3 failed; see {failed}" in done.stderr
    assert "penalty must be one of absolute, relative, got 'none'" in failed.read_text()


def test_weak_methods_stand_beside_the_best_supervised_one(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    ratios = importlib.import_module("compare_methods").ratios

    def runs(*values: tuple[float, float, float]) -> list[dict]:
        return [dict(zip(("f_pos", "f_neg", "ods"), v, strict=True)) for v in values]

    results = {"cdws": runs((0.6, 0.9, 0.2), (0.8, 0.9, 0.3)), "dws": runs((0.4, 1.0, 0.1))}
    assert ratios(results) == ""
    results |= {"unet": runs((0.9, 0.1, 0.9)), "dcan": runs((0.8, 1.0, 0.5))}
    assert ratios(results).strip().splitlines() == [
        "| ratio to dcan | F+ | F- | ODS |",
        "| --- | --- | --- | --- |",
        "| cdws | 0.875 | 0.900 | 0.500 |",
        "| dws | 0.500 | 1.000 | 0.200 |",
    ]
