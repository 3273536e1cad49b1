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

"""Which slides there are, and what their results are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.runtime.errors import InputError
from scripts.slides import list_slides


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(("given", "name"), [("..", "case"), (".", "case"), ("../case", "case"), ("a.svs/..", "case")])
def test_a_folder_of_dicom_files_has_its_own_name(tmp_path, monkeypatch, given, name):
    touch(tmp_path / "case" / "level0.dcm", tmp_path / "case" / "inner" / "a.txt")
    monkeypatch.chdir(tmp_path / "case" / ("inner" if given == ".." else ""))
    (tmp_path / "case" / "a.svs").mkdir()
    (listed,) = list_slides(given).items()
    assert listed[0] == name
    assert listed[1].samefile(tmp_path / "case" / "level0.dcm")


@pytest.mark.parametrize("name", ["...svs", "..svs", ".a.svs", f"{'a' * 240}.svs"])
def test_a_name_that_results_cannot_have_costs_no_other_slide(tmp_path, name, caplog):
    touch(tmp_path / name, tmp_path / "b.svs")
    found = list_slides(tmp_path)
    assert dict(found) == {"b": tmp_path / "b.svs"}
    (problem,) = found.left_out
    assert str(tmp_path / name) in problem
    assert problem in caplog.text
    with pytest.raises(InputError, match="No slide can be used"):
        list_slides(tmp_path / name)


def test_of_two_slides_of_one_name_the_first_is_taken(tmp_path):
    touch(tmp_path / "1" / "a.svs", tmp_path / "2" / "a.svs", tmp_path / "2" / "b.svs")
    found = list_slides([str(tmp_path / "1"), str(tmp_path / "2"), str(tmp_path / "3")])
    assert dict(found) == {"a": tmp_path / "1" / "a.svs", "b": tmp_path / "2" / "b.svs"}
    same, missing = found.left_out
    assert str(tmp_path / "2" / "a.svs") in same
    assert str(tmp_path / "3") in missing


@pytest.mark.parametrize("name", ["a\0b", "n" * 300])
def test_what_is_no_name_of_a_file_costs_no_other_slide(tmp_path, name):
    touch(tmp_path / "a.svs")
    found = list_slides([f"{tmp_path}/{name}", str(tmp_path / "a.svs")])
    assert list(found) == ["a"]
    (problem,) = found.left_out
    assert "can't be read (" in problem


def test_a_folder_of_pictures_needs_no_overlay_of_slides(tmp_path, caplog):
    (tmp_path / "none").mkdir()
    touch(*(tmp_path / f"{number}.png" for number in range(30)))
    with pytest.raises(InputError, match=r"There is no slide .* but pictures: leave --overlay slides out"):
        list_slides(tmp_path)
    assert "29.png" not in caplog.text  # not a list of all of them
    with pytest.raises(InputError, match=r"There is no slide .* name one"):
        list_slides(tmp_path / "none")


def test_maps_of_an_earlier_inference_are_no_slides(tmp_path, caplog):
    touch(*(tmp_path / f"a{ending}" for ending in (".ome.tif", ".json", "_mask.ome.tif", "_probability.ome.tif")))
    for name in ("a_seg", "b_seg"):
        (tmp_path / name).mkdir()
        touch(tmp_path / name / "1.dcm")
    touch(tmp_path / "b_mask.ome.tif")  # a slide that is called so: there is no b.json
    assert list(list_slides(tmp_path)) == ["a.ome", "b_mask.ome", "b_seg"]
    assert "Not slides, left out: a_mask.ome.tif, a_probability.ome.tif" in caplog.text
