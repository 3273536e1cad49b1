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

"""Stopped trainings, at any moment and in any way, end with the weights of one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from scripts.networks.weights import load_tensors
from scripts.runtime.errors import InputError, report_input_errors
from scripts.training.checkpoints import BestCheckpoint, LastCheckpoint, write_checkpoint
from scripts.training.resume import fit
from scripts.training.sampling import SeededDataset, StepSampler
from scripts.training.trainer import AccumulatingTrainer, MeanLoss
from torch.utils.tensorboard import SummaryWriter

EPOCHS = 4
RATE = 0.01


class Loss(torch.nn.Module):
    """Squared error of each image, and its distance from the teacher."""

    inputs = ("ranking",)
    teacher_decay = 0.9
    needs_ranking = True

    def forward(
        self, prediction: torch.Tensor, target: torch.Tensor, ranking: torch.Tensor | None = None
    ) -> torch.Tensor:
        away = 0 if ranking is None else (prediction - ranking).square().mean(dim=(1, 2, 3))
        return (prediction.mean(dim=(1, 2, 3)) - target[:, 0]) ** 2 + away


Loss.__module__ = "test_resume"  # its name in the record, where this file is run as a program as well


def train(
    folder: Path,
    epochs: int = EPOCHS,
    stop=None,
    resume=True,
    rate: float = RATE,
    workers: int = 0,
    amp: bool = False,
    schedule: str = "constant",
    warm_up: int = 0,
    pretrained: str = "imagenet",
) -> None:
    """A small training with everything that draws at random: shuffling, flips, noise, dropout."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    items = [
        {"image": rng.random((1, 6, 6), np.float32), "label": np.array([i % 2], np.float32), "name": i}
        for i in range(7)
    ]
    transform = Compose([RandFlipd("image", prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.5)])
    dataset = SeededDataset(data=items, transform=transform, progress=False, seed=0)
    sampler = StepSampler(dataset, 4, 2, seed=0)
    workers = {"num_workers": workers, "persistent_workers": workers > 0, "generator": torch.Generator()}
    loader = DataLoader(dataset, batch_sampler=sampler, **workers)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Dropout(0.3), torch.nn.Conv2d(3, 1, 3))
    network.pretrained = pretrained
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(CacheDataset(items[:2], progress=False), batch_size=1),
        network,
        key_val_metric={"score": MeanLoss(lambda output: Loss()(output[0]["pred"][None], output[0]["label"][None]))},
        val_handlers=[BestCheckpoint(folder / "model.pt")],
    )
    optimizer = torch.optim.Adam(network.parameters(), rate)
    loss = Loss()
    loss.warm_up = warm_up
    trainer = AccumulatingTrainer(
        max_epochs=epochs,
        device=torch.device("cpu"),
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        amp=amp,
        lr_schedule=schedule,
        train_handlers=[LastCheckpoint(folder / "last.pt"), ValidationHandler(1, evaluator)],
    )
    if stop is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    fit(trainer, folder, evaluator, SummaryWriter(f"{folder}-log"), resume=resume)


