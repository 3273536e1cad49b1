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

"""From a model's findings over corrections to the data set in which they count, and the server between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from scripts.data.datalist import load_datalist
from scripts.images.strokes import read_strokes
from scripts.review.__main__ import entries_of
from scripts.review.corrections import Correction, Corrections, Stroke, paint, reviewed_path, write_reviewed
from scripts.review.doubt import Finding
from scripts.review.findings import Findings, FindingsWriter, list_items, read_findings
from scripts.review.server import make_review_app
from scripts.runtime.errors import InputError

TOKEN = "secret"
ITEMS = {
    "training": [
        {"image": "sure.png", "label": 1, "area": 0.3, "group": "p", "note": "kept"},
        {"image": "off.png", "label": 1, "area": 0.2},
        {"image": "sub/none.png", "label": 0},
    ],
    "validation": [{"image": "v1.png", "label": 1}, {"image": "v0.png", "label": 0}],
    "test": [{"image": "t1.png", "label": 1}, {"image": "t0.png", "label": 0}],
}
FINDINGS = {
    "sure.png": Finding(1.0, 0.25, 0.0),  # no doubt
    "off.png": Finding(1.0, 0.6, 0.0),  # four steps above: 0.8
    "sub/none.png": Finding(0.9, 0.0, 0.0),
    "v1.png": Finding(0.5, 0.1, 0.5),  # 0.5 + 0.25
    "v0.png": Finding(0.1, 0.0, 0.0),
}
MADE = "2026-01-01T00:00:00+00:00"
STROKE = {"label": 1, "width": 1.0, "points": [[0.5, 0.5], [2.5, 0.5]]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures of 6 x 5 pixels and their data set; in ``run/review`` what a model has said of them."""
    (tmp_path / "sub").mkdir()
    for name in (item["image"] for items in ITEMS.values() for item in items):
        Image.fromarray(np.full((5, 6, 3), 99, np.uint8)).save(tmp_path / name)
    (tmp_path / "dataset.json").write_text(json.dumps(ITEMS))
    images = {
        name: {"probability": f.probability, "area": f.area, "outline": f.outline, "width": 6, "height": 5}
        for name, f in FINDINGS.items()
    }
    (tmp_path / "run" / "review").mkdir(parents=True)
    (tmp_path / "run" / "review" / "findings.json").write_text(json.dumps({"made": MADE, "images": images}))
    return tmp_path


@pytest.fixture
def findings(data: Path) -> Findings:
    return read_findings(data / "run" / "review")


@pytest.fixture
def client(data: Path, findings: Findings) -> TestClient:
    journal = Corrections(data / "review.jsonl")

    def saved() -> str:
        return str(write_reviewed(data / "dataset.json", journal.answers, findings.sizes))

    entries = entries_of(data, findings)
    app = make_review_app(entries, data / "run" / "review", MADE, journal, saved, TOKEN)
    return TestClient(app, base_url="http://127.0.0.1:8000")


def reviewed(data: Path) -> dict:
    return json.loads((data / "reviewed.json").read_text())


# --- findings


def test_what_is_doubted_most_comes_first(data: Path, findings: Findings) -> None:
    entries = entries_of(data, findings)
    totals = {"sub/none.png": 0.9, "off.png": 0.8, "v1.png": 0.75, "v0.png": 0.1, "sure.png": 0.0}
    assert [entry.name for entry in entries] == list(totals)
    assert [entry.doubt.total for entry in entries] == pytest.approx(list(totals.values()))
    assert (entries[1].label, entries[1].area, entries[1].split, entries[1].size) == (1, 0.2, "training", (6, 5))


def test_images_of_the_test_are_not_reviewed(data: Path) -> None:
    assert [item["name"] for item in list_items(data)] == ["sure.png", "off.png", "sub/none.png", "v1.png", "v0.png"]


def test_findings_are_written_and_read(tmp_path: Path) -> None:
    """A map of 4 x 2 pixels, one of which is positive, and unsure."""
    values = torch.zeros(1, 4, 2)  # MONAI's (C, W, H)
    values[0, 3, 0] = 0.5
    writer = FindingsWriter(str(tmp_path), "model.pt")
    engine = SimpleNamespace(state=SimpleNamespace(output=[{"probability": values}]))
    engine.state.batch = [{"name": "a.png", "picture": torch.zeros(3, 4, 2, dtype=torch.uint8)}]
    writer.start(engine)
    writer(engine)
    writer.complete(engine)
    found = read_findings(tmp_path)
    assert found.sizes == {"a.png": (4, 2)}
    assert found.of["a.png"].area == 1 / 8
    assert found.of["a.png"].outline == pytest.approx(1 / 3)  # of the pixel and its two neighbours
    assert found.of["a.png"].probability == pytest.approx((0.5**4 / 8) ** (1 / 4))
    [view] = (tmp_path / "views").iterdir()
    assert json.loads(view.read_text()).keys() == {"width", "height", "outline", "heat"}


