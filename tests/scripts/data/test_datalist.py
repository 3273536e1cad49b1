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

"""The data contract: a data set that keeps it passes, and whatever breaks it is named."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scripts.data.datalist import has_masks, load_datalist, report_datalist
from scripts.data.listing import list_images
from scripts.images.loading import load_mask
from scripts.images.masks import load_positive
from scripts.runtime.errors import InputError

HEIGHT, WIDTH = 5, 8


def write_picture(path: Path, shape: tuple[int, ...] = (HEIGHT, WIDTH, 3), value: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images, masks of their size, and files of no use."""
    write_picture(tmp_path / "images" / "a.png")
    write_picture(tmp_path / "images" / "b.png")
    write_picture(tmp_path / "images" / "tiny.png", (3, 9, 3))
    write_picture(tmp_path / "masks" / "full.png", (HEIGHT, WIDTH), 1)
    write_picture(tmp_path / "masks" / "empty.png", (HEIGHT, WIDTH), 0)
    write_picture(tmp_path / "masks" / "large.png", (9, 6), 255)
    whole = (tmp_path / "images" / "a.png").read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "text.png").write_text("not a picture")
    (tmp_path / "masks" / "text.png").write_text("not a picture")
    tifffile.imwrite(tmp_path / "images" / "five.tif", np.zeros((6, 6, 5), np.uint8), photometric="rgb")
    tifffile.imwrite(tmp_path / "images" / "float.tif", np.full((6, 6), 255.0, np.float32))
    return tmp_path


POSITIVE = {"image": "images/a.png", "label": 1, "area": 0.3}
NEGATIVE = {"image": "images/b.png", "label": 0}


def write_set(folder: Path, **splits: object) -> Path:
    """A data set with good training and validation splits but for those given."""
    content = {"training": [POSITIVE, NEGATIVE], "validation": [NEGATIVE, POSITIVE]} | splits
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def problems_of(folder: Path, *splits: str) -> list[str]:
    """The problems that the refusal names, one a line."""
    with pytest.raises(InputError) as caught:
        load_datalist(folder, splits or ("training", "validation"))
    first, *problems = str(caught.value).split("\n  - ")
    count, those = ("1 problem", "it") if len(problems) == 1 else (f"{len(problems)} problems", "them")
    assert first == f"{count} in {folder / 'dataset.json'}; correct {those} and start again:"
    return problems


def test_good_data_set_passes_with_absolute_paths(folder: Path) -> None:
    masked = POSITIVE | {"mask": "masks/full.png", "group": "p1"}
    labelled = {"image": "images/b.png", "label": "masks/empty.png"}
    write_set(folder, training=[masked, labelled])
    datalist = load_datalist(folder)
    a, b = str(folder / "images/a.png"), str(folder / "images/b.png")
    assert datalist == {
        "training": [
            {"image": a, "label": 1, "area": 0.3, "mask": str(folder / "masks/full.png"), "group": "p1"},
            {"image": b, "label": str(folder / "masks/empty.png")},
        ],
        "validation": [{"image": b, "label": 0}, {"image": a, "label": 1, "area": 0.3}],
    }


