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

import pytest
from scripts.errors import InputError
from scripts.settings import check_settings


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


def test_everything_wrong_is_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        check_settings([2, 2], {"output_dir": tmp_path / "file"}, {"val_interval": 0}, {"learning_rate": "x"})
    for name in ("spatial_size", "output_dir", "val_interval", "learning_rate"):
        assert name in str(caught.value)