def test_outlines_are_of_the_findings_beside_them(data: Path, findings: Findings) -> None:
    """A page that is open while a model looks again, until it is cut off, shows no outline of the other look."""
    folder = data / "run" / "review"
    engine = SimpleNamespace(state=SimpleNamespace(output=[{"probability": torch.ones(1, 6, 5)}]))
    engine.state.batch = [{"name": "sub/none.png", "picture": torch.zeros(3, 6, 5, dtype=torch.uint8)}]
    writer = FindingsWriter(str(folder), "model.pt")
    writer.start(engine)
    writer(engine)
    writer.complete(engine)
    findings = Findings(read_findings(folder).made, findings.of, findings.sizes)
    journal = Corrections(data / "review.jsonl")
    page = make_review_app(entries_of(data, findings), folder, findings.made, journal, str, TOKEN)
    client = TestClient(page, base_url="http://127.0.0.1:8000")
    assert client.get(f"/{TOKEN}/view/0").status_code == 200
    again = FindingsWriter(str(folder), "model.pt")
    again.start(engine)
    again(engine)
    assert client.get(f"/{TOKEN}/view/0").status_code == 404
    with pytest.raises(InputError):
        read_findings(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"made": "x"}', '{"made": "x", "images": {"a": {"area": 1}}}'])
def test_findings_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "findings.json").write_text(content)
    with pytest.raises(InputError, match="cdws review RUN DATA"):
        read_findings(tmp_path)


def test_a_data_set_that_the_model_has_not_seen(data: Path) -> None:
    with pytest.raises(InputError, match="looked at none"):
        entries_of(data, Findings(MADE, {}, {}))


# --- corrections


def test_strokes_are_painted_one_over_the_other() -> None:
    across = Stroke(1, 1.0, ((0.5, 2.5), (5.5, 2.5)))
    down = Stroke(0, 1.0, ((2.5, 0.5), (2.5, 4.5)))
    expected = np.zeros((5, 6))
    expected[2] = 2
    expected[:, 2] = 1
    assert np.array_equal(paint((across, down), (6, 5)), expected)
    dot = paint((Stroke(1, 3.0, ((2.5, 2.5),)),), (6, 5))
    assert dot[2, 2] == dot[1, 2] == dot[2, 3] == 2
    assert not dot[:, [0, 5]].any()
    outside = paint((Stroke(0, 1.0, ((-50.0, 0.5), (0.5, 0.5))),), (6, 5))
    assert np.argwhere(outside).tolist() == [[0, 0]]


def test_the_reviewed_data_set_is_a_new_one(data: Path, findings: Findings) -> None:
    before = (data / "dataset.json").read_bytes()
    corrections = {
        "sure.png": Correction(1, 0.3),
        "off.png": Correction(1, 0.5, strokes=(Stroke.of(STROKE),)),
        "sub/none.png": Correction(0, excluded=True),
        "v1.png": Correction(1, 0.1),
        "gone.png": Correction(1, 0.1),
    }
    counts = write_reviewed(data / "dataset.json", corrections, findings.sizes)
    assert counts == {"changed": 3, "left out": 1, "with strokes": 1}
    assert (data / "dataset.json").read_bytes() == before
    sure, off, none = reviewed(data)["training"]
    assert sure == ITEMS["training"][0]
    assert {key: off[key] for key in ("image", "label", "area")} == {"image": "off.png", "label": 1, "area": 0.5}
    expected = np.zeros((5, 6))
    expected[0, :3] = 2
    assert np.array_equal(read_strokes(data / off["strokes"]), expected)
    assert none == {"image": "sub/none.png", "label": 0, "excluded": True}
    assert reviewed(data)["validation"][0] == {"image": "v1.png", "label": 1, "area": 0.1}
    assert reviewed(data)["test"] == ITEMS["test"]
    # other strokes go into another file: what an older data set refers to stays
    corrections["off.png"] = Correction(1, 0.5, strokes=(Stroke.of(STROKE | {"label": 0}),))
    write_reviewed(data / "dataset.json", corrections, findings.sizes)
    assert reviewed(data)["training"][1]["strokes"] != off["strokes"]
    assert np.array_equal(read_strokes(data / off["strokes"]), expected)