def test_the_file_itself_may_be_given_and_absolute_paths_stay(folder: Path, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    absolute = [item | {"image": str(folder / item["image"])} for item in (POSITIVE, NEGATIVE)]
    (elsewhere / "fold1.json").write_text(json.dumps({"training": absolute}))
    assert load_datalist(elsewhere / "fold1.json", ["training"], allow_outside=True)["training"] == absolute


@pytest.mark.parametrize("how", ["absolute", "dots", "link to a file", "link to a folder"])
@pytest.mark.parametrize("key", ["image", "mask", "label"])
def test_paths_that_leave_the_folder_are_refused_unless_allowed(folder: Path, tmp_path_factory, how, key) -> None:
    outside = tmp_path_factory.mktemp("outside") / "a.png"
    outside.write_bytes((folder / "masks/full.png" if key != "image" else folder / "images/a.png").read_bytes())
    (folder / "link.png").symlink_to(outside)
    (folder / "link").symlink_to(outside.parent)
    path = {
        "absolute": str(outside),
        "dots": os.path.relpath(outside, folder),
        "link to a file": "link.png",
        "link to a folder": "link/a.png",
    }[how]
    write_set(folder, training=[POSITIVE | {key: path}, NEGATIVE])
    (problem,) = problems_of(folder)
    assert problem.startswith("training[0] '")
    assert "lies outside the folder of dataset.json" in problem
    assert "--allow_outside True" in problem
    assert load_datalist(folder, allow_outside=True)["training"]


@pytest.mark.parametrize(
    "item",
    [
        {"label": 1},
        {"label": 1, "area": None},
        {"label": 1, "area": math.nan},  # Python's JSON has it
        {"label": 1, "area": 1},
        {"label": 1, "area": 1e-6, "group": 7},
        {"label": 1, "mask": None},
        {"label": "masks/full.png"},
        {"label": "masks/full.png", "area": 0.2},
        {"label": 1, "mask": "masks/full.png", "note": "any other key"},
    ],
)
def test_positive_items_that_keep_the_contract(item: dict, folder: Path) -> None:
    write_set(folder, training=[{"image": "images/a.png", **item}, NEGATIVE])
    (loaded, _) = load_datalist(folder)["training"]
    assert math.isfinite(loaded.get("area", 0.5))
    assert loaded.get("mask", "absent") is not None


@pytest.mark.parametrize(
    "item", [{"label": 0, "area": 0}, {"label": 0, "area": None}, {"label": 0, "mask": "masks/empty.png"}]
)
def test_negative_items_that_keep_the_contract(item: dict, folder: Path) -> None:
    write_set(folder, training=[POSITIVE, {"image": "images/b.png", **item}])
    assert load_datalist(folder)["training"][1]["label"] == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": "images/none.png"}, "there is no such file"),
        ({"image": "images"}, "is a folder"),
        ({"image": "images/cut.png"}, "can't be read as an image ("),
        ({"image": "images/text.png"}, "can't be read as an image ("),
        ({"image": "images/five.tif"}, "can't be read as an image (has 5 channels; save grey or RGB"),
        ({"image": "images/float.tif"}, "can't be read as an image (values must be in 0..1"),
        ({"image": "images/tiny.png"}, "is 9x3, smaller than 4x4"),
        ({"label": 2}, "label is 2, must be 0 or 1 (or the path of a mask)"),
        ({"label": -1}, "label is -1, must be 0 or 1"),
        ({"label": 0.5}, "label is 0.5, must be 0 or 1"),
        ({"label": None}, "label is None, must be 0 or 1"),
        ({"label": math.nan}, "label is nan, must be 0 or 1"),
        ({"label": [1]}, "label is [1], must be 0 or 1"),
        ({"label": "1"}, "label is the text '1'; write the number 1, without quotes"),
        ({"area": 30}, "area is 30, must be a fraction of the image above 0 and up to 1 (0.3 for 30 %)"),
        ({"area": 1.5}, "area is 1.5, must be a fraction of the image"),
        ({"area": 0}, "area is 0, must be a fraction"),
        ({"area": -0.2}, "area is -0.2, must be a fraction"),
        ({"area": 1.01}, "area is 1.01, must be a fraction"),
        ({"area": math.inf}, "area is inf, must be a fraction"),
        ({"area": "0.3"}, "area is '0.3', must be a fraction"),
        ({"area": True}, "area is True, must be a fraction"),
        ({"label": 0, "image": "images/b.png"}, "label is 0, but an area of 0.3 is given; remove one"),
        ({"mask": "masks/large.png"}, "the mask '{folder}/masks/large.png' is 6x9, the image 8x5; they must have"),
        ({"label": "masks/large.png"}, "the mask '{folder}/masks/large.png' is 6x9, the image 8x5; they must have"),
        ({"mask": "masks/none.png"}, "there is no mask '{folder}/masks/none.png'"),
        ({"mask": "masks/text.png"}, "the mask '{folder}/masks/text.png' can't be read ("),
        ({"mask": "images/a.png"}, "the mask '{folder}/images/a.png' is the image itself"),
        ({"label": "images/../images/a.png"}, "the mask '{folder}/images/../images/a.png' is the image itself"),
        (
            {"label": "masks/full.png", "mask": "masks/empty.png"},
            "label is the mask '{folder}/masks/full.png', and mask is '{folder}/masks/empty.png'; remove one",
        ),
        ({"mask": 5}, "mask is 5, must be the path of a mask"),
        ({"mask": ["masks/full.png"]}, "mask is ['masks/full.png'], must be the path of a mask"),
        ({"mask": "masks/empty.png"}, "label is 1, but the mask '{folder}/masks/empty.png' is empty"),
        (
            {"label": 0, "image": "images/b.png", "area": None, "mask": "masks/full.png"},
            "label is 0, but the mask '{folder}/masks/full.png' has positive pixels",
        ),
    ],
)
def test_an_offence_is_named_with_its_place_and_image(change: dict, problem: str, folder: Path) -> None:
    item = POSITIVE | change
    write_set(folder, training=[POSITIVE, NEGATIVE, item])
    (found,) = problems_of(folder)
    assert found.startswith(f"training[2] '{folder / item['image']}': {problem.replace('{folder}', str(folder))}")


