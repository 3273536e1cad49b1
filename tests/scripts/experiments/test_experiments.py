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


"""A small study from the command to the report in a browser, killed in the middle, gone on with, and repeated."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from scripts.experiments.__main__ import run
from scripts.experiments.plan import EXPERIMENTS, METHODS, SUPERVISED, Cell, Plan, Row, Study, merge_cells
from scripts.experiments.report import ratios
from scripts.experiments.results import (
    Evaluation,
    RowResults,
    choose_area_weights,
    choose_fusion_weights,
    fusion_scores,
    simplex,
)
from scripts.experiments.runner import prepare_cells
from scripts.experiments.variants import load_base
from scripts.runtime.errors import InputError

SETTINGS = ["--spatial_size", "[32,32]", "--pretrained", "random", "--max_epochs", "1", "--val_interval", "1"]
SETTINGS += ["--side_learning_rate", "0.05"]  # at a hundredth of the trunk's, the maps of two steps are constant
PYTHON = sys.executable  # that of a process whose group is killed


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    study = ["comparison", "--dataset_dir", str(data), "--output_dir", str(folder), "--methods", "cdws"]
    return [*study, "--seeds", "3", "4", *more, *SETTINGS]


@pytest.fixture(scope="module", autouse=True)
def cells_are_quick(quick_python) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", quick_python)
        yield


@pytest.fixture(scope="module")
def study(demo_run, tmp_path_factory) -> Path:
    """Killed while the first cell runs, then gone on with."""
    folder = tmp_path_factory.mktemp("experiments")
    command = [PYTHON, "-m", "scripts.experiments", *arguments(demo_run / "data", folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "bundle")}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    first = folder / "cells" / "cdws_base_seed3" / "training" / "command.txt"
    while not first.exists() and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert first.exists()
    assert not (folder / "comparison.html").exists()
    run(arguments(demo_run / "data", folder))
    return folder


def test_the_report_has_the_numbers_of_the_runs(study) -> None:
    metrics = [
        json.loads((study / "cells" / f"cdws_base_seed{seed}" / "evaluation" / "metrics.json").read_text())
        for seed in (3, 4)
    ]
    assert [m["split"] for m in metrics] == ["test", "test"]
    assert metrics[0]["px_ap"] != metrics[1]["px_ap"]
    lines = [[c.strip() for c in s.split("|")[1:-1]] for s in (study / "comparison.md").read_text().splitlines()]
    header = next(cells for cells in lines if "F+" in cells)
    row = dict(zip(header, next(cells for cells in lines if cells[:1] == ["cdws"]), strict=True))
    for column, key in {"F+": "f_pos", "F-": "f_neg", "ODS": "ods", "pixel AP": "px_ap", "AUC": "auc"}.items():
        values = [m[key] for m in metrics]
        assert row[column] == f"{mean(values):.3f} ± {stdev(values):.3f}"
        assert row[column] in (study / "comparison.html").read_text(encoding="utf-8")
    with (study / "comparison.csv").open() as file:
        assert [float(line["px_ap"]) for line in csv.DictReader(file)] == [m["px_ap"] for m in metrics]


def test_each_run_keeps_what_repeats_it(study) -> None:
    cell = study / "cells" / "cdws_base_seed4"
    assert json.loads((cell / "training" / "config.json").read_text())["seed"] == 4
    assert "monai.bundle run training" in (cell / "training" / "command.txt").read_text()
    assert json.loads((cell / "training" / "environment.json").read_text())["monai"]
    assert (cell / "training" / "models" / "last.pt").exists()
    assert json.loads((cell / "evaluation" / "timing.json").read_text())["seconds_per_image"] > 0
    assert json.loads((cell / "training" / "timing.json").read_text())["images"] == 6


@pytest.fixture(scope="module")
def two_rounds(demo_run, tmp_path_factory, quick_python) -> Path:
    """The recommended method: its cell, stopped in the second round, then gone on with."""
    folder = tmp_path_factory.mktemp("rounds")
    words = ["comparison", "--dataset_dir", str(demo_run / "data"), "--output_dir", str(folder), "--seeds", "3"]
    words += ["--methods", "recommended", *SETTINGS[:4], "--max_epochs", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "bundle")}
    process = subprocess.Popen([quick_python, "-m", "scripts.experiments", *words], env=environment)
    cell = folder / "cells" / "recommended_base_seed3"
    while not (cell / "training" / "command.txt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    process.wait()
    first = (cell / "round_1" / "finished.json").stat().st_mtime_ns
    assert not (cell / "training" / "finished.json").exists()
    run(words)
    assert (cell / "round_1" / "finished.json").stat().st_mtime_ns == first
    return cell


def test_a_round_learns_from_the_one_before_at_the_settings_of_all(two_rounds) -> None:
    first, second = (json.loads((two_rounds / name / "config.json").read_text()) for name in ("round_1", "training"))
    assert "ranked_by" not in first
    assert second["ranked_by"] == str(two_rounds / "round_1" / "models" / "model.pt")
    assert Path(second["ranked_by"]).is_file()
    for config in (first, second):
        assert config["method"] == "area_ranked"
        assert (config["max_epochs"], config["spatial_size"]) == (2, [32, 32])


def test_the_last_epoch_of_the_last_round_is_scored_as_it_is_to_be_used(two_rounds) -> None:
    """Over flips, and shifted: in biases of its heads alone the weights differ from those of the last step."""
    assert json.loads((two_rounds / "evaluation" / "config.json").read_text())["tta"]
    metrics = json.loads((two_rounds / "evaluation" / "metrics.json").read_text())
    models = two_rounds / "training" / "models"
    assert metrics["model"].startswith(f"{models / 'model.pt'} ")
    shifted = torch.load(models / "model.pt", weights_only=True)
    last = torch.load(models / "last.pt", weights_only=True)["model"]
    changed = [name for name, value in last.items() if not torch.equal(value, shifted[name])]
    assert changed
    assert all(name.startswith("heads.") and name.endswith(".bias") for name in changed)


def test_the_times_of_rounds_add_up(two_rounds) -> None:
    rounds = [json.loads((two_rounds / name / "timing.json").read_text()) for name in ("round_1", "training")]
    with (two_rounds.parents[1] / "comparison_times.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["training_seconds"]) == pytest.approx(sum(timing["seconds_per_image"] for timing in rounds))
    assert "recommended; 2 rounds" in (two_rounds.parents[1] / "comparison.html").read_text(encoding="utf-8")


def test_what_is_finished_is_not_run_again_and_the_table_stays(study, demo_run) -> None:
    files = sorted((study / "cells").rglob("finished.json"))
    before, table = [file.stat().st_mtime_ns for file in files], (study / "comparison.md").read_text()
    run(arguments(demo_run / "data", study))
    assert len(files) == 4
    assert [file.stat().st_mtime_ns for file in files] == before
    assert (study / "comparison.md").read_text() == table


def test_changed_settings_are_refused_by_name(study, demo_run) -> None:
    with pytest.raises(InputError, match=r"cdws_base_seed3 \(learning_rate: None -> 0\.1\)"):
        run(arguments(demo_run / "data", study, "--learning_rate", "0.1"))


def test_parts_run_apart_and_anew_replaces_what_has_other_settings(study, demo_run, tmp_path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    (folder / "comparison.html").unlink()
    finished = [folder / "cells" / f"cdws_base_seed{seed}" / "training" / "finished.json" for seed in (3, 4)]
    changed = ["--learning_rate", "0.1"]
    run(arguments(demo_run / "data", folder, "--anew", "--shard", "2/2", *changed))
    assert [file.is_file() for file in finished] == [False, True]
    assert not (folder / "comparison.html").exists()
    before = finished[1].stat().st_mtime_ns
    run(arguments(demo_run / "data", folder, *changed))
    assert finished[1].stat().st_mtime_ns == before
    assert (folder / "comparison.html").is_file()
    for file in finished:
        assert json.loads((file.parent / "config.json").read_text())["learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_epoch", "3"], r"no setting 'max_epoch' in the configs \(did you mean max_epochs\?\)"),
        (["--methods", "cdw"], "no method 'cdw'"),
        (["--shard", "3/2"], "like 1/4"),
        (["--overlays", "minibach"], r"no overlay 'minibach' .*\(did you mean minibatch\?\)"),
    ],
)
def test_what_cannot_be_used_is_named(more, message, demo_run, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        run(arguments(demo_run / "data", tmp_path, *more))
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("experiment", "more", "cells"),
    [
        ("less_data", [], ["dws_50_seed3_seed3", "dws_base_seed3", "cdws_50_seed3_seed3", "cdws_base_seed3"]),
        ("less_data", ["--methods", "recommended"], ["recommended_50_seed3_seed3", "recommended_base_seed3"]),
        ("cross_validation", ["--methods", "dws"], ["dws_fold1of2_seed0", "dws_fold2of2_seed0"]),
        (
            "area_noise",
            ["--methods", "recommended"],
            [
                "recommended_area_steps_of_0.05_area_step_0.05_seed3",
                "recommended_base_seed3",
                "recommended_area_steps_of_0.25_area_step_0.25_seed3",
                "recommended_area_noise_of_0.15_seed3_seed3",
                "recommended_area_missing_for_half_seed3_seed3",
                "recommended_area_missing_seed3",
            ],
        ),
    ],
)
def test_experiments_are_of_the_methods_that_are_named(experiment, more, cells, demo_run, tmp_path, capsys) -> None:
    words = [experiment, "--dataset_dir", str(demo_run / "data"), "--output_dir", str(tmp_path), "--list"]
    words += ["--seeds", "3", "--folds", "2", "--fractions", "0.5", "1"]
    run([*words, *more])
    assert capsys.readouterr().out.split() == cells
    with pytest.raises(InputError, match="no method 'recomended'"):
        run([*words, "--methods", "recomended"])


def test_areas_of_training_and_validation_images_are_altered_and_without_them_there_is_one_round(
    demo_run, tmp_path
) -> None:
    study = Study(load_base(demo_run / "data"), (), seeds=[3], methods=["recommended"])
    plan = EXPERIMENTS["area_noise"](study)
    assert plan.reference == "recommended, steps of 0.1"
    rows = {row.name.removeprefix("recommended, "): study.variants[row.cells[0].data] for row in plan.rows}
    for split, positives in (("training", 3), ("validation", 2)):
        areas = {
            name: [item["area"] for item in variant[split] if "area" in item and item["label"]]
            for name, variant in rows.items()
        }
        assert len(areas["steps of 0.25"]) == positives
        assert {area % 0.25 for area in areas["steps of 0.25"]} == {0}
        assert len(areas["missing for half"]) < positives
        assert areas["no area"] == []
    assert all(variant["test"] == study.base["test"] for variant in rows.values())
    prepare_cells(tmp_path, study, merge_cells([plan]), [], {})
    rounds = {
        path.parent.name: json.loads(path.read_text())["rounds"] for path in (tmp_path / "cells").glob("*/cell.json")
    }
    assert rounds.pop("recommended_area_missing_seed3") == 1
    assert set(rounds.values()) == {2}


def test_a_failed_run_is_named_with_its_reason(demo_run, tmp_path) -> None:
    with pytest.raises(InputError, match=r"'dws_base_seed3' failed: error: .*batch_size"):
        run(arguments(demo_run / "data", tmp_path, "--methods", "dws", "--batch_size", "0"))


def test_the_report_fits_a_phone_and_shows_its_pictures(study, browser) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((study / "comparison.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(widths) >= 4
    assert min(widths) > 0
    assert browser.get_log("browser") == []


def results(name: str, *metrics: dict) -> RowResults:
    return RowResults(Row(name, ()), tuple(Evaluation(Path(), m, (), {}) for m in metrics))


def test_weak_methods_stand_beside_the_best_supervised_one() -> None:
    def row(name: str, *values: tuple[float, float, float]) -> RowResults:
        return results(name, *(dict(zip(("f_pos", "f_neg", "ods"), v, strict=True)) for v in values))

    rows = [row("cdws", (0.6, 0.9, 0.2), (0.8, 0.9, 0.3)), row("dws", (0.4, 1.0, 0.1))]
    assert ratios(rows) is None
    table = ratios([*rows, row("unet", (0.9, 0.1, 0.9)), row("dcan", (0.8, 1.0, 0.5))])
    assert table.header == ["ratio to dcan", "F+", "F-", "ODS"]
    assert [line["cells"] for line in table.rows] == [
        ["cdws", "0.875", "0.900", "0.500"],
        ["dws", "0.500", "1.000", "0.200"],
    ]


def test_the_chosen_overlays_have_the_best_candidate() -> None:
    rows = [results("a", {"f_mean": 0.5}, {"f_mean": 0.7}), results("b", {"f_mean": 0.9}, {"f_mean": 0.4})]
    chosen = choose_area_weights(rows, [(1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)])
    assert chosen["side_area_weights"] == [5.0, 6.0, 7.0]
    assert chosen["fusion_area_weight"] == 8.0
    assert choose_fusion_weights([(1, 0, 0), (0, 1, 0)], [(0.2, 0.9), (0.6, 0.7)])["fusion_weights"] == [0, 1, 0]


def test_the_grid_is_the_simplex() -> None:
    grid = simplex(0.05)
    assert len(set(grid)) == len(grid) == 231
    assert np.allclose(np.sum(grid, axis=1), 1)
    assert (0.2, 0.35, 0.45) in grid


def test_side_maps_are_fused_and_scored(tmp_path) -> None:
    """One positive image of two pixels, truth (1, 0), and one negative; two sides."""
    sides = []
    for name, positive, negative in (("a", (1.0, 0.0), (1.0, 0.0)), ("b", (0.0, 0.0), (0.0, 0.0))):
        folder = tmp_path / name
        (folder / "maps").mkdir(parents=True)
        for position, (values, truth) in enumerate(((positive, (True, False)), (negative, (False, False)))):
            probability = np.array([[round(v * 65535) for v in values]], np.uint16)
            np.savez(folder / "maps" / f"{position}.npz", probability=probability, truth=np.array([truth]))
        images = ({"label": "1"}, {"label": "0"})
        sides.append(RowResults(Row(name, ()), (Evaluation(folder, {}, images, {}),)))
    # a alone finds the pixel in both: F+ 1; of the negative one pixel of two is left, F- 2 x 1 / (1 + 2)
    assert fusion_scores(sides, [(1.0, 0.0), (0.25, 0.75)]) == [(1.0, pytest.approx(2 / 3)), (0.0, 1.0)]


def test_supervised_methods_are_methods_and_cells_have_names_of_their_own() -> None:
    assert METHODS.keys() > SUPERVISED.keys()
    names = {Cell(method, seed=seed).name for method in METHODS for seed in (0, 1)}
    assert len(names) == 2 * len(METHODS)
    assert Plan("", "", (), "").rows == ()


PARENT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from scripts.runtime.errors import report_input_errors
from scripts.experiments import runner
report_input_errors()
folder = Path(sys.argv[1])
cells = [SimpleNamespace(name=name) for name in "abc"]
for cell in cells:
    runner.cell_folder(folder, cell).mkdir(parents=True)
runner._has_finished = lambda *_: False
runner.sys = SimpleNamespace(executable=sys.argv[2])
runner.run_cells(folder, cells, jobs=2)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_ends_its_children(tmp_path, number) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/$$.pid\nexec sleep 300\n")
    program.chmod(0o755)
    bundle = Path(__file__).resolve().parents[3] / "bundle"
    command = [sys.executable, "-c", PARENT, str(tmp_path / "study"), str(program)]
    parent = subprocess.Popen(command, cwd=bundle, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert parent.poll() is None, parent.stderr.read()
        time.sleep(0.1)
    children = [int(path.stem) for path in tmp_path.glob("*.pid")]
    parent.send_signal(number)
    _, told = parent.communicate(timeout=60)
    assert parent.returncode == 128 + number
    assert "Traceback" not in told
    assert f"stopped by {number.name}" in told
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert len(list(tmp_path.glob("*.pid"))) == 2  # the third is not begun


def test_a_misspelt_experiment_is_refused_with_the_nearest(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["comparsion", "--output_dir", "out"])
    assert "'comparsion' is no experiment (did you mean comparison?)" in capsys.readouterr().err
