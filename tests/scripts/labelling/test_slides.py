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
"""Labelling on slides: fields that are proposed, drawn, moved and answered, and what is kept of them."""

from __future__ import annotations

import io
import json
import math
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scripts.data.datalist import load_datalist
from scripts.images.loading import load_image
from scripts.images.slide import Slide
from scripts.images.slide_parts import source_of
from scripts.labelling.dataset import write_dataset
from scripts.labelling.images import find_slides, holds_slides, read_names
from scripts.labelling.journal import Answer, Field, Journal, read_answers, written
from scripts.labelling.merge import merge_answers
from scripts.labelling.server import make_app
from scripts.labelling.subjects import SlideFields, propose_fields
from scripts.runtime.errors import InputError

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"
CMU = Path(__file__).resolve().parents[4] / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
TOKEN = "secret"


@pytest.fixture
def folder(tmp_path, write_slide) -> Path:
    """Two slides of 0.5 micrometres a pixel, 1200 x 800, purple in their left half and white in the other."""
    picture = np.full((800, 1200, 3), 245, np.uint8)
    picture[:, :600] = (150, 60, 160)
    for name in ("a", "b"):
        write_slide(tmp_path / f"{name}.svs", picture, 0.5, (1, 4))
    return tmp_path


def fields(folder: Path, journal: Journal | None = None, **options) -> SlideFields:
    journal = journal or Journal(folder / "labels.jsonl")
    return SlideFields(folder, ["a.svs", "b.svs"], journal, **({"number": 4, "size": 64} | options))


@pytest.fixture
def client(folder) -> TestClient:
    shown = fields(folder)
    return TestClient(make_app(shown, shown.journal, lambda: "saved", TOKEN), base_url="http://127.0.0.1:8000")


def test_fields_are_proposed_in_tissue_far_from_each_other(folder):
    with_few, with_many = fields(folder).subjects, fields(folder, number=8).subjects
    mine = [field for field in with_few if field.image == "a.svs"]
    assert len(with_few) == 8
    assert with_many[:4] == mine  # a larger number keeps those of a smaller one
    assert fields(folder).subjects == with_few
    assert fields(folder, seed=1).subjects != with_few
    for field in mine:
        left, top, width, height = field.region
        assert (width, height, field.mpp) == (128, 128, 1.0)  # 64 pixels of 1 micrometre are 128 of half of that
        assert 0 <= top <= 800 - 128
        assert 0 <= left <= 600 - 64  # at least half of it in the tissue
    corners = [np.array(field.region[:2]) for field in mine]
    apart = min(np.linalg.norm(a - b) for k, a in enumerate(corners) for b in corners[:k])
    assert apart > 300  # four of some twenty cells of 128


def test_fields_are_kept_clear_of_pen_and_blur(tmp_path, write_slide, caplog):
    """Sharp above, waves without detail below, a black line in the middle of what is sharp."""
    rng = np.random.default_rng(0)
    picture = (150 + 60 * np.sin(np.arange(800) * 2 * np.pi / 80))[:, None, None] * np.ones((1, 1600, 1))
    picture[:400] = rng.integers(90, 210, (200, 800, 1)).repeat(2, 0).repeat(2, 1)
    picture = picture * [1.0, 0.4, 0.9]
    picture[:300, 700:900] = 15
    picture[:400, 1500:] = 245
    write_slide(tmp_path / "a.svs", picture.astype(np.uint8), 0.5)
    slide = Slide(tmp_path / "a.svs")
    found = [field.region for field in propose_fields(slide, "a.svs", 30, 64, 1.0)]
    assert len(found) >= 8
    for left, top, width, height in found:
        assert top + height / 2 <= 400 + 128  # something is sharp within 64 micrometres of its middle
        assert top > 300 - height / 2 or left + width / 2 <= 700 or left + width / 2 >= 900  # half of it is no ink
    assert "a.svs: " in caplog.text
    assert "of the tissue is left out as pen" in caplog.text
    everywhere = [field.region for field in propose_fields(slide, "a.svs", 60, 64, 1.0, without=())]
    assert max(top for _, top, _, _ in everywhere) > 500


def test_a_slide_out_of_focus_has_fields_nevertheless(tmp_path, write_slide, caplog):
    waves = (150 + 60 * np.sin(np.arange(400) * 2 * np.pi / 40))[None, :, None] * [1.0, 0.4, 0.9]
    write_slide(tmp_path / "a.svs", np.broadcast_to(waves, (400, 400, 3)).astype(np.uint8), 1.0)
    assert len(propose_fields(Slide(tmp_path / "a.svs"), "a.svs", 2, 64, 1.0)) == 2
    assert "as blur, but there are no others." in caplog.text


def test_a_slide_of_glass_has_a_field_nevertheless(tmp_path, write_slide):
    write_slide(tmp_path / "a.svs", np.full((400, 400, 3), 245, np.uint8), 0.5)
    slide = Slide(tmp_path / "a.svs")
    assert len(propose_fields(slide, "a.svs", 5, 64, 1.0)) >= 1
    assert propose_fields(slide, "a.svs", 5, 4000, 1.0) == [Field("a.svs", (0, 0, 400, 400), 1.0)]


