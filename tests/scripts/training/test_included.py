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
"""When the model that comes with the bundle is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripts.runtime.errors import InputError
from scripts.training.included import model_of


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.pt").touch()
    (tmp_path / "bundle" / "dws.pt").touch()
    return tmp_path / "bundle"


def test_the_shipped_model_is_used_where_nothing_was_trained_and_that_is_said(tmp_path: Path, shipped: Path, caplog):
    models = tmp_path / "out" / "models"
    for method, name in {"": "model.pt", "cdws": "model.pt", "dws": "dws.pt"}.items():
        file = str(shipped / name)
        assert model_of(str(models), str(tmp_path / "out"), shipped, method) == file
        assert f"There is no model in '{models}': the one that comes with the bundle is used, '{file}'" in caplog.text


def test_trainings_beside_are_proposed_in_its_place_the_newest_first(tmp_path: Path, shipped: Path, caplog) -> None:
    for name, time in {"mine": 1, "mine 2": 2}.items():
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "models" / "model.pt").touch()
        os.utime(tmp_path / name / "models" / "model.pt", (time, time))
    assert model_of(tmp_path / "out" / "models", tmp_path / "out", shipped) == str(shipped / "model.pt")
    newest = f"--output_dir '{tmp_path}/mine 2' or {tmp_path}/mine."
    assert f"is used, '{shipped}/model.pt'; for that of a training add {newest}" in caplog.text


@pytest.mark.parametrize("left", ["model.pt", "last.pt", "state_1.pt"])
def test_a_training_has_its_own_model_or_none_yet(tmp_path: Path, shipped: Path, caplog, left: str) -> None:
    """One that was interrupted would be scored as the user's."""
    models = tmp_path / "out" / "models"
    models.mkdir(parents=True)
    (models / left).touch()
    assert model_of(models, tmp_path / "out", shipped) == str(models / "model.pt")
    assert caplog.text == ""


def test_a_folder_that_was_named_is_taken_at_its_word(tmp_path: Path, shipped: Path) -> None:
    assert model_of(tmp_path / "typo", tmp_path / "out", shipped) == str(tmp_path / "typo" / "model.pt")


def test_no_other_model_is_scored_in_the_place_of_one_of_ones_own(tmp_path: Path, shipped: Path) -> None:
    def refusal(folder: str) -> str:
        with pytest.raises(InputError) as raised:
            model_of(tmp_path / folder / "models", tmp_path / folder, shipped, is_scored=True)
        assert f"--ckpt_path {shipped}/model.pt" in str(raised.value)
        return str(raised.value)

    assert f"Nothing has been trained in '{tmp_path}/mien': " in refusal("mien")
    for name, time in {"mine": 1, "a": 4, "b": 3, "c": 2}.items():
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "models" / "model.pt").touch()
        os.utime(tmp_path / name / "models" / "model.pt", (time, time))
    assert f"in '{tmp_path}/mien' (did you mean {tmp_path}/mine?)" in refusal("mien")
    newest = ", ".join(f"'{tmp_path}/{name}'" for name in "abc")
    long = "recommended_of_another_name_that_is_like_none_of_these" * 3
    assert f"in '{tmp_path}/{long}', but in {newest}: name the --output_dir of a training" in refusal(long)
    assert model_of(tmp_path / "mien" / "models", tmp_path / "mien", shipped) == str(shipped / "model.pt")
