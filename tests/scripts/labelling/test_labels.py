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
"""Journal, split and merging of labels: what an annotator has given is what a training gets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.data.datalist import load_datalist
from scripts.labelling.__main__ import main
from scripts.labelling.dataset import split_by_group, write_dataset
from scripts.labelling.existing import from_masks
from scripts.labelling.images import find_images, groups_of
from scripts.labelling.journal import Answer, Journal, read_answers
from scripts.labelling.merge import merge_answers, merge_masks
from scripts.runtime.errors import InputError

ALL = ("a.png", "b.png", "c.png")
BUNDLE = Path(__file__).resolve().parents[3] / "bundle"


def test_a_journal_is_read_back(tmp_path):
    journal = Journal(tmp_path / "labels.jsonl")
    journal.give("a.png", Answer(1, 0.3))
    journal.give("b.png", Answer(0))
    journal.give("a.png", Answer(1, 0.4))
    journal.give("c.png", Answer(None))
    assert read_answers(tmp_path / "labels.jsonl") == {
        "a.png": Answer(1, 0.4),
        "b.png": Answer(0),
        "c.png": Answer(None),
    }


def test_undo_goes_back_answer_by_answer_also_after_a_restart(tmp_path):
    journal = Journal(tmp_path / "labels.jsonl")
    for image, answer in (("a.png", Answer(1, 0.3)), ("b.png", Answer(0)), ("a.png", Answer(0))):
        journal.give(image, answer)
    assert journal.undo(ALL) == "a.png"
    assert journal.answers == {"a.png": Answer(1, 0.3), "b.png": Answer(0)}
    again = Journal(tmp_path / "labels.jsonl")
    assert [again.undo(ALL), again.undo(ALL), again.undo(ALL)] == ["b.png", "a.png", None]
    assert Journal(tmp_path / "labels.jsonl").answers == {}


def test_undo_leaves_images_alone_that_are_not_shown(tmp_path):
    journal = Journal(tmp_path / "labels.jsonl")
    for image in ("b.png", "a.png", "b.png", "a.png"):
        journal.give(image, Answer(0))
    assert [journal.undo(["b.png"]), journal.undo(["b.png"]), journal.undo(["b.png"])] == ["b.png", "b.png", None]
    assert Journal(tmp_path / "labels.jsonl").answers == {"a.png": Answer(0)}


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_line_that_a_crash_has_cut_off_is_left_out(tmp_path, kept):
    path = tmp_path / "labels.jsonl"
    journal = Journal(path)
    journal.give("a.png", Answer(1, 0.3))
    whole = path.stat().st_size
    journal.give("b.png", Answer(0))
    path.write_bytes(path.read_bytes()[: whole + kept])
    journal = Journal(path)
    assert journal.answers == {"a.png": Answer(1, 0.3)}
    journal.give("c.png", Answer(0))
    assert read_answers(path) == {"a.png": Answer(1, 0.3), "c.png": Answer(0)}


@pytest.mark.parametrize("left", [b"\0" * 4096, b'{"image": "b.p' + b"\0" * 500, b"\0" * 30 + b"\n" + b"\0" * 30])
def test_the_zeros_that_a_power_cut_leaves_are_left_out(tmp_path, left):
    path = tmp_path / "labels.jsonl"
    Journal(path).give("a.png", Answer(1, 0.3))
    path.write_bytes(path.read_bytes() + left)
    journal = Journal(path)
    assert journal.answers == {"a.png": Answer(1, 0.3)}
    journal.give("c.png", Answer(0))
    assert read_answers(path) == {"a.png": Answer(1, 0.3), "c.png": Answer(0)}
    assert Journal(path).undo(ALL) == "c.png"


def test_a_damaged_line_is_not_taken_for_one_that_was_cut_off(tmp_path):
    path = tmp_path / "labels.jsonl"
    for image in ALL:
        Journal(path).give(image, Answer(0))
    path.write_bytes(path.read_bytes().replace(b'"b.png", ', b'"b.png"\x07 '))
    with pytest.raises(InputError, match="Line 2 of"):
        Journal(path)


@pytest.mark.parametrize(
    "rest",
    [
        '"label": 1, "area": NaN',
        '"label": 1, "area": 30',
        '"label": 0, "area": 0.3',
        '"label": true',
        '"comment": 3',
        '"label": 1, "comment": "both"',
        '"area": null',
        '"label": 1, "area": Infinity',
    ],
)
def test_a_record_that_no_page_has_written_is_refused(tmp_path, rest):
    (tmp_path / "labels.jsonl").write_text('{"image": "a.png", ' + rest + "}\n")
    with pytest.raises(InputError, match=r"Line 1 of .* is not an answer"):
        Journal(tmp_path / "labels.jsonl")


def test_journals_of_one_file_see_each_other(tmp_path):
    first, second = Journal(tmp_path / "labels.jsonl"), Journal(tmp_path / "labels.jsonl")
    first.give("a.png", Answer(0))
    second.give("b.png", Answer(1))
    assert [first.undo(ALL), second.undo(ALL), first.undo(ALL)] == ["b.png", "a.png", None]
    assert read_answers(tmp_path / "labels.jsonl") == {}


def test_processes_take_turns(tmp_path):
    """Three that have read 60 answers give 20 more each, and take 30 back, whosoever's they are: 30 are left."""
    code = """
import sys
from scripts.labelling.journal import Answer, Journal
journal = Journal(sys.argv[1])
print("read", flush=True)
sys.stdin.readline()
for k in range(10):
    journal.give(f"{sys.argv[2]}{k}.png", Answer(1, 0.5))
    assert all(journal.undo(journal.answers) for _ in range(3))
    journal.give(f"{sys.argv[2]}{k} again.png", Answer(0))
"""
    journal = Journal(tmp_path / "labels.jsonl")
    for k in range(60):
        journal.give(f"{k}.png", Answer(0))
    command, pipes = [sys.executable, "-c", code, str(journal.path)], {"stdin": -1, "stdout": -1, "text": True}
    writers = [subprocess.Popen([*command, name], cwd=BUNDLE, **pipes) for name in "abc"]
    assert [writer.stdout.readline() for writer in writers] == ["read\n"] * 3
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert len(read_answers(journal.path)) == 30