def test_a_slide_without_a_resolution_is_read_at_level_0_on_request(tmp_path, write_slide):
    write_slide(tmp_path / "a.svs", np.full((400, 400, 3), 245, np.uint8), None)
    journal = Journal(tmp_path / "labels.jsonl")
    with pytest.raises(InputError, match=r"a\.svs' doesn't say how large its pixels are; .*--mpp 0"):
        SlideFields(tmp_path, ["a.svs"], journal)
    [field] = SlideFields(tmp_path, ["a.svs"], journal, number=1, size=64, mpp=None).subjects
    assert (field.mpp, field.region[2:]) == (None, (64, 64))


def test_tiles_and_thumbnails_show_the_slide(client, folder):
    layout = client.get(f"/{TOKEN}/image/1").json()
    assert (layout["width"], layout["height"]) == (1200, 800)
    content = client.get(f"/{TOKEN}/image/1/{math.ceil(math.log2(1200))}/1/0").content
    tile = np.asarray(Image.open(io.BytesIO(content)))  # of the columns from 509 on
    assert np.abs(tile[100, 40].astype(int) - (150, 60, 160)).max() < 8
    assert np.abs(tile[100, 140].astype(int) - 245).max() < 8
    assert client.get(f"/{TOKEN}/image/1/11/9/0").status_code == 404
    assert client.get(f"/{TOKEN}/image/2").status_code == 404
    small = np.asarray(Image.open(io.BytesIO(client.get(f"/{TOKEN}/thumbnail/0").content)))
    assert np.abs(small[small.shape[0] // 2, 2].astype(int) - (150, 60, 160)).max() < 8


def test_fields_are_answered_drawn_moved_and_taken_away(client, folder):
    first = client.get(f"/{TOKEN}/state").json()
    assert (first["order"], first["sources"]) == (list(range(8)), [0] * 4 + [1] * 4)
    client.post(f"/{TOKEN}/answer", json={"image": 1, "label": 1, "area": 0.3})

    drawn = client.post(f"/{TOKEN}/field", json={"source": 0, "region": [10, 20, 100, 120]}).json()
    assert (drawn["placed"], drawn["regions"][8]) == (8, [10, 20, 100, 120])
    assert drawn["order"] == [0, 1, 2, 3, 8, 4, 5, 6, 7]  # beside those of its slide
    client.post(f"/{TOKEN}/answer", json={"image": 8, "label": 0})

    moved = client.post(f"/{TOKEN}/field", json={"source": 0, "region": [1, 2, 128, 128], "replaced": 1}).json()
    assert moved["order"] == [0, 2, 3, 8, 9, 4, 5, 6, 7]
    assert moved["answers"] == {"8": {"label": 0, "area": None}}  # what was said was of another place
    assert client.post(f"/{TOKEN}/answer", json={"image": 1, "label": 0}).status_code == 409
    removed = client.post(f"/{TOKEN}/field", json={"source": 0, "region": None, "replaced": 8}).json()
    assert (removed["order"], removed["answers"]) == ([0, 2, 3, 9, 4, 5, 6, 7], {})

    again = fields(folder)  # after a start
    where = {again.subjects[k].region for k in again.order() if again.subjects[k].image == "a.svs"}
    assert where == {tuple(moved["regions"][k]) for k in (0, 2, 3, 9)}
    for undone, answers in ((8, {"8": 0}), (1, {"1": 1, "8": 0}), (8, {"1": 1}), (8, {"1": 1}), (1, {})):
        state = client.post(f"/{TOKEN}/undo", json={}).json()
        found = {position: answer["label"] for position, answer in state["answers"].items()}
        assert (state["undone"], found) == (undone, answers)
    assert state["order"] == list(range(8))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"source": 0, "region": [1100, 0, 101, 100]}, "must lie on the slide, of 1200x800"),
        ({"source": 0, "region": [-1, 0, 100, 100]}, "must lie on the slide"),
        ({"source": 0, "region": [0, 0, 100, 8]}, "sides of 16 pixels"),
        ({"source": 0, "region": [0, 0, 10**9, 10**9]}, "must lie on the slide"),
        ({"source": 0, "region": [0.5, 0, 100, 100]}, "no answer"),
        ({"source": 2, "region": [0, 0, 100, 100]}, "no such field"),
        ({"source": 0, "region": None}, "no such field"),
        ({"source": 0, "region": [0, 0, 100, 100], "replaced": 99}, "no such image"),
    ],
)
def test_what_is_no_field_is_refused(client, folder, given, reason):
    answer = client.post(f"/{TOKEN}/field", json=given)
    assert answer.status_code in (404, 409, 422)
    assert reason in answer.json()["detail"]
    assert not (folder / "labels.jsonl").exists()