@pytest.mark.parametrize("here", [".", ".."])
def test_a_data_set_may_be_named_from_where_one_is(data: Path, findings: Findings, monkeypatch, here: str) -> None:
    monkeypatch.chdir(data / here)
    folder = Path("." if here == "." else data.name)
    assert {item["name"] for item in list_items(folder)} == set(FINDINGS)
    assert {entry.name for entry in entries_of(folder, findings)} == set(FINDINGS)
    counts = write_reviewed(folder / "dataset.json", {"off.png": Correction(0, None)}, findings.sizes)
    assert counts == {"changed": 1, "left out": 0, "with strokes": 0}
    assert reviewed(data)["training"][1] == {"image": "off.png", "label": 0}


def test_the_reviewed_data_set_can_be_trained_from(data: Path, findings: Findings) -> None:
    content = ITEMS | {"training": [*ITEMS["training"], {"image": "more.png", "label": 0}]}
    Image.fromarray(np.full((5, 6, 3), 99, np.uint8)).save(data / "more.png")
    (data / "dataset.json").write_text(json.dumps(content))
    corrections = {
        "off.png": Correction(1, 0.5, strokes=(Stroke.of(STROKE),)),
        "sub/none.png": Correction(0, None, True),
    }
    write_reviewed(data / "dataset.json", corrections, findings.sizes)
    training = load_datalist(data / "reviewed.json")["training"]
    assert [os.path.basename(item["image"]) for item in training] == ["sure.png", "off.png", "more.png"]
    assert read_strokes(training[1]["strokes"]).max() == 2


def test_strokes_of_an_image_that_the_model_has_not_looked_at(data: Path) -> None:
    """Of one the picture is read, another has its strokes already, and of the last there is no picture."""
    content = json.loads((data / "dataset.json").read_text())
    content["training"][1] |= {"strokes": "strokes/of_before.png", "excluded": True}
    content["training"].append({"image": "lost.png", "label": 1})
    (data / "dataset.json").write_text(json.dumps(content))
    Image.fromarray(np.full((6, 5, 3), 99, np.uint8)).save(data / "t1.png", exif=turned())
    corrections = {name: Correction(1, 0.5, strokes=(Stroke.of(STROKE),)) for name in ("off.png", "t1.png", "lost.png")}
    write_reviewed(data / "dataset.json", corrections, {})
    _, off, _, lost = reviewed(data)["training"]
    assert off == {"image": "off.png", "label": 1, "area": 0.5, "strokes": "strokes/of_before.png", "excluded": True}
    assert lost == {"image": "lost.png", "label": 1, "area": 0.5}
    expected = np.zeros((5, 6))
    expected[0, :3] = 2
    assert np.array_equal(read_strokes(data / reviewed(data)["test"][0]["strokes"]), expected)


