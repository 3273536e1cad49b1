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
"""Data sets from two folders, a table or masks, as ``cdws data`` writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.console.command import main
from scripts.data.datalist import load_datalist
from scripts.labelling.dataset import write_dataset
from scripts.labelling.journal import Answer, Journal


def picture(path: Path, marked: int = 0, mask: bool = False) -> Path:
    """8 x 10 pixels; of a mask the first are 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(80, np.uint8) if mask else np.arange(80, dtype=np.uint8)
    pixels[:marked] = 255
    Image.fromarray(pixels.reshape(8, 10)).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two pictures of each of three patients with the finding, and of four without."""
    for kind, patients in (("yes", "abc"), ("no", "defg")):
        for patient in patients:
            for number in (1, 2):
                picture(tmp_path / kind / f"p{patient}_{number}.png")
    return tmp_path


def items_of(folder: Path) -> list[dict]:
    content = json.loads((folder / "dataset.json").read_text())
    return [item for split in ("training", "validation") for item in content[split]]


def test_two_folders_make_a_data_set_that_passes_its_check(folders: Path, capsys) -> None:
    line = ["data", "from-folders", str(folders / "yes"), str(folders / "no"), "--group", r"(p\w)_"]
    assert main([*line, "--validation", "0.3"]) == 0
    splits = load_datalist(folders)
    assert {item["group"] for item in splits["training"]}.isdisjoint(item["group"] for item in splits["validation"])
    assert sum(item["label"] for item in items_of(folders)) == 6
    assert len(items_of(folders)) == 14
    assert all("area" not in item for item in items_of(folders))
    shown = capsys.readouterr().out
    # of the six and eight images 0.3 are two each: a patient of each kind
    assert "validation           2         2         2" in shown
    assert "training             4         6         5" in shown
    assert "No positive image has a rough area" in shown
    assert "Few training images, 10" in shown
    assert "Warning" not in shown
    assert f"Next: cdws label {folders}" in shown


def test_groups_that_are_too_few_are_named(folders: Path, capsys) -> None:
    line = ["data", "from-folders", str(folders / "yes"), str(folders / "no"), "--group", "(yes|no)/"]
    assert main(line) == 1
    assert "The groups now: no, yes." in capsys.readouterr().err
    assert main([*line[:-1], "x*"]) == 1  # finds nothing everywhere
    assert "--group 'x*' matches nothing in 'yes/pa_1.png' (14 images in all)" in capsys.readouterr().err


def test_pictures_that_are_cut_short_are_named(folders: Path, capsys) -> None:
    """Their headers are whole. Behind the end of another there is more than belongs to it, which does no harm."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    suffixes = ("png", "jpg", "tif")
    for suffix in suffixes:
        path = folders / "yes" / f"cut.{suffix}"
        noise.save(path)
        path.write_bytes(path.read_bytes()[:-500])
    for suffix in ("png", "jpg"):
        noise.save(folders / "yes" / f"more.{suffix}")
        with (folders / "yes" / f"more.{suffix}").open("ab") as file:
            file.write(bytes(70_000))
    assert main(["data", "from-folders", str(folders / "yes"), str(folders / "no")]) == 1
    problems = re.findall(r"'(\S+)': can't be read", capsys.readouterr().err)
    assert problems == [str(folders / "yes" / f"cut.{suffix}") for suffix in sorted(suffixes)]


@pytest.mark.parametrize(("side", "large"), [(672, False), (673, True)])
def test_pictures_that_training_shrinks_far_are_named(folders: Path, capsys, side: int, large: bool) -> None:
    """To the recommended 224 pixels: by more than three. Most of the pictures count."""
    for path in list(folders.glob("*/*.png"))[:10]:
        Image.new("L", (side, 700)).save(path)
    assert main(["data", "from-folders", str(folders / "yes"), str(folders / "no")]) == 0
    assert (f"The pictures are large, {side} x 700 pixels" in capsys.readouterr().out) == large


