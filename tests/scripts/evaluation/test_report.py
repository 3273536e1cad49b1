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

"""What the handlers do at the edges; their results on whole runs are tested with the configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from scripts.runtime.errors import InputError
from scripts.training.checkpoints import NetworkLoader
from scripts.training.progress import ProgressBar


def test_the_bar_is_one_over_all_epochs_and_goes_on_where_a_run_does(capsys):
    engine = Engine(lambda engine, batch: setattr(engine.state, "mean_loss", 0.25))
    ProgressBar("training", shown=["mean_loss"]).attach(engine)
    engine.run([0, 0], max_epochs=3)
    shown = capsys.readouterr().err
    assert "training: 100%" in shown
    assert "6/6" in shown
    assert "mean_loss=0.25" in shown
    engine.run([0, 0], max_epochs=5)
    shown = capsys.readouterr().err
    assert "6/10" in shown
    assert "10/10" in shown


def load(network: torch.nn.Module, path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    NetworkLoader(network, str(path)).attach(engine)
    engine.run([0])


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "optimizer": {}}])
def test_network_loader_takes_bare_and_full_checkpoints(tmp_path, wrap):
    source, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    torch.save(wrap(source.state_dict()), tmp_path / "model.pt")
    load(target, tmp_path / "model.pt")
    assert torch.equal(source.weight, target.weight)
    assert torch.equal(source.bias, target.bias)


def test_network_loader_names_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint '.*none\.pt'.*--ckpt_path"):
        load(torch.nn.Linear(2, 1), tmp_path / "none.pt")


def test_network_loader_names_a_damaged_checkpoint(tmp_path):
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.pt' is damaged"):
        load(torch.nn.Linear(2, 1), tmp_path / "model.pt")


def test_network_loader_names_a_checkpoint_of_another_network(tmp_path):
    torch.save(torch.nn.Linear(3, 1).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"size mismatch for weight.*same network settings"):
        load(torch.nn.Linear(2, 1), tmp_path / "model.pt")


def test_network_loader_runs_no_code_from_a_file(tmp_path):
    """A checkpoint is untrusted data: an object that isn't a tensor is refused, not unpickled."""
    torch.save({"model": Path("harmless")}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a checkpoint"):
        load(torch.nn.Linear(2, 1), tmp_path / "model.pt")