def equal(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def assert_same_results(folder: Path, expected: Path) -> None:
    for name in ("last.pt", "model.pt"):
        results = [torch.load(f / name, weights_only=True) for f in (folder, expected)]
        assert equal(*results), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Folder of a training that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def stop_in(iteration: int):
    def stop(engine) -> None:
        if engine.state.iteration == iteration:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("iteration", [1, 4, 5, 10, 16])  # four to an epoch
def test_a_stopped_training_ends_as_one_that_was_not(tmp_path: Path, whole: Path, iteration: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop=stop_in(iteration))
    train(tmp_path)
    assert_same_results(tmp_path, whole)


def test_with_loader_processes(tmp_path: Path) -> None:
    train(tmp_path / "whole", epochs=2, workers=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", epochs=2, stop=stop_in(6), workers=1)
    train(tmp_path / "stopped", epochs=2, workers=1)
    assert_same_results(tmp_path / "stopped", tmp_path / "whole")


def test_with_a_schedule(tmp_path: Path) -> None:
    train(tmp_path / "whole", schedule="one_cycle")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", schedule="one_cycle", stop=stop_in(10))
    train(tmp_path / "stopped", schedule="one_cycle")
    assert_same_results(tmp_path / "stopped", tmp_path / "whole")


def test_with_mixed_precision(tmp_path: Path, whole: Path) -> None:
    train(tmp_path / "whole", amp=True)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop=stop_in(6), amp=True)
    train(tmp_path / "stopped", amp=True)
    assert_same_results(tmp_path / "stopped", tmp_path / "whole")
    results = [torch.load(folder / "last.pt", weights_only=True) for folder in (tmp_path / "whole", whole)]
    assert not equal(*results)  # it was mixed precision


def test_a_complete_training_is_not_repeated_and_goes_on_for_longer(tmp_path: Path, whole: Path, caplog) -> None:
    train(tmp_path, epochs=2)
    before = torch.load(tmp_path / "last.pt", weights_only=True)
    caplog.clear()
    train(tmp_path, epochs=2, stop=lambda _: pytest.fail("has trained"))
    assert "is complete (2 epochs)" in caplog.text
    assert "--max_epochs 4 --resume changed trains longer" in caplog.text
    assert equal(before, torch.load(tmp_path / "last.pt", weights_only=True))
    train(tmp_path, epochs=EPOCHS)
    assert_same_results(tmp_path, whole)


def test_a_complete_training_of_version_1_0_4_is_not_repeated(tmp_path: Path, caplog) -> None:
    """Which recorded how the recommended network is computed."""
    train(tmp_path, epochs=1)
    path = tmp_path / "state_1.pt"
    content = load_tensors(path)
    settings = json.loads(content["settings"]) | {"network.folded": "FoldedEncoder", "network.folded.names": "[...]"}
    write_checkpoint(content | {"settings": json.dumps(settings)}, path)
    train(tmp_path, epochs=1, stop=lambda _: pytest.fail("has trained"))
    assert "is complete (1 epochs)" in caplog.text


def test_a_complete_training_of_before_version_1_0_6_is_not_repeated(tmp_path: Path, caplog) -> None:
    """Which did not record the recommended network's first weights."""
    train(tmp_path, epochs=1)
    path = tmp_path / "state_1.pt"
    content = load_tensors(path)
    settings = json.loads(content["settings"])
    assert settings.pop("network.pretrained") == "imagenet"
    write_checkpoint(content | {"settings": json.dumps(settings)}, path)
    train(tmp_path, epochs=1, stop=lambda _: pytest.fail("has trained"))
    assert "is complete (1 epochs)" in caplog.text


def test_other_first_weights_replace_a_complete_training(tmp_path: Path, caplog) -> None:
    train(tmp_path, epochs=1)
    train(tmp_path, epochs=1, pretrained="mine.pt")
    assert "is replaced: network.pretrained was 'imagenet', is 'mine.pt'." in caplog.text


def test_what_it_proposes_keeps_a_complete_training_whose_settings_follow_from_its_length(tmp_path, caplog) -> None:
    train(tmp_path, epochs=2, warm_up=1)
    caplog.clear()
    train(tmp_path, epochs=4, warm_up=2, resume="changed")
    assert "Continuing after epoch 2 of 4" in caplog.text


def test_anew_when_asked(tmp_path: Path, whole: Path) -> None:
    train(tmp_path, epochs=1, rate=1.0)
    train(tmp_path, resume=False)
    assert_same_results(tmp_path, whole)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path, whole: Path, caplog, damage) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop=stop_in(14))
    newest = tmp_path / "state_1.pt"  # of epoch 3
    newest.write_bytes(newest.read_bytes()[:-100] if damage is None else damage)
    train(tmp_path)
    assert f"'{newest}' (" in caplog.text
    assert "can't be read; continuing from epoch 2" in caplog.text
    assert_same_results(tmp_path, whole)