@pytest.mark.parametrize(("area", "guessed"), [(1.3, False), (1.99, False), (2, True)])
def test_an_area_is_taken_for_percent_where_it_can_hardly_be_anything_else(area: float, guessed, folder: Path) -> None:
    write_set(folder, training=[POSITIVE, NEGATIVE, POSITIVE | {"area": area}])
    (found,) = problems_of(folder)
    assert found.endswith("up to 1 (0.02 for 2 %)" if guessed else "above 0 and up to 1")


@pytest.mark.parametrize("item", ["images/a.png", 3, None, ["images/a.png"], {"label": 1}, {"image": 5, "label": 1}])
def test_what_is_not_an_item_is_named(item: object, folder: Path) -> None:
    write_set(folder, validation=[item, POSITIVE, NEGATIVE])
    assert problems_of(folder) == ["validation[0]: must be an object with an 'image'"]


def test_all_offenders_are_named_in_one_message(folder: Path) -> None:
    write_set(
        folder,
        training=[
            POSITIVE | {"label": 2},
            NEGATIVE,
            POSITIVE | {"area": 30, "image": "images/none.png"},
            POSITIVE | {"group": "p1"},
        ],
        validation=["nothing", NEGATIVE | {"group": "p1"}, POSITIVE | {"mask": "masks/empty.png"}],
    )
    problems = problems_of(folder, "training", "validation", "test")
    a, none = folder / "images/a.png", folder / "images/none.png"
    assert [problem.split(",")[0] for problem in problems] == [
        "there is no split 'test' (found: training",
        "group 'p1' is in 'training' and in 'validation'; keep it in one",
        f"training[0] '{a}': label is 2",
        f"training[2] '{none}': there is no such file",
        f"training[2] '{none}': area is 30",
        "validation[0]: must be an object with an 'image'",
        f"validation[2] '{a}': label is 1",
    ]


def test_a_split_of_one_class_is_named_beside_other_offences(folder: Path) -> None:
    write_set(folder, training=[POSITIVE | {"area": 30, "mask": "masks/none.png"}, POSITIVE], validation=[])
    assert [problem.split("'")[0] + problem.split("'")[2].split(",")[0] for problem in problems_of(folder)] == [
        "training[0] : there is no mask ",
        "training[0] : area is 30",
        "the split  has only positive images; it needs positive and negative ones",
        "the split  is empty; it needs positive and negative ones",
    ]


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        ({"training": [POSITIVE, POSITIVE]}, "the split 'training' has only positive images; it needs positive and"),
        ({"validation": [NEGATIVE]}, "the split 'validation' has only negative images; it needs positive and"),
        (
            {"training": [{"image": "images/a.png", "label": "masks/empty.png"}, NEGATIVE]},
            "the split 'training' has only negative images",
        ),
        ({"training": []}, "the split 'training' is empty; it needs positive and negative ones"),
        ({"validation": None}, "there is no split 'validation' (found: training)"),
        ({"training": {"0": POSITIVE}}, "the split 'training' must be a list of items"),
        ({"test": 3}, "the split 'test' must be a list of items"),
    ],
)
def test_splits_that_cannot_be_used_are_named(splits: dict, problem: str, folder: Path) -> None:
    write_set(folder, **splits)
    (found,) = problems_of(folder)
    assert found.startswith(problem)


def test_a_split_that_is_not_asked_for_is_checked_all_the_same(folder: Path) -> None:
    write_set(folder, test=[POSITIVE | {"image": "images/none.png"}, NEGATIVE])
    assert problems_of(folder, "training") == [f"test[0] '{folder / 'images/none.png'}': there is no such file"]


def test_a_split_of_any_name_can_be_asked_for(folder: Path) -> None:
    write_set(folder, fold3=[POSITIVE, NEGATIVE])
    assert len(load_datalist(folder, ["fold3"])["fold3"]) == 2