def test_a_folder_above_is_shown_as_the_disk_has_it(folders: Path, capsys, monkeypatch) -> None:
    (folders / "here").mkdir()
    (folders / "no").rename(folders / "here" / "no")
    (folders / "yes" / "empty.png").touch()
    monkeypatch.chdir(folders / "here")
    assert main(["data", "from-folders", "../yes", "no"]) == 1
    assert f"'{folders}/yes/empty.png': can't be read" in capsys.readouterr().err
    (folders / "yes" / "empty.png").unlink()
    assert main(["data", "from-folders", "../yes", "no"]) == 0
    assert "Next: cdws label ..  #" in capsys.readouterr().out
    assert {Path(item["image"]).parent.as_posix() for item in items_of(folders)} == {"yes", "here/no"}
    Path("table.csv").write_text("image,label\n../none.png,1\n")
    assert main(["data", "from-csv", "table.csv"]) == 1
    assert f"there is no file '{folders}/none.png'" in capsys.readouterr().err


def test_a_seed_draws_the_split(folders: Path) -> None:
    line = ["data", "from-folders", str(folders / "yes"), str(folders / "no")]
    drawn = []
    for seed in ("0", "0", "1"):
        assert main([*line, "--seed", seed]) == 0
        drawn.append((folders / "dataset.json").read_text())
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_image_alone_is_a_group_and_that_is_said(folders: Path, capsys) -> None:
    assert main(["data", "from-folders", str(folders / "yes"), str(folders / "no"), "--area", "0.4"]) == 0
    assert {item["group"] for item in items_of(folders)} == {item["image"] for item in items_of(folders)}
    assert [item.get("area") for item in items_of(folders) if item["label"]] == [0.4] * 6
    shown = capsys.readouterr().out
    assert "Warning: each image counts as a patient of its own" in shown
    assert "rough area" not in shown


def test_images_outside_the_folder_of_the_data_set_are_allowed_in_the_next_command(folders: Path, capsys) -> None:
    line = ["data", "from-folders", str(folders / "yes"), str(folders / "no"), "--output", str(folders / "sets" / "a")]
    assert main(line) == 0
    assert f"Next: cdws train {folders}/sets/a --allow_outside True" in capsys.readouterr().out
    assert len(load_datalist(folders / "sets" / "a", allow_outside=True)["training"]) == 11