def test_one_changed_byte_in_a_state_is_noticed(tmp_path: Path, whole: Path, caplog) -> None:
    """PyTorch reads it, and the training would go on to other weights."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop=stop_in(14))
    newest = tmp_path / "state_1.pt"  # of epoch 3
    weights = next(iter(torch.load(newest, weights_only=True)["model"].values()))
    content = bytearray(newest.read_bytes())
    content[content.index(weights.numpy().tobytes())] ^= 1
    newest.write_bytes(content)
    assert torch.load(newest, weights_only=True)["epoch"] == 3
    train(tmp_path)
    assert "have changed since they were written) can't be read; continuing from epoch 2" in caplog.text
    assert_same_results(tmp_path, whole)


def test_two_damaged_states_are_an_error(tmp_path: Path) -> None:
    for name in ("state_0.pt", "state_1.pt"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"state_0.pt.*state_1.pt.* --resume False"):
        train(tmp_path)


def test_a_state_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"format": 2, "epoch": 1, "model": Path("harmless")}, tmp_path / "state_1.pt")
    with pytest.raises(InputError, match="can't be read"):
        train(tmp_path)


def rates(folder: Path) -> list[float]:
    return [group["lr"] for group in torch.load(folder / "last.pt", weights_only=True)["optimizer"]["param_groups"]]


def test_changed_settings_are_named_and_refused_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop=stop_in(6))
    with pytest.raises(InputError, match=r"optimizer.0.lr was 0.01, is 0.5"):
        train(tmp_path, rate=0.5)
    with pytest.raises(InputError, match=r"loss.warm_up was 0, is 1 \(by --warm_up, or a part of all epochs\)"):
        train(tmp_path, warm_up=1)
    train(tmp_path, epochs=2, rate=0.5, resume="changed")
    assert rates(tmp_path) == [0.5]
    with pytest.raises(InputError, match="resume must be"):
        train(tmp_path, resume="yes")


def test_a_complete_training_is_replaced_by_one_with_other_settings(tmp_path: Path, whole: Path, caplog) -> None:
    train(tmp_path, epochs=1, rate=0.5)
    train(tmp_path)
    assert "is replaced: optimizer.0.lr was 0.5, is 0.01" in caplog.text
    assert_same_results(tmp_path, whole)


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)

    def spoil(engine) -> None:
        with torch.no_grad():
            engine.network[0].weight.fill_(float("nan"))

    with pytest.raises(InputError, match="not finite after epoch 2"):
        train(tmp_path, epochs=2, stop=spoil)
    for name in ("last.pt", "state_1.pt"):
        state = torch.load(tmp_path / name, weights_only=True)["model"]
        assert all(torch.isfinite(value).all() for value in state.values())
    assert not (tmp_path / "state_0.pt").exists()


def test_a_full_disk_leaves_the_older_files_and_the_same_command_goes_on(tmp_path: Path, whole: Path, monkeypatch):
    train(tmp_path, epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"can't be written \(No space left on device\); make room"):
        train(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    train(tmp_path)
    assert_same_results(tmp_path, whole)


def slow(engine) -> None:
    print("iteration", engine.state.iteration, flush=True)
    time.sleep(600 if sys.argv[2:] == [str(engine.state.iteration)] else 0.02)


def start(python: str, folder: Path, *stays_at: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "bundle")}
    return subprocess.Popen(
        [python, __file__, str(folder), *stays_at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a job in the background ignores it
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_killed_by_a_signal(quick_python: str, tmp_path: Path, whole: Path, number: signal.Signals) -> None:
    process = start(quick_python, tmp_path, "10")
    for line in process.stdout:
        if line.strip() == "iteration 10":
            process.send_signal(number)
    errors = process.stderr.read()
    if number == signal.SIGKILL:
        assert process.wait() == -number
    else:
        assert process.wait() == 128 + number
        assert f"stopped by {number.name}" in errors
        assert "Traceback" not in errors
        assert (tmp_path / "last.pt").exists()
    train(tmp_path)
    assert_same_results(tmp_path, whole)


@pytest.mark.slow
def test_killed_at_random_moments(quick_python: str, tmp_path: Path, whole: Path) -> None:
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")))
    for _ in range(int(os.environ.get("KILLS", "5"))):
        process = start(quick_python, tmp_path)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
    train(tmp_path)
    assert_same_results(tmp_path, whole)


if __name__ == "__main__":
    report_input_errors()
    train(Path(sys.argv[1]), stop=slow)