def turned() -> Image.Exif:
    """What a camera held upright writes: the picture is to be shown with its sides exchanged."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_what_the_data_set_leaves_out_stays_out(data: Path, findings: Findings) -> None:
    content = json.loads((data / "dataset.json").read_text())
    content["training"][1]["excluded"] = True
    (data / "dataset.json").write_text(json.dumps(content))
    counts = write_reviewed(data / "dataset.json", {"off.png": Correction(1, 0.5)}, findings.sizes)
    assert reviewed(data)["training"][1] == {"image": "off.png", "label": 1, "area": 0.5, "excluded": True}
    assert counts == {"changed": 1, "left out": 1, "with strokes": 0}


def test_a_data_set_of_somebody_else_is_not_replaced(data: Path, findings: Findings) -> None:
    (data / "reviewed.json").write_text("{}")
    with pytest.raises(InputError, match="move it away"):
        write_reviewed(data / "dataset.json", {}, findings.sizes)
    assert reviewed_path(data / "other.json") == data / "other-reviewed.json"


# --- server


def correct(client: TestClient, image: int, **correction: object) -> dict:
    answer = client.post(f"/{TOKEN}/correct", json={"image": image, "correction": correction})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_corrections_are_taken_and_taken_back(client: TestClient, data: Path) -> None:
    shown = client.get(f"/{TOKEN}/state").json()
    assert [image["name"] for image in shown["images"]][:2] == ["sub/none.png", "off.png"]
    assert shown["images"][1]["stated"] == {"label": 1, "area": 0.2}
    assert shown["corrections"] == {}
    correct(client, 1, label=1, area=0.6)
    state = correct(client, 1, label=1, area=0.6, strokes=[STROKE])
    assert state["corrections"]["1"]["strokes"] == [STROKE]
    assert state["corrections"]["1"]["now"] is True
    assert reviewed(data)["training"][1]["area"] == 0.6
    assert client.post(f"/{TOKEN}/undo").json()["corrections"]["1"]["strokes"] == []
    assert "strokes" not in reviewed(data)["training"][1]
    undone = client.post(f"/{TOKEN}/undo").json()
    assert undone["undone"] == 1
    assert undone["corrections"] == {}
    assert reviewed(data)["training"][1]["area"] == 0.2
    assert client.post(f"/{TOKEN}/undo").json()["undone"] == -1


@pytest.mark.parametrize(
    "correction",
    [
        {},
        {"label": 2},
        {"label": True},
        {"label": 1, "area": 30},
        {"label": 0, "area": 0.3},
        {"label": 1, "area": "much"},
        {"label": 1, "excluded": "yes"},
        {"label": 1, "strokes": 3},
        {"label": 1, "strokes": [STROKE | {"label": 2}]},
        {"label": 1, "strokes": [STROKE | {"width": 0}]},
        {"label": 1, "strokes": [STROKE | {"points": []}]},
        {"label": 1, "strokes": [STROKE | {"points": [[1e9, 0]]}]},
        {"label": 1, "strokes": [STROKE | {"points": [[1]]}]},
    ],
)
def test_what_is_no_correction_is_refused(client: TestClient, data: Path, correction: dict) -> None:
    answer = client.post(f"/{TOKEN}/correct", json={"image": 0, "correction": correction})
    assert answer.status_code == 422
    assert "This is no correction" in answer.json()["detail"]
    assert not (data / "review.jsonl").exists()


def test_positive_strokes_on_a_negative_image_are_refused_with_the_remedy(client: TestClient) -> None:
    given = {"image": 0, "correction": {"label": 0, "strokes": [STROKE]}}
    answer = client.post(f"/{TOKEN}/correct", json=given)
    assert answer.status_code == 409
    assert "give an area" in answer.json()["detail"]


def test_images_and_pages_are_served_and_nothing_else(client: TestClient, data: Path) -> None:
    assert client.get(f"/{TOKEN}/image/0").json()["width"] == 6
    for path in ("", "static/review.js", "static/review.css", "static/openseadragon.min.js", "static/page.css"):
        assert client.get(f"/{TOKEN}/{path}").status_code == 200
    for path in ("image/99", "view/0", "view/-1", "static/../server.py", "static/page.html"):
        assert client.get(f"/{TOKEN}/{path}").status_code == 404
    assert client.get("/other/state").status_code == 403
    (data / "v1.png").write_bytes(b"not a picture")
    assert "can't be read" in client.get(f"/{TOKEN}/image/2").json()["detail"]


def test_a_later_round_has_the_corrections_and_all_to_review_again(data: Path, findings: Findings) -> None:
    journal = Corrections(data / "review.jsonl")
    journal.give("off.png", Correction(1, 0.5, strokes=(Stroke.of(STROKE),), made="2025-01-01T00:00:00+00:00"))
    app = make_review_app(entries_of(data, findings), data, MADE, Corrections(journal.path), str, TOKEN)
    shown = TestClient(app, base_url="http://127.0.0.1:8000").get(f"/{TOKEN}/state").json()
    assert shown["corrections"]["1"]["area"] == 0.5
    assert shown["corrections"]["1"]["now"] is False


WRITER = """
import sys
from scripts.review.corrections import Correction, Corrections, Stroke
journal = Corrections(sys.argv[1])
for k in range(100000):
    stroke = Stroke(1, 2.0, tuple((float(x), float(k)) for x in range(50)))
    journal.give(f"{sys.argv[2]}-{k}", Correction(1, 0.5, strokes=(stroke,)))
    print(k, flush=True)
"""


def test_two_reviewers_at_once_who_are_killed_lose_nothing(tmp_path: Path, quick_python: str) -> None:
    path = tmp_path / "review.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [quick_python, "-c", WRITER, str(path)]
    running = [
        subprocess.Popen([*command, name], env=environment, stdout=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    for process in running:
        process.stdout.readline()
    time.sleep(0.3)
    for process in running:
        process.send_signal(signal.SIGKILL)
    saved = {name: [0, *map(int, process.stdout.read().split())] for name, process in zip("ab", running, strict=True)}
    for process in running:
        process.wait()
    found = Corrections(path).answers
    for name, numbers in saved.items():
        assert {f"{name}-{k}" for k in numbers} <= set(found)
    assert all(len(correction.strokes[0].points) == 50 for correction in found.values())
    Corrections(path).give("after", Correction(0))  # a line that was cut off is no harm
    assert Corrections(path).answers == found | {"after": Correction(0)}
