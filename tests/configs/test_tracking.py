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

"""What MLflow and TensorBoard know of a training and of an evaluation, read back by their own clients."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from monai.bundle import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


@pytest.fixture(scope="module")
def tracked(configs, demo_run, tmp_path_factory) -> Path:
    """Folder of a training of three epochs and an evaluation, tracked by MLflow under names of their own."""
    folder = tmp_path_factory.mktemp("tracked")
    settings = {
        "tracking": "mlflow",
        "output_dir": str(folder),
        "dataset_dir": str(demo_run / "data"),
        "spatial_size": [32, 32],
        "learning_rate": 0.0007,
        "logging_file": False,
    }
    files = [str(configs / f"{name}.json") for name in ("train", "demo", "evaluate")]
    run("training", config_file=files[:2], max_epochs=3, run_name="training", **settings)
    run("evaluating", config_file=files, split="test", run_name="evaluating", **settings)
    return folder


def run_of(folder: Path, name: str) -> tuple[mlflow.MlflowClient, Run]:
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlruns.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "monai_experiment"]
    (found,) = client.search_runs(experiment.experiment_id, f"tags.mlflow.runName = '{name}'")
    return client, found


@pytest.mark.parametrize("name", ["epoch_loss", "val_loss", "f_mean"])
def test_the_curves_in_mlflow_are_those_in_tensorboard(tracked, name) -> None:
    client, training = run_of(tracked, "training")
    curve = {point.step: point.value for point in client.get_metric_history(training.info.run_id, name)}
    log = EventAccumulator(str(tracked)).Reload()
    assert curve == pytest.approx({event.step: event.value for event in log.Scalars(name)})
    assert sorted(curve) == [1, 2, 3]
    assert len(set(curve.values())) > 1 or name == "f_mean"


def test_the_runs_in_mlflow_are_finished_and_apart(tracked) -> None:
    for name in ("training", "evaluating"):
        assert run_of(tracked, name)[1].info.status == "FINISHED"
    assert run_of(tracked, "training")[1].data.params["max_epochs"] == "3"
    assert "ods" not in run_of(tracked, "training")[1].data.metrics


def test_an_evaluation_in_mlflow_has_the_numbers_of_metrics_json(tracked) -> None:
    written = json.loads((tracked / "metrics.json").read_text())
    numbers = {name: value for name, value in written.items() if isinstance(value, (int, float))}
    assert {"f_pos", "ods", "px_ap", "auc"} <= set(numbers)
    assert run_of(tracked, "evaluating")[1].data.metrics == pytest.approx(numbers)


def test_hyper_parameters_are_in_tensorboard_with_the_best_metrics(tracked) -> None:
    log = EventAccumulator(str(tracked)).Reload()
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    logged = HParamsPluginData.FromString(content).session_start_info.hparams
    assert logged["optimizer.2.lr"].number_value == 0.0007
    assert logged["loss.constraint.kind"].string_value == "two_sided"  # the demo's
    assert logged["loss.area_weights"].string_value == "[10.0, 2.5, 5.0, 10.0]"
    assert logged["network.deep_supervision"].number_value == 1  # PyTorch takes truth values for numbers
    assert not [name for name in logged if name.startswith("_")]
    for name, best in (("f_mean", max), ("epoch_loss", min)):
        (event,) = log.Scalars(f"best/{name}")
        assert event.value == pytest.approx(best(e.value for e in log.Scalars(name)))
    assert [path for path in tracked.iterdir() if path.is_dir() and path.name[0].isdigit()] == []  # no run of its own