def test_a_data_set_of_fields_is_read_as_it_was_seen(folder):
    journal = Journal(folder / "labels.jsonl")
    for k, field in enumerate(fields(folder, journal).subjects):
        journal.give(field, Answer(1, 0.3) if k % 2 else Answer(0))
    write_dataset(folder / "dataset.json", journal.answers, {})
    content = json.loads((folder / "dataset.json").read_text())
    item = content["training"][0]
    assert set(item) - {"area"} == {"image", "region", "mpp", "label", "group"}
    groups = [{i["group"] for i in content[split]} for split in ("training", "validation")]
    assert sorted(groups, key=str) == [{"a.svs"}, {"b.svs"}]  # a slide is on one side
    datalist = load_datalist(folder)
    assert {image["label"] for image in datalist["training"]} == {0, 1}
    assert load_image(source_of(datalist["training"][0])).shape == (3, 64, 64)


def test_fields_of_one_slide_can_be_split(folder):
    answers = {Field("a.svs", (100 * k, 0, 64, 64), 1.0): Answer(k % 2) for k in range(6)}
    assert sum(write_dataset(folder / "dataset.json", answers, {}).values()) == 6
    load_datalist(folder)


def test_whole_slides_are_labelled_with_a_share(folder):
    shown = fields(folder, number=None)
    assert [shown.region(k) for k in shown.order()] == [None, None]
    journal = shown.journal
    client = TestClient(make_app(shown, journal, lambda: "saved", TOKEN), base_url="http://127.0.0.1:8000")
    client.post(f"/{TOKEN}/answer", json={"image": 0, "label": 1, "area": 0.2})
    answers = read_answers(folder / "labels.jsonl")
    assert answers == {Field("a.svs", None, 1.0): Answer(1, 0.2)}
    more = {Field(f"{name}.svs", None, 1.0): Answer(k % 2) for k, name in enumerate("bcd")}
    write_dataset(folder / "dataset.json", answers | more, {})
    content = json.loads((folder / "dataset.json").read_text())
    items = {item["image"]: item for item in content["training"] + content["validation"]}
    assert items["a.svs"] == {"image": "a.svs", "mpp": 1.0, "label": 1, "area": 0.2, "group": "a.svs"}


def test_two_annotators_of_fields_are_merged(folder):
    one, two, drawn = (Field("a.svs", (100 * k, 0, 64, 64), 1.0) for k in range(3))
    first = {one: Answer(1, 0.3), two: Answer(0), drawn: Answer(0)}
    merged, undecided = merge_answers(first, {two: Answer(0), one: Answer(1, 0.8)})
    assert (merged, undecided) == ({two: Answer(0)}, [one, drawn])
    (folder / "undecided.json").write_text(json.dumps([written(field) for field in undecided]))
    assert read_names(folder / "undecided.json") == undecided
    shown = fields(folder, only=undecided)
    assert [shown.subjects[k] for k in shown.order()] == undecided
    for other in (Field("c.svs", (0, 0, 64, 64), 1.0), "a.png"):
        with pytest.raises(InputError, match="There is no slide of"):
            fields(folder, only=[other])


def test_slides_are_found(folder, tmp_path):
    assert holds_slides(folder)
    assert find_slides(folder) == (folder, ["a.svs", "b.svs"])
    assert find_slides(folder / "b.svs") == (folder, ["b.svs"])
    with pytest.raises(InputError, match="no folder or slide"):
        find_slides(folder / "none.svs")


LABELLER = """
import sys, json
from pathlib import Path
from scripts.labelling.journal import Answer, Field, Journal
journal = Journal(sys.argv[1])
print("ready", flush=True)
for k in range(int(sys.argv[2]), 1_000_000):
    field = Field("a.svs", (k, 0, 64, 64), 1.0)
    journal.place(field)
    journal.give(field, Answer(1, 0.3) if k % 3 else Answer(0))
    print(k, flush=True)
"""


def kill_while_labels_are_given(path: Path, kills: int, seed: int) -> None:
    """Every field that was called saved is there after each kill, as are all of before, and the journal goes on."""
    drawn, said = random.Random(seed), -1
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", LABELLER, str(path), str(said + 1)], cwd=BUNDLE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(drawn.randint(0, 6))]
        threading.Timer(drawn.random() / 50, process.kill).start()
        said = max([said, *map(int, [*lines, *process.stdout.read().split("\n")[:-1]])])
        process.wait()
        answers = read_answers(path)
        expected = {
            Field("a.svs", (k, 0, 64, 64), 1.0): Answer(1, 0.3) if k % 3 else Answer(0) for k in range(said + 1)
        }
        assert expected.items() <= answers.items()
        assert len(answers) <= len(expected) + 1  # and at most one that was written, and not yet called so
        assert expected.keys() <= Journal(path).placed.keys()


def test_no_field_is_lost_by_a_kill(tmp_path):
    kill_while_labels_are_given(tmp_path / "labels.jsonl", 3, seed=0)


@pytest.mark.skipif(not CMU.is_file(), reason="needs the slide in ../shared")
def test_a_real_slide_is_proposed_fields_of_tissue():
    found = propose_fields(Slide(CMU), CMU.name, 6, 256, 1.0)
    assert len(found) == 6
    for field in found:
        picture = load_image(source_of(written(field) | {"image": str(CMU)}))
        assert np.asarray(picture).std(axis=0).mean() > 0.03  # glass is grey