def test_a_table_may_have_other_headings_labels_and_separators(folders: Path, capsys) -> None:
    rows = ["File;Diagnosis;Extent;Patient;Remark"]
    rows += [f"yes/p{p}_{n}.png;tumour;{e};{p};x" for p, n, e in (("a", 1, "30%"), ("a", 2, "0,5"), ("b", 1, ""))]
    rows += ["yes/pb_2.png;Tumour;40 %;b;x"]
    rows += [f"no/p{p}_{n}.png;normal;;{p};x" for p, n in (("d", 1), ("d", 2), ("e", 1))]
    (folders / "table.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    line = ["data", "from-csv", str(folders / "table.csv"), "--image", "File", "--label", "Diagnosis"]
    assert main([*line, "--positive", "tumour", "--area", "Extent", "--group", "Patient"]) == 0
    found = {item["image"]: item for item in items_of(folders)}
    assert found["yes/pa_1.png"] == {"image": "yes/pa_1.png", "label": 1, "area": 0.3, "group": "a"}
    assert found["yes/pa_2.png"]["area"] == 0.5
    assert found["yes/pb_2.png"]["area"] == 0.4
    assert found["yes/pb_1.png"] == {"image": "yes/pb_1.png", "label": 1, "group": "b"}
    assert found["no/pd_1.png"] == {"image": "no/pd_1.png", "label": 0, "group": "d"}
    shown = capsys.readouterr().out
    assert "Columns that are not used: Remark." in shown
    assert "1 of 4 positive images don't have a rough area" in shown


TABLES = {
    "image,lable\nyes/pa_1.png,1": r"no column 'label' \(did you mean lable\?\)",
    "image,label": "no row below its headings",
    "image,label\nyes/none.png,1": "line 2: there is no file",
    "image,label\nyes/pa_1.png,1\nyes/pa_2.png,bad": "line 3: the label 'bad' is neither 1 nor 0; .*--positive",
    "image,label\nyes/pa_1.png,1\nyes/pa_1.png,0": "line 3: .* is in line 2 as well",
    "image,label,area\nyes/pa_1.png,1,30": "line 2: the area '30' is no fraction .*30%",
    "image,label,area\nyes/pa_1.png,0,0.3": "line 2: the label is negative, but the area '0.3'",
    "image,label,mask\nyes/pa_1.png,1,no.png": "line 2: there is no mask",
    "image,label\nyes/pa_1.png,1\nyes/pb_1.png,1": "too few images without the finding",
    "image,label,area\nyes/pa_1.png,1,0,3": "line 2: has more cells than there are headings; quote those that hold",
    "image,label,label\nyes/pa_1.png,1,0": "has 2 columns 'label'; keep one",
    'image,label,note\nyes/pa_1.png,1,"two\nlines"\n\nyes/none.png,1,': "line 5: there is no file",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_cannot_be_used_is_refused(table: str, folders: Path, capsys) -> None:
    (folders / "table.csv").write_text(table)
    assert main(["data", "from-csv", str(folders / "table.csv")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert re.search(TABLES[table], errors), errors
    assert not (folders / "dataset.json").exists()


def test_a_table_that_is_not_there_is_refused_with_its_remedy(folders: Path, capsys) -> None:
    (folders / "table.csv").touch()
    for name, remedy in (("tabel.csv", " (did you mean table.csv?); give a CSV"), ("none/a.csv", "; give a CSV file")):
        assert main(["data", "from-csv", str(folders / name)]) == 1
        assert f"can't be read (No such file or directory){remedy}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["from-folders", "from-csv", "from-masks"])
def test_files_that_are_no_pictures_are_named_before_anything_is_written(kind: str, folders: Path, capsys) -> None:
    (folders / "yes" / "text.png").write_text("no picture")
    (folders / "no" / "empty.jpg").touch()
    Image.new("L", (2, 9)).save(folders / "no" / "narrow.tif")
    names = [path.relative_to(folders) for path in (*folders.glob("yes/*"), *folders.glob("no/*"))]
    rows = [f"{name},{int(name.parts[0] == 'yes')}" for name in names]
    (folders / "table.csv").write_text("\n".join(["image,label", *rows]))
    for name in names:
        picture(folders / "masks" / name.with_suffix(".png").name, 20 * (name.parts[0] == "yes"), mask=True)
        (folders / "all").mkdir(exist_ok=True)
        (folders / "all" / name.name).write_bytes((folders / name).read_bytes())
    given = {"from-folders": ["yes", "no"], "from-csv": ["table.csv"], "from-masks": ["all", "masks"]}[kind]
    assert main(["data", kind, *(str(folders / name) for name in given)]) == 1
    errors = capsys.readouterr().err
    assert "3 problems" in errors
    assert re.search(r"text.png': can't be read as an image \(not a picture: none of PNG, JPEG", errors)
    assert re.search(r"empty.jpg': can't be read as an image \(it is empty\)", errors)
    assert "narrow.tif': is 2x9, smaller than 4x4" in errors
    assert not list(folders.rglob("dataset.json"))


def test_masks_give_label_and_area(tmp_path: Path, capsys) -> None:
    """Of 80 pixels 20 are a quarter, which is rounded up to 0.3; 80 are all."""
    for name, marked in (("a", 20), ("b", 80), ("c", 0), ("d", 0), ("e", 24)):
        picture(tmp_path / "images" / f"{name}.jpg")
        picture(tmp_path / "masks" / f"{name}{'_mask' if name == 'a' else ''}.png", marked, mask=True)
    picture(tmp_path / "images" / "f.jpg")
    line = ["data", "from-masks", str(tmp_path / "images"), str(tmp_path / "masks")]
    assert main(line) == 1
    assert re.search(r"no mask of f\.jpg\. Call each mask .*--without_mask ", capsys.readouterr().err)
    assert main([*line, "--without_mask", "leave_out"]) == 0
    assert "without a mask: 1 " in capsys.readouterr().out
    assert main([*line, "--without_mask", "negative"]) == 0
    found = {Path(item["image"]).stem: item for item in items_of(tmp_path)}
    assert {name: (item["label"], item.get("area")) for name, item in found.items()} == {
        **{"a": (1, 0.3), "b": (1, 1.0), "e": (1, 0.3)},
        **{"c": (0, None), "d": (0, None), "f": (0, None)},
    }
    assert found["a"]["mask"] == "masks/a_mask.png"
    load_datalist(tmp_path, pixel_labels=True)


@pytest.mark.parametrize("kind", ["from-folders", "from-masks"])
def test_all_images_may_be_there_to_score_a_model(kind: str, tmp_path: Path, capsys) -> None:
    for name, marked in (("a", 20), ("b", 0)):  # too few to be split
        picture(tmp_path / "images" / f"{name}.jpg")
        picture(tmp_path / "masks" / f"{name}.png", marked, mask=True)
        picture(tmp_path / "by_label" / name / f"{name}.jpg")
    given = {"from-folders": ["by_label/a", "by_label/b"], "from-masks": ["images", "masks"]}[kind]
    assert main(["data", kind, *(str(tmp_path / name) for name in given), "--test"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Next: cdws evaluate .* --split test  # --ckpt_path included", shown)
    assert "cdws label" not in shown
    assert "Warning" not in shown  # of patients in two splits
    (listed,) = tmp_path.rglob("dataset.json")
    assert [(split, [item["label"] for item in items]) for split, items in load_datalist(listed, ["test"]).items()] == [
        ("test", [1, 0])
    ]
    assert not {"training", "validation"} & set(json.loads(listed.read_text()))


def test_pictures_and_masks_may_lie_in_one_folder(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.png")
        picture(tmp_path / f"{number}_label.png", 8 * (number % 2), mask=True)
    assert main(["data", "from-masks", str(tmp_path), str(tmp_path), "--suffix", "_label"]) == 0
    assert sorted(item["image"] for item in items_of(tmp_path)) == ["0.png", "1.png", "2.png", "3.png"]
    assert [item["area"] for item in items_of(tmp_path) if item["label"]] == [0.1, 0.1]


def test_masks_of_which_one_cannot_tell_whose_they_are_are_named(tmp_path: Path, capsys) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a.png", "b.png", "c.png", "c.bmp"):
        picture(images / name)
    for name, marked in (("a.png", 20), ("a.tif", 0), ("b.png", 0), ("b_mask.png", 80), ("c.png", 8)):
        picture(masks / name, marked, mask=True)
    assert main(["data", "from-masks", str(images), str(masks)]) == 1
    errors = capsys.readouterr().err
    for named in ("'a.png' has the masks a.png, a.tif;", "'b.png' has the masks b.png, b_mask.png;"):
        assert named in errors
    assert "'c.png' is the mask of c.bmp, c.png; keep one picture" in errors
    assert not list(tmp_path.rglob("dataset.json"))


def test_a_mask_of_another_size_is_named(tmp_path: Path, capsys) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (10, 9), 255).save(tmp_path / "masks" / "a.png")
    assert main(["data", "from-masks", str(tmp_path / "images"), str(tmp_path / "masks")]) == 1
    assert "the mask 'a.png' has 10x9, 'a.png' 10x8; they must have the same size" in capsys.readouterr().err


def test_a_link_to_a_picture_that_is_not_there_is_named(folders: Path, capsys) -> None:
    (folders / "yes" / "moved.png").symlink_to(folders / "away.png")
    assert main(["data", "from-folders", str(folders / "yes"), str(folders / "no")]) == 1
    assert re.search(r"Links to files that are not there: .*yes/moved\.png", capsys.readouterr().err)


@pytest.mark.parametrize("options", [["", "no"], ["yes", "no", "--output", ""]])
def test_an_empty_name_is_not_the_folder_one_is_in(options: list[str], folders: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(folders)
    with pytest.raises(SystemExit):
        main(["data", "from-folders", *options])
    assert "is empty; name a file or a folder" in capsys.readouterr().err


def test_a_mask_that_is_damaged_is_named(tmp_path: Path, capsys) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"no picture")
    assert main(["data", "from-masks", str(tmp_path / "images"), str(tmp_path / "masks")]) == 1
    assert "masks/a.png' can't be read" in capsys.readouterr().err


def test_folders_that_cannot_be_used_are_refused(folders: Path, capsys) -> None:
    (folders / "empty").mkdir()
    for positive, negative, problem in (
        ("none", "no", "There is no folder"),
        ("yes", "empty", "There is no picture (png, "),
        ("yes", "yes", "lie in each other"),
        (".", "no", "lie in each other"),
    ):
        assert main(["data", "from-folders", str(folders / positive), str(folders / negative)]) == 1
        assert problem in capsys.readouterr().err


def test_a_data_set_of_somebody_else_is_not_replaced(folders: Path, capsys) -> None:
    (folders / "dataset.json").write_text("{}")
    assert main(["data", "from-folders", str(folders / "yes"), str(folders / "no")]) == 1
    assert "was not written by cdws data" in capsys.readouterr().err
    assert (folders / "dataset.json").read_text() == "{}"


def wide(path: Path, marked: tuple[slice, slice] | None = None) -> Path:
    """64 x 98 pixels that grow from left to right and down; of a mask, 255 in what is marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.add.outer(np.arange(64, dtype=np.uint8), np.arange(98, dtype=np.uint8))
    if marked is not None:
        pixels = np.zeros_like(pixels)
        pixels[marked] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_fields_of_large_pictures_have_what_their_masks_say(tmp_path: Path, capsys) -> None:
    """Two rows and three columns of 32 pixels: at 0 and 32; at 0, 33 and 66."""
    for number, rows in enumerate([slice(0, 16), slice(0, 0), slice(0, 64), slice(0, 0)]):
        wide(tmp_path / f"{number}.png")
        wide(tmp_path / "masks" / f"{number}.png", (rows, slice(66, 98)))
    picture(tmp_path / "small.png")
    picture(tmp_path / "masks" / "small.png", 80, mask=True)
    for _ in range(2):  # what has been cut is no picture to cut
        assert main(["data", "from-masks", str(tmp_path), str(tmp_path / "masks"), "--field", "32"]) == 0
        assert "4 of the pictures were cut into fields of 32 pixels" in capsys.readouterr().out
    found = {item["image"]: item for item in items_of(tmp_path)}
    assert len(found) == 4 * 6 + 1
    assert found["fields_32/0_x66_y0.png"] == {
        "image": "fields_32/0_x66_y0.png",
        "mask": "fields_32_masks/0_x66_y0.png",
        "label": 1,
        "area": 0.5,
        "group": "0.png",
        "source": "0.png",
        "field": [66, 0, 32, 32],
    }
    assert found["fields_32/0_x33_y32.png"]["label"] == 0
    assert found["small.png"]["area"] == 1.0
    areas = [item["area"] for item in found.values() if item["label"] and "field" in item]
    assert sorted(areas) == [0.5, 1.0, 1.0]
    field = np.asarray(Image.open(tmp_path / "fields_32" / "0_x33_y32.png").convert("L"))
    np.testing.assert_array_equal(field, np.add.outer(np.arange(32, 64), np.arange(33, 65)))
    load_datalist(tmp_path, pixel_labels=True)


def test_fields_of_positive_pictures_wait_for_a_label(tmp_path: Path, capsys, caplog) -> None:
    for number in range(2):
        wide(tmp_path / "yes" / f"{number}.png")
        wide(tmp_path / "no" / f"{number}.png")
    line = ["data", "from-folders", str(tmp_path / "yes"), str(tmp_path / "no"), "--area", "0.9", "--field", "32"]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "12 fields of positive pictures have no label" in shown
    assert f"cdws label {tmp_path}/fields_32_to_label" in shown
    assert not (tmp_path / "dataset.json").exists()

    journal = Journal(tmp_path / "fields_32_to_label" / "labels.jsonl")
    for number in range(2):
        journal.give(f"yes/{number}_x0_y0.png", Answer(1, 0.3))
        journal.give(f"yes/{number}_x33_y0.png", Answer(0))
    assert main(line) == 0
    assert "8 fields of positive pictures have no label" in capsys.readouterr().out
    items = items_of(tmp_path)
    assert len(items) == 12 + 4
    assert {item["image"]: item["area"] for item in items if item["label"]} == {
        f"fields_32_to_label/yes/{number}_x0_y0.png": 0.3 for number in range(2)
    }
    load_datalist(tmp_path)
    assert "source" not in caplog.text


def test_pictures_whose_fields_would_have_one_name_are_named(tmp_path: Path, capsys) -> None:
    for path in ("yes/0.png", "no/0.png", "no/0.tif"):
        wide(tmp_path / path)
    line = ["data", "from-folders", str(tmp_path / "yes"), str(tmp_path / "no"), "--field"]
    assert main([*line, "32"]) == 1
    assert re.search(r"fields of '.*no/0.tif' would be called as those of '.*no/0.png'", capsys.readouterr().err)
    assert main([*line, "8"]) == 1
    assert "--field" in capsys.readouterr().err


def table_of_splits(folders: Path, splits: list[str], groups: str = "abdeabde") -> list[str]:
    images = ["yes/pa_1", "yes/pb_1", "no/pd_1", "no/pe_1", "yes/pa_2", "yes/pb_2", "no/pd_2", "no/pe_2"]
    rows = [f"{i}.png,{int(i[0] == 'y')},{g},{s}" for i, g, s in zip(images, groups, splits, strict=True)]
    (folders / "table.csv").write_text("\n".join(["image,label,group,split", *rows]))
    return ["data", "from-csv", str(folders / "table.csv")]


def test_a_table_may_say_the_split_of_each_image(folders: Path, capsys) -> None:
    assert main(table_of_splits(folders, ["training", "Val", "train", "validation"] * 2)) == 0
    content = json.loads((folders / "dataset.json").read_text())
    training = ["yes/pa_1.png", "no/pd_1.png", "yes/pa_2.png", "no/pd_2.png"]
    assert [item["image"] for item in content["training"]] == training
    assert {item["group"] for item in content["validation"]} == {"b", "e"}
    assert "split" not in content["training"][0]


def test_validation_is_drawn_from_training_where_a_table_has_but_a_test_split(folders: Path) -> None:
    splits = ["training", "test"] * 4
    assert main([*table_of_splits(folders, splits, "abdefbge"), "--validation", "0.5"]) == 0
    splits = load_datalist(folders)
    assert {item["group"] for item in splits["test"]} == {"b", "e"}
    assert len(splits["training"]) == len(splits["validation"]) == 2


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        (["training", "validation"] * 3 + ["training", "holdout"], "line 9: the split 'holdout' is none of training"),
        (["training"] * 4 + ["validation"] * 4, "group 'a' is in 'training' and in 'validation'"),
        (["training", "training", "validation", "validation"] * 2, "'training' has only positive images"),
    ],
)
def test_splits_that_cannot_be_are_refused(folders: Path, splits: list[str], problem: str, capsys) -> None:
    assert main(table_of_splits(folders, splits)) == 1
    assert problem in capsys.readouterr().err


def test_a_column_called_split_of_something_else_is_not_used(folders: Path, capsys) -> None:
    assert main(table_of_splits(folders, list("01230123"))) == 0
    assert "Columns that are not used: split." in capsys.readouterr().out


def feature(left: float, top: float, width: float, height: float, kind: str | None = None, **properties) -> dict:
    """A rectangle as QuPath exports it."""
    x, y = left + width, top + height
    ring = [[left, top], [x, top], [x, y], [left, y], [left, top]]
    classification = {"classification": {"name": kind, "color": [200, 0, 0]}} if kind else {}
    properties = {"objectType": "annotation"} | classification | properties
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def triangle(left: float, top: float, side: float, kind: str) -> dict:
    """The upper left half of a square."""
    found = feature(left, top, side, side, kind)
    del found["geometry"]["coordinates"][0][2]
    return found


def write_annotations(path: Path, *features: dict) -> None:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.fixture
def slides(write_slide, tissue_picture, tmp_path: Path) -> Path:
    """Two slides of 300 x 200 pixels at 0.5 micrometres."""
    for name in "ab":
        write_slide(tmp_path / f"{name}.tif", tissue_picture(200, 300), 0.5)
    return tmp_path


def test_annotations_of_slides_become_fields(slides: Path, capsys) -> None:
    """A triangle of 60 x 60 / 2 pixels is 0.28 of a field of 80 x 80, and so 0.3."""
    fields = [feature(10.2, 9.8, 80, 80), feature(100, 10, 80, 80, "Region*"), feature(221, 120, 80, 80, "Tumor")]
    fields += [feature(120, 120, 40, 50, "tumor", name="45 %"), feature(170, 120, 40, 50, "Stroma")]
    others = [triangle(20, 20, 60, "Tumor"), triangle(190, 10, 20, "Tumor"), triangle(110, 20, 60, "Stroma")]
    write_annotations(slides / "a.geojson", *fields, *others)
    write_annotations(slides / "b.geojson", feature(0, 0, 50, 50), feature(60, 0, 50, 50, "Tumor"))
    line = ["data", "from-geojson", str(slides), "--mpp", "1", "--validation", "0.4", "--masks", str(slides / "m")]
    assert main(line) == 0
    found = {(item["image"], *item["region"]): item for item in items_of(slides)}
    assert all(item["mpp"] == 1 and item["group"] == item["image"][0] for item in found.values())
    assert {key: (item["label"], item.get("area")) for key, item in found.items()} == {
        ("a.tif", 10, 10, 80, 80): (1, 0.3),
        ("a.tif", 100, 10, 80, 80): (0, None),
        ("a.tif", 221, 120, 79, 80): (1, None),
        ("a.tif", 120, 120, 40, 50): (1, 0.45),
        ("a.tif", 170, 120, 40, 50): (0, None),
        ("b.tif", 0, 0, 50, 50): (0, None),
        ("b.tif", 60, 0, 50, 50): (1, None),
    }
    load_datalist(slides)
    assert [key[1] for key, item in found.items() if "mask" in item] == [10]
    mask = np.array(Image.open(slides / "m" / "a_x10_y10_w80_h80_1000nm_mask.png"))
    row, column = np.mgrid[:40, :40]  # of 2 pixels; the triangle begins at 5, and its long side is where they add to 40
    sure = np.abs(row + column - 39) > 1
    expected = (row >= 5) & (column >= 5) & (row + column < 40)
    assert mask.shape == (40, 40)
    np.testing.assert_array_equal(mask[sure] > 0, expected[sure])


def test_the_fields_of_one_slide_are_shared_out(slides: Path, capsys) -> None:
    """Their class is another here, of which a polygon is half of the first one."""
    fields = [feature(0, 0, 40, 40), feature(50, 0, 40, 40), feature(100, 0, 40, 40, "stroma"), feature(150, 0, 9, 9)]
    write_annotations(slides / "a.geojson", *fields, triangle(0, 0, 40, "Stroma"))
    assert main(["data", "from-geojson", str(slides), "--positive", "Stroma"]) == 0
    assert [item["label"] for item in sorted(items_of(slides), key=lambda item: item["region"])] == [1, 0, 1, 0]
    assert {item.get("area") for item in items_of(slides)} == {None, 0.5}
    shown = capsys.readouterr().out
    assert "Left out, without annotations: b." in shown
    assert "one slide alone is in both splits" in shown
    load_datalist(slides)


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        ([triangle(0, 0, 50, "Tumor")], "a.geojson': has no upright rectangle"),
        ([feature(250, 0, 80, 80, "Tumor")], r"field at \(250, 0\): the region \[250, 0, 80, 80\] reaches out of the"),
        ([feature(0, 0, 80, 80, "Stroma"), triangle(0, 0, 80, "Tumor")], "is of class 'Stroma', but 50% of it lie in"),
        ([feature(0, 0, 80, 80, "Stroma", name="20%")], "is of class 'Stroma', but has the name '20%'"),
        ([feature(0, 0, 80, 80, "Tumor", name="200%")], "has the name '200%', which is more than all of it"),
        ([feature(0, 0, 80, 80)], "There are too few images with the finding"),
    ],
)
def test_annotations_that_cannot_be_fields_are_named(slides: Path, capsys, features: list, problem: str) -> None:
    write_annotations(slides / "a.geojson", *features)
    assert main(["data", "from-geojson", str(slides / "a.tif")]) == 1
    assert re.search(problem, capsys.readouterr().err)


def test_annotations_that_are_not_there_or_no_geojson(slides: Path, capsys) -> None:
    assert main(["data", "from-geojson", str(slides)]) == 1
    assert "There are no annotations of a, b" in capsys.readouterr().err
    (slides / "a.geojson").write_text("{")
    assert main(["data", "from-geojson", str(slides)]) == 1
    assert "a.geojson' can't be read as GeoJSON" in capsys.readouterr().err


def test_answers_of_the_page_outlive_more_pictures(folders: Path, capsys) -> None:
    """The areas are in the new data set too, and one that the page has made of another's is not replaced."""
    line = ["data", "from-folders", str(folders / "yes"), str(folders / "no")]
    assert main(line) == 0
    assert f"Next: cdws label {folders}" in capsys.readouterr().out
    journal = Journal(folders / "labels.jsonl")
    journal.give("yes/pa_1.png", Answer(1, 0.3))
    journal.give("no/gone.png", Answer(0))  # which has been deleted since
    write_dataset(folders / "dataset.json", {"yes/pa_1.png": Answer(1, 0.3)}, {})
    picture(folders / "yes" / "px_1.png")
    assert main(line) == 0
    assert "6 of 7 positive images don't have a rough area" in capsys.readouterr().out
    found = {item["image"]: item.get("area") for item in items_of(folders)}
    assert len(found) == 15
    assert {name for name, area in found.items() if area} == {"yes/pa_1.png"}
    assert main([*line, "--area", "0.5"]) == 0  # of the page again
    assert {i["image"]: i.get("area") for i in items_of(folders)}["yes/pa_1.png"] == 0.3

    given = json.loads((folders / "dataset-given.json").read_text())
    (folders / "dataset-given.json").write_text(json.dumps(given | {"written_by": "somebody"}))
    assert main(line) == 1
    assert "was not written by cdws data" in capsys.readouterr().err


def test_a_label_that_the_page_has_changed_is_named(folders: Path, capsys) -> None:
    line = ["data", "from-folders", str(folders / "yes"), str(folders / "no"), "--area", "0.5"]
    assert main(line) == 0
    Journal(folders / "labels.jsonl").give("yes/pa_1.png", Answer(0))
    assert main(line) == 0
    assert "gives another label, which counts, to pa_1.png; correct it there" in capsys.readouterr().out
    assert {item["image"]: item["label"] for item in items_of(folders)}["yes/pa_1.png"] == 0
