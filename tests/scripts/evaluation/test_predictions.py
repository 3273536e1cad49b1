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

from pathlib import Path

import pytest
from ignite.engine import Engine
from scripts.evaluation.predictions import PredictionTable
from scripts.runtime.errors import InputError


def run(folder: Path) -> None:
    engine = Engine(lambda engine, batch: [])
    PredictionTable(str(folder)).attach(engine)
    engine.run([0])


@pytest.mark.parametrize("name", ["a_mask.png", "p1_mask.nii.gz", "b_overlay.png", "predictions.csv"])
def test_files_called_as_results_are_not_replaced_unless_a_table_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("drawn for a week")
    with pytest.raises(InputError, match=f"{name}' would be replaced by a result, and may be yours"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / "predictions.csv.part").touch()  # of a run that was stopped
    run(tmp_path)
    run(tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == "image,probability,area_fraction\n"


def test_other_files_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "predictions.csv"]
