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

"""Training and evaluation in 2 and 3 processes, as torchrun starts them, give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from monai.bundle import run
from scripts.demo.dataset import make_demo_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COUNTS = {"training": 7, "validation": 2, "test": 5}  # uneven shares, and a process without a validation image
WORKER = "import json, sys; from monai.bundle import run; [run(i, **o) for i, o in json.loads(sys.argv[1])]"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_demo_dataset(tmp_path_factory.mktemp("data") / "seven", counts=COUNTS, size=(32, 32)).parent


class Run(NamedTuple):
    id: str
    overlays: list[str]
    options: dict

    def arguments(self, configs: Path, *more: str) -> dict:
        files = [str(configs / f"{name}.json") for name in ("train", *self.overlays, *more)]
        return {"config_file": files, "logging_file": False, **self.options}


def options_of(data: Path, folder: Path, **changes) -> dict:
    return {
        "dataset_dir": str(data),
        "output_dir": str(folder),
        "ckpt_dir": str(folder / "models"),
        "superpixel_cache": str(folder / "superpixels"),
        "spatial_size": [32, 32],
        "pretrained": "random",
        "micro_batch_size": 2,
        "max_epochs": 2,
        **changes,
    }


def torchrun(python: str, processes: int, *command: str, timeout: int = 400) -> subprocess.CompletedProcess:
    launcher = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*launcher, *command], env=environment, **pipes) as process:
        try:
            output = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its processes, as it would not when killed
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def command_line(job: Run, configs: Path, overlay: str) -> list[str]:
    arguments = [f"--{name}={value}" for name, value in job.arguments(configs, overlay).items()]
    return ["-m", "monai.bundle", "run", job.id, *arguments]


def curve(folder: Path, name: str) -> list[float]:
    log = EventAccumulator(str(folder)).Reload()
    return [event.value for event in log.Scalars(name)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "last.pt", weights_only=True)["model"]


@pytest.fixture(scope="module")
def full_batch(data, configs, quick_python, tmp_path_factory) -> tuple[Path, Path]:
    """CDWS-MIL with superpixels, as the paper trains it, augmented: folders of one process and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    run("training", **Run("training", ["superpixels"], options_of(data, one)).arguments(configs))
    job = Run("training", ["superpixels"], options_of(data, two))
    done = torchrun(quick_python, 2, *command_line(job, configs, "multi_gpu_train"))
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


@pytest.fixture(scope="module")
def mini_batch(data, configs, quick_python, tmp_path_factory) -> tuple[Path, Path]:
    """DWS-MIL, 7 images in steps of 2, trained by plain SGD and evaluated: folders of one process and of three."""
    one, three = (tmp_path_factory.mktemp(name) for name in ("one", "three"))
    jobs = {}
    for folder in (one, three):
        options = options_of(
            data,
            folder,
            batch_size=2,
            learning_rate=0.01,
            optimizer={"_target_": "torch.optim.SGD", "params": "@parameters", "momentum": 0.9},
        )
        jobs[folder] = [
            Run("training", ["dws"], options),
            Run("evaluating", ["dws", "evaluate"], options | {"split": "test"}),
        ]
    for job in jobs[one]:
        run(job.id, **job.arguments(configs))
    overlays = ("multi_gpu_train", "multi_gpu_evaluate")
    pairs = zip(jobs[three], overlays, strict=True)
    # a group can't be made twice in one launch, so it stays
    planned = [(job.id, job.arguments(configs, overlay) | {"finalize": []}) for job, overlay in pairs]
    (three / "worker.py").write_text(WORKER)
    done = torchrun(quick_python, 3, str(three / "worker.py"), json.dumps(planned))
    assert done.returncode == 0, done.stderr[-3000:]
    return one, three


@pytest.mark.parametrize("runs", ["full_batch", pytest.param("mini_batch", marks=pytest.mark.slow)])
def test_curves_of_many_processes_are_those_of_one(runs, request):
    one, many = request.getfixturevalue(runs)
    for name in ("epoch_loss", "val_loss", "f_mean", "f_pos", "f_neg"):
        expected = curve(one, name)
        assert len(expected) == 2
        assert curve(many, name) == pytest.approx(expected, abs=1e-5), name
    assert len(set(curve(one, "epoch_loss"))) == 2  # it moves


@pytest.mark.slow
def test_weights_of_three_processes_are_those_of_one(mini_batch):
    """SGD: the weights differ by what the gradients differ by."""
    one, three = map(weights, mini_batch)
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_weights_of_two_processes_are_nearly_those_of_one(full_batch):
    """Adam divides by the gradient's size: where that is rounding, a weight differs by a fraction of a step of 1e-3."""
    one, two = map(weights, full_batch)
    for name, value in one.items():
        assert (two[name].double() - value.double()).abs().max() < 5e-4, name


@pytest.mark.slow
def test_evaluation_by_three_processes_writes_what_one_writes(mini_batch):
    one, three = mini_batch
    for name in ("metrics.json", "metrics_per_image.csv"):
        assert (three / name).stat().st_size > 100
    metrics, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (three, one))
    assert metrics.pop("spatial_size") == expected.pop("spatial_size")
    for found in (metrics, expected):
        assert found.pop("model")  # each its own
        assert found.pop("model_checksum")
    # from logits in bins, each to about 1e-4: the weights of both differ by rounding
    assert metrics.pop("px_ap") == pytest.approx(expected.pop("px_ap"), abs=2e-4)
    assert metrics == pytest.approx(expected, abs=1e-4)
    assert metrics["images"] == 5
    names = [(folder / "metrics_per_image.csv").read_text().splitlines() for folder in (three, one)]
    assert [row.split(",")[0] for row in names[0]] == [row.split(",")[0] for row in names[1]]
    assert {p.name for p in three.glob("*.png")} == {p.name for p in one.glob("*.png")}


@pytest.mark.parametrize("runs", ["full_batch", pytest.param("mini_batch", marks=pytest.mark.slow)])
def test_only_the_first_process_writes(runs, request):
    one, many = request.getfixturevalue(runs)
    logs = [sorted(p.suffix for p in folder.glob("events.*")) for folder in (one, many)]
    assert len(logs[0]) == len(logs[1]) > 0
    written = [
        {p.name for p in (folder / "models").glob("[!.]*")} for folder in (one, many)
    ]  # a lock goes with its process
    assert written[0] == written[1] >= {"model.pt", "last.pt"}


def test_superpixels_are_made_once_an_image(full_batch):
    counts = [len(list((folder / "superpixels").iterdir())) for folder in full_batch]
    assert counts == [7 + 2, 7 + 2]


def test_bad_data_ends_all_processes_with_one_sentence(data, configs, quick_python, tmp_path):
    content = json.loads((data / "dataset.json").read_text())
    content["training"][0]["label"] = 2
    (tmp_path / "dataset.json").write_text(json.dumps(content).replace("images/", f"{data}/images/"))
    job = Run("training", [], options_of(tmp_path, tmp_path / "out") | {"allow_outside": True})
    done = torchrun(quick_python, 2, *command_line(job, configs, "multi_gpu_train"))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.count("label is 2, must be 0 or 1") == 1
    assert "File" not in done.stderr.split("error: ")[0]  # no traceback of ours; the launcher has its own


def test_without_a_launcher_the_error_says_how_to_start(data, configs, tmp_path):
    job = Run("training", [], options_of(data, tmp_path))
    with pytest.raises(RuntimeError) as caught:
        run(job.id, **job.arguments(configs, "multi_gpu_train"))
    assert "torchrun --nproc_per_node=N" in str(caught.value.__cause__)
