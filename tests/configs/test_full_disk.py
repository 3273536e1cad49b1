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

"""A disk that is really full, a small file system in memory: one sentence, no half a file, and then it goes on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

TINY = {"--spatial_size": "[32,32]", "--max_epochs": "2", "--val_interval": "1"}
Resize = Callable[[str], None]
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """An empty file system, and what changes its size; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    try:
        yield folder, resize
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def run(quick_python) -> Run:
    def run(run_id: str, configs: list[Path], **options: object) -> subprocess.CompletedProcess:
        files = "[" + ",".join(f"'{path}'" for path in configs) + "]"
        settings = {f"--{name}": str(value) for name, value in options.items()}
        command = [quick_python, "-m", "monai.bundle", "run", run_id, "--config_file", files]
        settings = TINY | settings if run_id in ("training", "evaluating") else settings
        command += [word for pair in settings.items() for word in pair]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


def assert_one_sentence(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    last = done.stderr.split("error: ")[-1]
    for word in words:
        assert word in last


def test_a_training_goes_on_when_there_is_room_again(configs, demo_run, disk, run, tmp_path) -> None:
    folder, resize = disk
    files = [configs / "train.json", configs / "demo.json"]
    settings = {"dataset_dir": demo_run / "data", "output_dir": tmp_path / "run", "ckpt_dir": folder}
    resize("33m")  # for model.pt and the state of the first epoch, not for that of the second
    assert_one_sentence(run("training", files, **settings), "can't be written", "No space left", "make room")
    written = sorted(path.name for path in folder.glob("*.pt"))
    assert {"model.pt", "state_1.pt"} <= set(written)
    for name in written:
        torch.load(folder / name, weights_only=True)
    resize("100m")
    done = run("training", files, **settings)
    assert done.returncode == 0, done.stderr
    assert "Continuing after epoch 1 of 2" in done.stderr + done.stdout
    whole = run("training", files, **settings | {"ckpt_dir": tmp_path / "whole", "output_dir": tmp_path / "whole"})
    assert whole.returncode == 0, whole.stderr
    states = [torch.load(place / "model.pt", weights_only=True) for place in (folder, tmp_path / "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_an_inference_writes_whole_files_or_none(configs, demo_run, disk, run) -> None:
    folder, resize = disk
    resize("64k")
    settings = {"dataset_dir": demo_run / "data" / "images", "ckpt_dir": demo_run / "models", "prediction_dir": folder}
    files = [configs / "inference.json"]
    assert_one_sentence(run("inferring", files, **settings), "No space left")
    for path in folder.glob("*.png"):
        Image.open(path).load()
    resize("10m")
    done = run("inferring", files, **settings)
    assert done.returncode == 0, done.stderr
    images = len(list((demo_run / "data" / "images").iterdir()))
    assert len(list(folder.glob("*_mask.png"))) == images
    assert len((folder / "predictions.csv").read_text().splitlines()) == images + 1


def test_an_evaluation_writes_whole_files_or_none(configs, demo_run, disk, run) -> None:
    folder, resize = disk
    resize("16k")
    settings = {
        "dataset_dir": demo_run / "data",
        "ckpt_dir": demo_run / "models",
        "output_dir": folder,
        "split": "test",
    }
    files = [configs / f"{name}.json" for name in ("train", "demo", "evaluate")]
    assert_one_sentence(run("evaluating", files, **settings), "No space left")
    assert not list(folder.rglob("*.part"))
    if (folder / "metrics.json").exists():  # the tables are written before the pictures, which need more room
        assert json.loads((folder / "metrics.json").read_text())["split"] == "test"
    resize("20m")
    done = run("evaluating", files, **settings)
    assert done.returncode == 0, done.stderr
    assert (folder / "metrics.json").stat().st_size > 0


@pytest.mark.parametrize("name", ["model.ts", "model.onnx"])
def test_an_export_that_has_no_room_leaves_the_earlier_file(configs, red_detector, disk, run, name: str) -> None:
    folder, _ = disk
    (folder / name).write_bytes(b"earlier")
    files = [configs / "inference.json", configs / "export.json"]
    done = run("exporting_file", files, ckpt_path=red_detector, export_file=folder / name)
    assert_one_sentence(done, f"'{folder / name}' can't be written", "No space left", "make room")
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_bytes() == b"earlier"


@pytest.mark.parametrize("program", ["wsinfer", "bioimageio"])
def test_an_exported_folder_is_whole_or_not_there(configs, red_detector, disk, run, program: str) -> None:
    folder, _ = disk
    settings = {"ckpt_path": red_detector, "export_dir": folder / "model", "export_as": program, "mpp": 1}
    files = [configs / "inference.json", configs / "export.json"]
    assert_one_sentence(run("exporting", files, **settings), "No space left")
    assert not list(folder.iterdir())
