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

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.data.listing import list_images
from scripts.runtime.errors import InputError
from scripts.volumes.reading import find_volumes

HEIGHT, WIDTH = 5, 8


def write_picture(path: Path, shape: tuple[int, ...] = (HEIGHT, WIDTH, 3), value: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def test_pictures_of_a_folder_by_name_whatever_the_case_of_their_suffix(tmp_path: Path, caplog) -> None:
    for name in ("b.PNG", "a.tif", "c.JPeG", "sub/d.png"):
        write_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture, and no harm")
    assert list_images(tmp_path) == [{"image": str(tmp_path / name)} for name in ("a.tif", "b.PNG", "c.JPeG")]
    assert f"since '{tmp_path}' has pictures itself: sub; name these folders too" in caplog.text


def test_what_is_called_a_picture_and_is_no_file_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.png").mkdir()
    found = list_images(tmp_path)
    assert found == [{"image": str(tmp_path / "a.png")}]
    assert found.left_out == [f"'{tmp_path / 'lost.png'}': there is no such file"]


def test_a_folder_without_pictures_has_those_of_its_subfolders_under_names_of_their_own(tmp_path: Path) -> None:
    names = ("cancer/1.png", "normal/1.png", "normal/deep/b.2.tif")
    for name in (*names, "out/1_mask.png", "out/index.html"):
        write_picture(tmp_path / Path(name).with_suffix(".png"))
        (tmp_path / Path(name).with_suffix(".png")).rename(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "out" / "predictions.csv").write_text("image,probability,area_fraction\n")
    results = ("cancer_1", "normal_1", "normal_deep_b.2")
    expected = [{"image": str(tmp_path / n), "results": r} for n, r in zip(names, results, strict=True)]
    assert list_images(tmp_path) == expected
    # of several folders as well, whose own names are before those
    (tmp_path / "c").mkdir()
    write_picture(tmp_path / "normal_1.png")
    several = list_images([str(tmp_path / "normal"), str(tmp_path / "cancer"), str(tmp_path / "normal_1.png")])
    named = [("normal/1.png", "normal_1"), ("cancer/1.png", "cancer_1")]
    assert several == [{"image": str(tmp_path / name), "results": results} for name, results in named]
    assert several.left_out == [
        f"'{tmp_path / 'normal_1.png'}': its results would have the same name as those of '{tmp_path / 'normal/1.png'}'"
    ]


def test_a_file_and_a_list_of_files_in_its_order(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("b.png", "a.bmp")]
    for path in paths:
        write_picture(Path(path))
    assert list_images(paths[0]) == [{"image": paths[0]}]
    assert list_images(paths) == [{"image": path} for path in paths]


def test_a_split_of_a_data_set(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name)
    items = {"training": [{"image": "a.png", "label": 0}], "test": [{"image": "b.png", "label": 1}]}
    (tmp_path / "dataset.json").write_text(json.dumps(items))
    assert len(list_images(tmp_path / "dataset.json")) == 2
    assert list_images(tmp_path / "dataset.json", split="test") == [{"image": str(tmp_path / "b.png")}]
    for split in ("validation", ["test"]):
        with pytest.raises(InputError, match=r"no split .* \(found: training, test\)"):
            list_images(tmp_path / "dataset.json", split=split)
    with pytest.raises(InputError, match="leave --split out"):
        list_images(tmp_path, split="test")


def test_results_of_one_name_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "b.png"):
        write_picture(tmp_path / name)
    found = list_images(tmp_path)
    assert [Path(item["image"]).name for item in found] == ["a.png", "b.png"]
    problem = f"'{tmp_path / 'a.tif'}': its results would have the same name as those of '{tmp_path / 'a.png'}'"
    assert found.left_out == [problem]


def test_a_folder_without_pictures_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=rf"no picture \(png, .*tiff\) in '{tmp_path}'.*with --overlay slices"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="no picture"):
        list_images([])


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no folder or image '{tmp_path / 'none'}'; name one .cdws infer FOLDER"):
        list_images(tmp_path / "none")


@pytest.mark.parametrize("table", ["predictions.csv", "predictions.csv.part"])
def test_results_beside_their_images_are_no_images(table: str, tmp_path: Path, monkeypatch) -> None:
    """Of an inference with --prediction_dir images; what is of no image stays, and all without a table."""
    names = ["a.png", "a_mask.png", "a_overlay.png", "a_probability.png", "b.1.png", "b.1_mask.png", "c_mask.png"]
    for name in names:
        write_picture(tmp_path / name)
    assert [Path(item["image"]).name for item in list_images(tmp_path)] == names
    (tmp_path / table).write_text("image,probability,area_fraction\n")
    monkeypatch.chdir(tmp_path)
    assert [item["image"] for item in list_images(".")] == ["a.png", "b.1.png", "c_mask.png"]


@pytest.mark.parametrize("made", ["", "out/"])
def test_results_above_or_beside_the_folders_of_their_images_are_no_images(made: str, tmp_path: Path, caplog) -> None:
    """Of an inference with --prediction_dir FOLDER, or FOLDER/out; what the table doesn't tell of stays."""
    names = ["sub/a.png", "sub/deep/a.png"]
    for name in (*names, f"{made}sub_a_mask.png", f"{made}sub_a_heat.png", f"{made}sub_deep_a_mask.png"):
        write_picture(tmp_path / name)
    rows = "".join(f"{tmp_path / name},0.5,0.1,yes\n" for name in names)
    (tmp_path / made / "predictions.csv").write_text(f"image,probability,area_fraction,positive\n{rows}")
    caplog.set_level("INFO")
    assert [item["image"] for item in list_images(tmp_path)] == [str(tmp_path / name) for name in names]
    assert f"Results of an earlier run, left out: 3 pictures in '{tmp_path / made}'." in caplog.text
    write_picture(tmp_path / "own_mask.png")
    assert [item["image"] for item in list_images(tmp_path)] == [str(tmp_path / "own_mask.png")]


def test_results_beside_their_volumes_are_no_volumes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a_mask.nii.gz", "a_probability.nii.gz", "b.nrrd", "b_mask.nii.gz", "c_mask.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "predictions.csv").write_text("image,probability,area_fraction,millilitres\n")
    assert [Path(path).name for path in find_volumes(tmp_path)] == ["a.nii.gz", "b.nrrd", "c_mask.nii.gz"]