def test_answers_that_vanish_while_the_program_runs_are_missed(tmp_path):
    journal = Journal(tmp_path / "labels.jsonl")
    journal.give("a.png", Answer(0))
    (tmp_path / "labels.jsonl").unlink()
    with pytest.raises(InputError, match="has lost answers"):
        journal.give("b.png", Answer(0))


@pytest.mark.parametrize("line", ["hello", '{"image": 3, "label": 1}', '{"image": "a.png", "undo": true}', "[1]"])
def test_another_file_is_refused(tmp_path, line):
    (tmp_path / "labels.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"Line 1 of .*labels\.jsonl"):
        Journal(tmp_path / "labels.jsonl")


def item(name: str, label: int, group: str) -> dict:
    return {"image": name, "label": label, "group": group}


def test_no_group_is_split_and_both_sides_have_both_classes():
    items = [item(f"{k}.png", k % 2, f"patient {k // 4}") for k in range(40)]  # two of each class a patient
    for seed in range(20):
        splits = split_by_group(items, validation=0.2, seed=seed)
        groups = [{i["group"] for i in splits[split]} for split in ("training", "validation")]
        assert not groups[0] & groups[1]
        assert sum(map(len, splits.values())) == 40
        # a fifth of 20 images of each class are 4, which two patients have
        assert [sum(i["label"] == label for i in splits["validation"]) for label in (0, 1)] == [4, 4]


def test_the_seed_draws_the_split():
    items = [item(f"{k}.png", k % 2, str(k)) for k in range(40)]
    names = {seed: {i["image"] for i in split_by_group(items, 0.2, seed)["validation"]} for seed in (0, 1)}
    assert names[0] != names[1]
    assert names[0] == {i["image"] for i in split_by_group(items[::-1], 0.2, 0)["validation"]}


def test_too_few_images_of_a_class_are_named():
    with pytest.raises(InputError, match="too few images with the finding"):
        split_by_group([item("a.png", 1, "a"), item("b.png", 0, "b"), item("c.png", 0, "c")], 0.2)


@pytest.mark.parametrize("seed", range(30))
def test_what_can_be_split_is_split(seed):
    """Of one group with both classes and two with one each there is no other split than the one from the two."""
    items = [item("a.png", 1, "A"), item("b.png", 0, "A"), item("c.png", 1, "B"), item("d.png", 0, "C")]
    splits = split_by_group(items, 0.2, seed)
    assert {frozenset(i["group"] for i in members) for members in splits.values()} == {frozenset("A"), frozenset("BC")}


def test_labels_that_are_taken_back_leave_no_data_set(tmp_path):
    answers = {"a.png": Answer(1), "b.png": Answer(1), "c.png": Answer(0), "d.png": Answer(0)}
    write_dataset(tmp_path / "dataset.json", answers, {})
    del answers["d.png"]
    with pytest.raises(InputError, match="too few images without the finding"):
        write_dataset(tmp_path / "dataset.json", answers, {})
    assert not (tmp_path / "dataset.json").exists()


def test_the_data_set_passes_the_contract(tmp_path):
    answers = {}
    for k in range(8):
        array = np.full((8, 8, 3), 20 * k, np.uint8)
        Image.fromarray(array).save(tmp_path / f"{k}.png")
        answers[f"{k}.png"] = Answer(1, 0.3) if k % 2 else Answer(0)
    answers["7.png"], answers["6.png"] = Answer(1), Answer(None)
    counts = write_dataset(tmp_path / "dataset.json", answers, groups={})
    datalist = load_datalist(tmp_path)
    assert counts == {split: len(items) for split, items in datalist.items()}
    found = {i["image"].rsplit("/", 1)[1]: (i["label"], i.get("area")) for items in datalist.values() for i in items}
    expected = {f"{k}.png": (1, 0.3) if k % 2 else (0, None) for k in range(6)} | {"7.png": (1, None)}
    assert found == expected


def test_a_data_set_of_another_origin_is_not_replaced(tmp_path):
    (tmp_path / "dataset.json").write_text('{"training": [1]}')
    with pytest.raises(InputError, match="move it away"):
        write_dataset(tmp_path / "dataset.json", {"a.png": Answer(0)}, {})
    assert json.loads((tmp_path / "dataset.json").read_text()) == {"training": [1]}


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[" * 100_000, b'{"written_by": "scri', b"\xff\xfe", b"[]"])
def test_a_damaged_data_set_is_not_replaced(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=r"dataset\.json' .*move it away"):
        write_dataset(tmp_path / "dataset.json", {"a.png": Answer(0), "b.png": Answer(1)}, {})
    assert (tmp_path / "dataset.json").read_bytes() == content


def test_agreement_of_two_annotators():
    first = {
        "a": Answer(1, 0.3),
        "b": Answer(1, 0.3),
        "c": Answer(0),
        "d": Answer(0),
        "e": Answer(1, 0.5),
        "f": Answer(1),
    }
    second = {"a": Answer(1, 0.4), "b": Answer(1, 0.5), "c": Answer(0), "d": Answer(1, 0.1), "f": Answer(1, 0.2)}
    merged, undecided = merge_answers(first, second)
    # 0.3 and 0.4 have the mean 0.35, rounded up to 0.4; of one area alone it is that
    assert merged == {"a": Answer(1, 0.4), "c": Answer(0), "f": Answer(1, 0.2)}
    assert undecided == ["b", "d", "e"]
    merged, undecided = merge_answers(first, second, third={"b": Answer(1, 0.4), "d": Answer(0), "a": Answer(0)})
    assert merged == {"a": Answer(1, 0.4), "b": Answer(1, 0.4), "c": Answer(0), "d": Answer(0), "f": Answer(1, 0.2)}
    assert undecided == ["e"]


def rectangle(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_masks_above_four_fifths_overlap_become_their_intersection():
    first, second = rectangle((0, 10), (0, 10)), rectangle((0, 10), (1, 10))  # 90 of 100 pixels
    merged, undecided = merge_masks(first, second)
    np.testing.assert_array_equal(merged, second)
    assert not undecided.any()


def test_regions_are_judged_one_by_one():
    agreed = rectangle((0, 10), (0, 10))
    smaller = rectangle((0, 10), (2, 10))  # 80 of 100 pixels: not above four fifths
    alone = rectangle((15, 18), (20, 25))
    merged, undecided = merge_masks(agreed | alone, agreed)
    np.testing.assert_array_equal(merged, agreed)
    np.testing.assert_array_equal(undecided, alone)
    merged, undecided = merge_masks(agreed, smaller)
    assert not merged.any()
    np.testing.assert_array_equal(undecided, agreed)
    merged, undecided = merge_masks(agreed | alone, smaller, third=alone | rectangle((0, 5), (0, 10)))
    # of three, two mark: all that `smaller` has, the third's half of the rest, and the region of the first alone
    np.testing.assert_array_equal(merged, smaller | rectangle((0, 5), (0, 10)) | alone)
    assert not undecided.any()


@pytest.fixture
def run(monkeypatch):
    """Function from a command line to what it ends with: None, or the error's sentence."""

    def function(*arguments: object) -> str | None:
        monkeypatch.setattr(sys, "argv", ["labelling", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code
        return None

    return function


def draw(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def test_merging_masks_goes_on_after_a_damaged_one(run, tmp_path):
    agreed = rectangle((0, 10), (0, 10))
    for folder in ("first", "second"):
        for name in ("a.png", "c.png", "b.png"):
            draw(tmp_path / folder / name, agreed)
    (tmp_path / "second" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = run("merge_masks", tmp_path / "first", tmp_path / "second", tmp_path / "merged")
    assert done.startswith("error: These masks can't be merged (all others are): 'b.png' (")
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == ["a.png", "c.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "merged" / "a.png")) > 0, agreed)


@pytest.mark.parametrize(
    ("output", "drawn", "names"),
    [
        ("first", "none.png", ("a.png",)),
        ("second/../first", "none.png", ("a.png",)),
        ("merged", "a.png", ("a.png",)),
        ("merged", "b_undecided.png", ("a.png", "b.png")),
        ("merged", "none.png", ("a.png", "a.tif")),
        ("merged", "none.png", ("a.png", "a_undecided.png")),
    ],
)
def test_merging_masks_replaces_no_mask(run, tmp_path, output, drawn, names):
    for folder in ("first", "second"):
        for number, name in enumerate(names):
            draw(tmp_path / folder / name, rectangle((0, 10), (number, 10)))
    draw(tmp_path / "merged" / drawn, rectangle((0, 3), (0, 3)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run("merge_masks", tmp_path / "first", tmp_path / "second", tmp_path / output)
    assert re.match(r"error: '.*' (would both be merged into|exists, and may have been drawn by hand)", done)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("merge", ".", "anna", "anna"), "answers of one annotator: anna, anna"),
        (("merge", ".", "anna", "ben", "--third", "ben"), "answers of one annotator: anna, ben, ben"),
        (("merge_masks", "first", "./first", "merged"), "masks of one annotator: first, first"),
        (("merge_masks", "first", "second", "merged", "--third", "link"), "masks of one annotator"),
        (("merge_masks", "first", "more", "merged"), "no 'b.png' in 'first'"),
        (("merge_masks", "more", "first", "merged"), "no 'b.png' in 'first'"),
        (("label", "first", "--annotator", "../x"), "--annotator must consist of"),
        (("label", "first", "--port", "65536"), "Port 65536 can't be used"),
        (("label", "first", "--host", "203.0.113.7"), "--host '203.0.113.7' is no address of this computer"),
    ],
)
def test_what_nobody_can_merge_or_open_is_named(run, tmp_path, monkeypatch, arguments, error):
    for name in ("first/a.png", "second/a.png", "more/a.png", "more/b.png"):
        draw(tmp_path / name, rectangle((0, 10), (0, 10)))
    for annotator in ("anna", "ben"):
        Journal(tmp_path / f"labels-{annotator}.jsonl").give("a.png", Answer(0))
    (tmp_path / "link").symlink_to("second")
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.startswith("error: ")
    assert error in done
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "undecided.json").exists()


@pytest.mark.parametrize("name", ["dataset.json", "undecided.json"])
def test_merging_answers_replaces_no_foreign_file(run, tmp_path, name):
    for annotator in ("anna", "ben"):
        journal = Journal(tmp_path / f"labels-{annotator}.jsonl")
        for k in range(8):
            journal.give(f"{k}.png", Answer(k % 2))
    (tmp_path / name).write_text('{"mine": 1}')
    before = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    done = run("merge", tmp_path, "anna", "ben")
    assert re.match(f"error: '.*{name}' ", done)
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == before
    (tmp_path / name).unlink()
    assert run("merge", tmp_path, "anna", "ben") is None
    assert json.loads((tmp_path / "undecided.json").read_text()) == []


def test_images_are_found_and_links_out_of_the_folder_are_not(tmp_path):
    (tmp_path / "data" / "deeper").mkdir(parents=True)
    for path in ("data/b.png", "data/deeper/a.TIF", "data/notes.txt", "outside.png"):
        (tmp_path / path).write_bytes(b"x")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "outside.png")
    assert find_images(tmp_path / "data") == ["b.png", "deeper/a.TIF"]
    (tmp_path / "only.json").write_text('["b.png"]')
    assert find_images(tmp_path / "data", tmp_path / "only.json") == ["b.png"]
    for content, message in ('["b.png", "x.png"]', r"'x\.png', which is not in"), ('"b.png"', "not a JSON list"):
        (tmp_path / "only.json").write_text(content)
        with pytest.raises(InputError, match=message):
            find_images(tmp_path / "data", tmp_path / "only.json")
    with pytest.raises(InputError, match="no folder"):
        find_images(tmp_path / "none")


ODD_NAMES = ["a#1.png", "b?x=1.png", "c%41.png", "d'e\".png", "f<b>g&amp;.png", "h\ni.png", "\u00fc \u2603.png"]
ODD_NAMES += ["${j}.png", "%2e%2e%2fk.png", "l\\m.png", "n" * 240 + ".png", os.fsdecode(b"M\xfcller.png")]


def test_a_name_is_a_name(tmp_path):
    """The annotator's answers to files of odd names, one of them no UTF-8, are what a training reads."""
    (tmp_path / "data").mkdir()
    for k, name in enumerate(ODD_NAMES):
        with (tmp_path / "data" / name).open("wb") as file:
            Image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)).save(file, format="PNG")
    images = find_images(tmp_path / "data")
    assert sorted(images) == sorted(ODD_NAMES)
    journal = Journal(tmp_path / "data" / "labels.jsonl")
    for k, name in enumerate(images):
        journal.give(name, Answer(k % 2))
    write_dataset(tmp_path / "data" / "dataset.json", read_answers(journal.path), groups_of(images, None))
    items = [item for members in load_datalist(tmp_path / "data").values() for item in members]
    expected = {str(tmp_path / "data" / name): k % 2 for k, name in enumerate(images)}
    assert {item["image"]: item["label"] for item in items} == expected


def test_groups_come_from_the_path():
    images = ["p1/a_1.png", "p1/a_2.png", "p2/b_1.png"]
    assert groups_of(images, r"(\w\d)/") == {"p1/a_1.png": "p1", "p1/a_2.png": "p1", "p2/b_1.png": "p2"}
    with pytest.raises(InputError, match=r"b_1\.png"):
        groups_of(images, "p1")
    with pytest.raises(InputError, match="regular expression"):
        groups_of(images, "(")


def test_results_of_an_inference_are_no_images_to_label_but_may_be_masks(tmp_path):
    """Of one with --prediction_dir images: somebody corrects its masks, and learns from them."""
    for name in ("a", "a_mask", "a_overlay", "b", "b_mask"):
        value = 0 if name in ("a_mask", "b") else 255
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "predictions.csv").write_text("image,probability,area_fraction\n")
    assert find_images(tmp_path) == ["a.png", "b.png"]
    items, _ = from_masks(tmp_path, tmp_path)
    assert [(item["image"].name, item["label"]) for item in items] == [("a.png", 0), ("b.png", 1)]


def test_compared_areas_are_what_they_say():
    static = BUNDLE / "scripts" / "labelling" / "static"
    found = {path.stem: np.asarray(Image.open(path)).mean() for path in static.glob("area_*.png")}
    expected = {f"area_{percent}_{pieces}": percent / 100 for percent in (10, 30, 50, 70) for pieces in ("one", "many")}
    assert found == pytest.approx(expected, abs=1e-4)