def test_a_group_in_two_splits_is_named_even_where_a_split_is_not_needed(folder: Path) -> None:
    write_set(
        folder,
        training=[POSITIVE | {"group": "p1"}, NEGATIVE | {"group": 2}],
        validation=[POSITIVE | {"group": "p3"}, NEGATIVE | {"group": "p3"}, POSITIVE | {"group": "p1"}],
        test=[POSITIVE | {"group": "p1"}, NEGATIVE | {"group": "p3"}, NEGATIVE | {"group": 2.0}],
    )
    assert problems_of(folder, "training") == [
        "group 'p1' is in 'training' and in 'validation'; keep it in one",
        "group 'p1' is in 'training' and in 'test'; keep it in one",
        "group 'p3' is in 'validation' and in 'test'; keep it in one",
        "group '2.0' is in 'training' (as '2') and in 'test'; keep it in one",
    ]


def test_the_first_twenty_of_many_problems_are_named(folder: Path) -> None:
    write_set(folder, training=[POSITIVE | {"label": 2}] * 60 + [NEGATIVE])
    with pytest.raises(InputError) as caught:
        load_datalist(folder, ["training"])
    lines = str(caught.value).split("\n  - ")
    assert lines[0].startswith("60 problems in")
    assert [line.split()[0] for line in lines[1:-1]] == [f"training[{i}]" for i in range(20)]
    assert lines[-1] == "and 40 more"


@pytest.mark.parametrize(("count", "few"), [(149, True), (150, False)])
def test_few_training_images_are_warned_of(folder: Path, caplog, count: int, few: bool) -> None:
    """Not by an evaluation, which trains nothing."""
    for number in range(count - 2):
        write_picture(folder / "images" / f"{number}.png")
    others = [{"image": f"images/{number}.png", "label": 0} for number in range(count - 2)]
    write_set(folder, training=[POSITIVE, NEGATIVE, *others])
    load_datalist(folder, ["validation"])
    assert "Few training images" not in caplog.text
    load_datalist(folder)
    assert (f"Few training images, {count}" in caplog.text) == few


def test_misspelt_keys_are_named_with_the_nearest(folder: Path, caplog) -> None:
    write_set(
        folder,
        training=[POSITIVE | {"areas": 0.3, "Mask": "m.png"}, NEGATIVE | {"lable": 0}],
        test=[POSITIVE | {"scanner": "B"}, NEGATIVE | {"scanner": "C"}],
    )
    assert [problem.rpartition(": ")[2] for problem in problems_of(folder)] == [
        "unknown key 'areas'; write 'area'",
        "unknown key 'Mask'; write 'mask'",
        "unknown key 'lable'; write 'label'",
    ]
    known = "image, label, area, mask, group, strokes, excluded, region, mpp, slide_mpp, fields, field_size"
    assert f"'scanner' (first in test[0]). Known are {known}." in caplog.text


def test_a_misspelt_split_is_named(folder: Path, caplog) -> None:
    write_set(folder, tests=[POSITIVE])
    assert problems_of(folder) == ["unknown split 'tests'; write 'test'"]
    write_set(folder, test=[POSITIVE, NEGATIVE], test2=[POSITIVE], classes=["a"])
    load_datalist(folder)
    assert "The list 'test2' is not used (did you mean 'test'?)" in caplog.text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"training": [], "training": []}', "has the key 'training' twice"),
        ('{"training": [{"image": "a.png", "label": 0, "label": 1}]}', "has the key 'label' of 'a.png' twice"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"training": [' + "9" * 5000 + "]}", "is not valid JSON: .*4300"),
    ],
    ids=["split", "key", "deep", "digits"],
)
def test_json_that_nobody_can_mean(content: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=named):
        load_datalist(tmp_path, ["training"])


