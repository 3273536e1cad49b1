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

"""Settings that can't be used are named before anything starts."""

from __future__ import annotations

import json

import pytest
from scripts.runtime.errors import InputError
from scripts.training.checks import check_settings


def test_good_settings_pass_and_folders_are_made(tmp_path):
    check_settings([4, 500], {"output_dir": tmp_path / "a" / "b"}, {"max_epochs": 1}, {"learning_rate": 0.0})
    assert (tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("size", [[3, 4], 32, [32], [32, 32, 32], [32.0, 32], ["32", 32], None, [True, 32]])
def test_sizes_that_are_none_are_named(size, tmp_path):
    with pytest.raises(InputError, match="spatial_size must be two integers of 4 or more"):
        check_settings(size, {})


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", None, True])
def test_counts_that_are_none_are_named(value):
    with pytest.raises(InputError, match=f"max_epochs must be an integer of 1 or more; got {value!r}"):
        check_settings([4, 4], {}, positive_integers={"max_epochs": value})


@pytest.mark.parametrize("value", [-0.1, "abc", None, float("nan"), False])
def test_numbers_that_are_none_are_named(value):
    with pytest.raises(InputError, match=f"learning_rate must be a number, 0 or more; got {value!r}"):
        check_settings([4, 4], {}, numbers={"learning_rate": value})


@pytest.mark.parametrize("value", [0, -1.0, "abc", None, float("inf"), float("nan"), True])
def test_numbers_that_must_be_above_0_are_named(value):
    with pytest.raises(InputError, match=f"r must be a number above 0; got {value!r}"):
        check_settings([4, 4], {}, positive_numbers={"r": value})


@pytest.mark.parametrize("value", ["false", "True", 0, 1, None])
def test_what_is_neither_true_nor_false_is_named(value):
    with pytest.raises(InputError, match=f"amp must be True or False; got {value!r}"):
        check_settings([4, 4], {}, booleans={"amp": value})


@pytest.mark.parametrize("value", [0, 6, 2.0, "3", True, None])
def test_numbers_of_stages_that_are_none_are_named(value):
    with pytest.raises(InputError, match=f"stages must be a whole number from 1 to 5; got {value!r}"):
        check_settings([64, 64], {}, stages=value)


def test_each_stage_halves_the_image_but_the_last():
    check_settings([16, 16], {}, stages=5)
    with pytest.raises(InputError, match="spatial_size must be two integers of 16 or more"):
        check_settings([16, 15], {}, stages=5)


@pytest.mark.parametrize("value", [[1.0], [1, 2, 3], 1.0, "1,2", [1, "2"]])
def test_lists_that_do_not_fit_the_stages_are_named(value):
    check_settings([4, 4], {}, stages=2, per_stage={"fusion_weights": [0.5, 0.5]})
    with pytest.raises(InputError, match="fusion_weights must be a list of 2 numbers, one for each of the stages"):
        check_settings([4, 4], {}, stages=2, per_stage={"fusion_weights": value})


def test_everything_wrong_is_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        check_settings([2, 2], {"output_dir": tmp_path / "file"}, {"val_interval": 0}, {"learning_rate": "x"})
    for name in ("spatial_size", "output_dir", "val_interval", "learning_rate"):
        assert name in str(caught.value)


@pytest.mark.parametrize("value", [50, -0.1, 1.01, "0.5", None, float("nan"), True])
def test_fractions_that_are_none_are_named(value):
    check_settings([4, 4], {}, fractions={"threshold": 0, "momentum": 1})
    with pytest.raises(InputError, match=f"threshold must be a fraction from 0 to 1; got {value!r}") as caught:
        check_settings([4, 4], {}, fractions={"threshold": value})
    assert ("did you mean 0.5?" in str(caught.value)) == (value == 50)


@pytest.mark.parametrize("config", ["train", "evaluate", "inference"])
def test_every_run_checks_the_threshold(configs, config):
    run = {"train": "training", "evaluate": "evaluating", "inference": "inferring"}[config]
    steps = json.loads((configs / f"{config}.json").read_text())[run]
    (checked,) = [step for step in steps if "check_settings" in str(step)]
    assert checked["fractions"]["threshold"] == "@threshold"