@pytest.mark.parametrize("how", ["dot", "symbolic link", "hard link"])
def test_one_file_under_two_names_is_one_image(folder: Path, how: str, caplog) -> None:
    other = folder / "images" / "other.png"
    if how == "symbolic link":
        other.symlink_to(folder / "images" / "a.png")
    elif how == "hard link":
        other.hardlink_to(folder / "images" / "a.png")
    name = "./images/a.png" if how == "dot" else "images/other.png"
    write_set(folder, validation=[POSITIVE | {"image": name}, NEGATIVE])
    load_datalist(folder)
    shown = "images/a.png" if how == "dot" else name
    assert f"image '{shown}' is in 'training'" in caplog.text
    write_set(folder, training=[POSITIVE, NEGATIVE, {"image": name, "label": 0}])
    (problem,) = problems_of(folder)
    assert problem.startswith(f"image '{shown}' has label 1")
    assert problem.endswith("and label 0 in 'training'; keep one")


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({"area": 0.3}, {"area": 0.4}, "area 0.3 and area 0.4"),
        ({"label": "masks/full.png"}, {"label": 0, "area": None}, "label 1 and label 0"),
        ({"label": "masks/empty.png"}, {"label": 1}, "label 0 and label 1"),
        ({"mask": "masks/full.png"}, {"mask": "masks/other.png"}, "mask 'masks/full.png' and mask 'masks/other.png'"),
        ({"mask": "masks/full.png"}, {"label": "masks/./full.png"}, None),
        ({"area": 0.3}, {"area": None}, None),
    ],
)
def test_an_image_that_is_listed_twice_says_one_thing(folder: Path, first, second, problem, caplog) -> None:
    write_picture(folder / "masks" / "other.png", (HEIGHT, WIDTH), 2)
    base = {"image": "images/a.png", "label": 1}
    write_set(folder, training=[base | first, base | second, NEGATIVE])
    if problem is None:
        load_datalist(folder)
        assert "Listed more than once in 'training', and counted so: images/a.png." in caplog.messages
    else:
        assert problems_of(folder) == [f"image 'images/a.png' has {problem} in 'training'; keep one"]


@pytest.mark.parametrize(
    ("area", "contradicts"), [(0.2, False), (0.3, False), (0.35, False), (0.4, True), (1.0, True), (0.1, True)]
)
def test_an_area_that_its_mask_contradicts_is_warned_of(folder: Path, caplog, area: float, contradicts: bool) -> None:
    """The mask covers 10 of 40 pixels: a quarter, which an annotator in steps of 0.1 calls 0.2 or 0.3."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :2] = 255
    Image.fromarray(mask).save(folder / "masks" / "quarter.png")
    write_set(folder, training=[POSITIVE | {"area": area, "mask": "masks/quarter.png"}, NEGATIVE])
    load_datalist(folder)
    assert (f"(the areas are used): training[0] {area:g} (the mask: 0.25)" in caplog.text) == contradicts


@pytest.mark.parametrize(
    ("other", "refused"), [("p1", True), (" p1", True), ("p1\n", True), ("P1", False), ("p2", None)]
)
def test_groups_that_look_alike_are_named(folder: Path, caplog, other: str, refused: bool | None) -> None:
    write_set(
        folder, training=[POSITIVE | {"group": "p1"}, NEGATIVE], validation=[POSITIVE, NEGATIVE | {"group": other}]
    )
    if refused:
        (problem,) = problems_of(folder)
        assert problem.startswith(f"group '{other}' is in 'training'")
    else:
        load_datalist(folder)
        assert ("group 'P1' is in 'training' (as 'p1') and in 'validation'" in caplog.text) == (refused is False)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("val", "(did you mean 'validation'?)"),
        ("testing", "(did you mean 'test'?)"),
        (" Training ", "(did you mean 'training'?)"),
        ("fold_3", "(the splits are training, validation, test)"),
    ],
)
def test_a_list_that_is_not_used_is_named(folder: Path, caplog, key: str, named: str) -> None:
    write_set(folder, **{key: [POSITIVE], "classes": ["a"]})
    load_datalist(folder)
    assert [m for m in caplog.messages if "not used" in m] == [f"The list '{key}' is not used {named}."]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": "cancer"}, "label is 'cancer', must be 0 or 1 (or the path of a mask)"),
        ({"image": "images\\a.png"}, "there is no such file; write '/' for '\\'"),
        ({"image": "a\0b.png"}, "is not a valid file name (embedded null byte)"),
        ({"image": "images/\ud800.png"}, "is not a valid file name ('utf-8' codec can't encode character"),
        ({"image": "n" * 300 + ".png"}, "can't be read (File name too long)"),
        ({"mask": "n" * 300 + ".png"}, "can't be read (File name too long)"),
        ({"area": 10**3000}, "area is 10000"),
        ({"label": [[[[[[[[[[1]]]]]]]]]]}, "label is [[[[[[[...]]]]]]], must be 0 or 1"),
    ],
)
def test_values_that_nobody_can_mean(change: dict, problem: str, folder: Path) -> None:
    write_set(folder, training=[POSITIVE, NEGATIVE, POSITIVE | change])
    (found,) = problems_of(folder)
    assert problem in found
    assert len(found) < 800


@pytest.fixture
def as_nobody(folder: Path):
    """The folder for a user without rights; root may read everything."""
    if os.geteuid() != 0:
        yield folder
        return
    list_images(folder / "images" / "a.png")  # imports what only root may read
    work = Path(tempfile.mkdtemp())
    shutil.copytree(folder, work, dirs_exist_ok=True)
    for path in (work, *work.rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield work
    finally:
        os.seteuid(0)
        shutil.rmtree(work)


@pytest.mark.parametrize("which", ["dataset.json", ".", "images", "images/a.png", "masks", "masks/full.png"])
def test_what_may_not_be_read_is_named(as_nobody: Path, which: str) -> None:
    write_set(as_nobody, training=[POSITIVE | {"mask": "masks/full.png"}, NEGATIVE])
    (as_nobody / which).chmod(0)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            load_datalist(as_nobody)
    finally:
        (as_nobody / which).chmod(0o755)


def test_a_folder_of_pictures_that_may_not_be_read_is_named(as_nobody: Path) -> None:
    (as_nobody / "images").chmod(0)
    for path in (as_nobody / "images", as_nobody / "images" / "a.png"):
        with pytest.raises(InputError, match=r"images.*Permission denied"):
            list_images(path)
    (as_nobody / "images").chmod(0o755)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{'training': []}", "is not valid JSON: "),
        (b"", "is not valid JSON: "),
        (b"\xff\xfe", "is not valid JSON: "),
        (b"[]", "must hold an object with the lists 'training', 'validation' and 'test'"),
    ],
)
def test_a_file_that_is_no_datalist(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=f"'{tmp_path / 'dataset.json'}' {message}"):
        load_datalist(tmp_path)


def test_a_missing_data_set_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no data set at '{tmp_path / 'dataset.json'}'; .* or --dataset_dir"):
        load_datalist(tmp_path)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([{"label": 0}, {"label": 1, "mask": "a.png"}, {"label": "b.png"}], True),
        ([{"label": 0}, {"label": 1, "mask": "a.png"}, {"label": 1}], False),
        ([{"label": 1, "mask": None}], False),
        ([{"label": 0}], True),
    ],
)
def test_has_masks_when_the_truth_of_every_image_is_known(items: list[dict], expected: bool) -> None:
    assert has_masks(items) is expected


def test_pictures_of_no_use_are_left_out_and_named_at_the_end(folder: Path, caplog) -> None:
    names = ("none.png", "text.png", "a.png", "tiny.png")
    found = list_images([str(folder / "images" / name) for name in names])
    assert found == [{"image": str(folder / "images/a.png")}]
    with pytest.raises(InputError) as caught:
        found.report_left_out()
    first, *problems = str(caught.value).split("\n  - ")
    assert first == "3 problems in the images; all others are done; correct them and start again:"
    assert problems[0] == f"'{folder / 'images/none.png'}': there is no such file"
    assert problems[1].startswith(f"'{folder / 'images/text.png'}': can't be read as an image (")
    assert problems[2] == f"'{folder / 'images/tiny.png'}': is 9x3, smaller than 4x4"
    assert all(problem in caplog.text for problem in problems)


def test_pictures_none_of_which_is_of_use_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"1 problem in the images"):
        list_images([str(folder / "images" / "none.png")])


def test_notes_that_are_called_as_what_the_transforms_make_are_left_out(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / f"{name}.png")
    notes = {"valid": "yes", "probability": 0.5, "pred": None, "instances": [1]}
    items = [{"image": "a.png", "label": 0, **notes}, {"image": "b.png", "label": 1, "area": 0.5}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    read = load_datalist(tmp_path, ["training"])["training"]
    assert [set(item) for item in read] == [{"image", "label"}, {"image", "label", "area"}]


def test_strokes_are_checked(folder: Path) -> None:
    write_picture(folder / "strokes" / "negative.png", (HEIGHT, WIDTH), 1)
    write_picture(folder / "strokes" / "positive.png", (HEIGHT, WIDTH), 2)
    write_set(folder, training=[POSITIVE | {"strokes": "strokes/positive.png"}, NEGATIVE])
    assert load_datalist(folder)["training"][0]["strokes"] == str(folder / "strokes" / "positive.png")
    wrong = {
        "strokes/none.png": "there is no such file",
        "masks/large.png": "must be an 8-bit PNG of 0 (unknown), 1 (negative) and 2 (positive)",
        "images/a.png": "must be an 8-bit PNG of 0 (unknown), 1 (negative) and 2 (positive)",
        "images/text.png": "not a picture: none of PNG, TIFF, or damaged at its beginning",
    }
    for name, problem in wrong.items():
        write_set(folder, training=[POSITIVE | {"strokes": name}, NEGATIVE])
        assert problems_of(folder) == [
            f"training[0] '{folder / 'images/a.png'}': the strokes '{folder / name}': {problem}"
        ]
    write_picture(folder / "strokes" / "turned.png", (WIDTH, HEIGHT), 1)
    write_set(
        folder,
        training=[
            POSITIVE | {"strokes": "strokes/turned.png"},
            NEGATIVE | {"strokes": "strokes/positive.png"},
            NEGATIVE | {"strokes": 3},
            NEGATIVE | {"strokes": "strokes/negative.png"},
        ],
    )
    assert [problem.partition(": ")[2] for problem in problems_of(folder)] == [
        f"the strokes '{folder / 'strokes/turned.png'}' are 5x8, the image 8x5; they must have the same size",
        f"label is 0, but the strokes '{folder / 'strokes/positive.png'}' mark positive pixels; remove one",
        "strokes is 3, must be the path of a PNG",
    ]


def test_excluded_items_are_counted_and_not_looked_at(folder: Path, caplog) -> None:
    caplog.set_level("INFO")
    damaged = POSITIVE | {"image": "images/cut.png", "group": "p", "excluded": True}
    kept = POSITIVE | {"excluded": False}
    write_set(folder, training=[damaged, kept, NEGATIVE], validation=[NEGATIVE | {"group": "p"}, POSITIVE])
    found = load_datalist(folder)
    assert [item["image"] for item in found["training"]] == [str(folder / "images" / n) for n in ("a.png", "b.png")]
    assert "excluded" not in found["training"][0]
    assert "Excluded items are left out: 1 of training." in caplog.text
    write_set(folder, training=[POSITIVE | {"excluded": "yes"}, POSITIVE, NEGATIVE])
    assert problems_of(folder) == ["training[0] 'images/a.png': excluded is 'yes', must be true or false"]


@pytest.mark.parametrize("kind", ["L", "RGB", "LA", "RGBA", "P", "1", "I;16", "jpg", "bmp", "tif"])
def test_a_mask_is_the_same_with_and_without_monai(kind: str, tmp_path: Path) -> None:
    """Of the usual kinds it is read without; 3 rows of 4 pixels, one row negative, of which one has no alpha."""
    path = tmp_path / f"mask.{kind if kind in ('jpg', 'bmp', 'tif') else 'png'}"
    values = np.zeros((3, 4), np.uint8)
    values[1:] = 255
    image = Image.fromarray(values.astype(np.uint16) * 257) if kind == "I;16" else Image.fromarray(values)
    image = image.convert(kind) if kind in ("RGB", "LA", "RGBA", "P", "1") else image
    if kind in ("LA", "RGBA"):
        alpha = Image.new("L", (4, 3), 255)
        alpha.putpixel((3, 2), 0)
        image.putalpha(alpha)
    image.save(path, **({"quality": 100} if kind == "jpg" else {}))
    if kind != "jpg":  # which has some grey beside what is white
        expected = values.T[np.newaxis] > 0
        expected[0, 3, 2] &= kind not in ("LA", "RGBA")
        np.testing.assert_array_equal(load_positive(path), expected)
    np.testing.assert_array_equal(load_positive(path), np.asarray(load_mask(path)) > 0)


def test_an_empty_mask_as_a_label_is_counted_as_negative(folder: Path, caplog) -> None:
    items = [
        {"image": f"images/{name}.png", "label": f"masks/{mask}.png"} for name, mask in (("a", "full"), ("b", "empty"))
    ]
    with caplog.at_level("INFO"):
        report_datalist(load_datalist(write_set(folder, training=items), ("training",)))
    assert "training: 1 positive images (1 with an area or a mask), 1 negative ones" in caplog.text


def test_a_name_that_no_file_can_have_is_refused(folder: Path) -> None:
    with pytest.raises(InputError):
        load_datalist(folder / ("a" * 300), ("training",))
