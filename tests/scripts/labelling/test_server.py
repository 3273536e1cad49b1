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
"""The labelling page's server, asked as a browser asks it, and as no browser should."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scripts.labelling.dataset import write_dataset
from scripts.labelling.journal import Answer, Journal, read_answers
from scripts.labelling.server import make_app
from scripts.labelling.subjects import Pictures

TOKEN = "secret"
IMAGES = ["a.png", "wide.tif", "broken.png"]


@pytest.fixture
def folder(tmp_path):
    red = np.zeros((20, 30, 3), np.uint8)
    red[:10, 15:] = (255, 0, 0)
    Image.fromarray(red).save(tmp_path / "a.png")
    Image.fromarray(np.full((30, 3000), 65535, np.uint16)).save(tmp_path / "wide.tif")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "secret.txt").write_text("not for you")
    return tmp_path


@pytest.fixture
def client(folder):
    app = make_app(
        Pictures(folder, IMAGES), Journal(folder / "labels.jsonl"), lambda: "saved", TOKEN, title="How much?"
    )
    return TestClient(app, base_url="http://127.0.0.1:8000")


def whole(client, position: int) -> np.ndarray:
    """A picture put together from its tiles at full resolution."""
    layout = client.get(f"/{TOKEN}/image/{position}").json()
    width, height, size, overlap = (layout[key] for key in ("width", "height", "tileSize", "tileOverlap"))
    level = math.ceil(math.log2(max(width, height)))
    shown = np.zeros((height, width, 3), np.uint8)
    for row in range(math.ceil(height / size)):
        for column in range(math.ceil(width / size)):
            answer = client.get(f"/{TOKEN}/image/{position}/{level}/{column}/{row}")
            tile = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
            top, left = max(0, row * size - overlap), max(0, column * size - overlap)
            shown[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return shown


def test_pictures_are_shown_as_they_are(client):
    shown = whole(client, 0)
    assert shown.shape == (20, 30, 3)
    assert tuple(shown[5, 20]) == (255, 0, 0)
    assert tuple(shown[15, 5]) == (0, 0, 0)
    wide = whole(client, 1)
    assert wide.shape == (30, 3000, 3)
    assert wide.min() == 255


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "I;16"])
def test_a_large_picture_comes_in_tiles_at_every_level(client, folder, mode):
    """A quarter of it is dark, and is so at each resolution."""
    values = np.full((1300, 1700), 230, np.uint8)
    values[:650, :850] = 40
    picture = (
        Image.fromarray(values).convert("RGB").convert(mode)
        if mode != "I;16"
        else Image.fromarray(values * np.uint16(257))
    )
    picture.save(folder / "wide.tif", format="TIFF" if mode == "CMYK" else "PNG")
    shown = whole(client, 1)
    assert np.abs(shown.mean(axis=2) - values).max() < 30  # JPEG, at the edges
    assert np.abs(shown.mean(axis=2) - values).mean() < 1
    for level, side in ((10, (650, 850)), (9, (325, 425))):
        answer = client.get(f"/{TOKEN}/image/1/{level}/0/0")
        tile = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L")).astype(int)
        assert tile.shape == (min(side[0], 511), min(side[1], 511))
        assert abs(tile[side[0] // 4, side[1] // 4] - 40) < 5
        assert abs(tile[side[0] // 4, side[1] // 2 + 8] - 230) < 5
    for path in ("12/0/0", "11/4/0", "11/0/3", "10/-1/0", "99/0/0"):
        assert client.get(f"/{TOKEN}/image/1/{path}").status_code in (404, 422)


def test_a_turned_picture_is_shown_upright(client, folder):
    picture = Image.new("RGB", (1600, 1200), "white")
    picture.paste("black", (0, 0, 400, 400))  # at the top left as stored, at the top right as shown
    exif = Image.Exif()
    exif[274] = 6
    picture.save(folder / "wide.tif", format="JPEG", exif=exif)
    shown = whole(client, 1)
    assert shown.shape == (1600, 1200, 3)
    assert shown[50, 1150].max() < 20
    assert shown[50, 50].min() > 235


def test_thumbnails_are_small(client):
    for position, shape in ((0, (30, 20)), (1, (256, 3))):
        answer = client.get(f"/{TOKEN}/thumbnail/{position}")
        assert Image.open(io.BytesIO(answer.content)).size == shape
    assert client.get(f"/{TOKEN}/thumbnail/2").status_code == 422


def test_a_damaged_picture_is_named_without_what_takes_seconds_to_begin(client, folder, monkeypatch):
    whole = (folder / "a.png").read_bytes()
    cut = whole[: len(whole) * 3 // 4]
    monkeypatch.setitem(sys.modules, "scripts.images.loading", None)  # which imports MONAI
    for content in (b"not a picture", cut):
        (folder / "broken.png").write_bytes(content)
        answer = client.get(f"/{TOKEN}/image/2")
        assert answer.status_code == 422
        assert "can't be read: not a picture" in answer.json()["detail"]
    tiff, pages = (folder / "wide.tif").read_bytes(), io.BytesIO()
    Image.new("L", (9, 9)).save(pages, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))])
    damaged = {b"not a picture": "not a picture: none of PNG", tiff[:8] + b"?" * 99: "suspicious number of tags 16191"}
    for content, reason in (damaged | {tiff[:-9]: "is cut short", pages.getvalue(): "has 2 pages"}).items():
        (folder / "wide.tif").write_bytes(content)
        for kind in ("image", "thumbnail"):
            answer = client.get(f"/{TOKEN}/{kind}/1")
            assert answer.status_code == 422
            assert f"can't be read: {reason}" in answer.json()["detail"]
    assert client.get(f"/{TOKEN}/image/3").status_code == 404


def test_a_picture_that_is_too_large_is_named_and_others_are_shown(client, folder):
    Image.new("1", (14_000, 14_000)).save(folder / "wide.tif", format="PNG")  # 196 million pixels in 25 KB
    (folder / "broken.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    for position, reason in ((1, "196000000 pixels"), (2, "not a picture")):
        answer = client.get(f"/{TOKEN}/image/{position}")
        assert answer.status_code == 422
        assert reason in answer.json()["detail"]
    assert client.get(f"/{TOKEN}/image/0").status_code == 200


def resident(field: str) -> int:
    """KiB of memory of this process: VmRSS now, or VmHWM at most since it was last asked to forget."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if field in line).split()[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' account of memory")
def test_the_memory_that_a_picture_takes_is_bounded(client, folder):
    """In colours as floating-point numbers this one would take 430 MB, and about twice that while it is made."""
    Image.new("L", (6_000, 6_000), 200).save(folder / "a.png", compress_level=1)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    assert client.get(f"/{TOKEN}/image/0/13/0/0").status_code == 200
    assert resident("VmHWM") - before < 300_000


def test_answers_are_kept_and_taken_back(client, folder):
    state = client.post(f"/{TOKEN}/answer", json={"image": 0, "label": 1, "area": 0.3}).json()
    assert state["answers"] == {"0": {"label": 1, "area": 0.3}}
    client.post(f"/{TOKEN}/answer", json={"image": 1, "label": 0})
    assert read_answers(folder / "labels.jsonl") == {"a.png": Answer(1, 0.3), "wide.tif": Answer(0)}
    state = client.post(f"/{TOKEN}/undo", json={}).json()
    assert state["undone"] == 1
    assert client.get(f"/{TOKEN}/state").json()["answers"] == {"0": {"label": 1, "area": 0.3}}


@pytest.mark.parametrize(
    "given",
    [
        {"image": 0, "label": 2},
        {"image": 0, "label": 1, "area": 30},
        {"image": 0, "label": 1, "area": 0},
        {"image": 0, "label": 0, "area": 0.5},
        {"image": -1, "label": 0},
        {"image": 9, "label": 0},
        {},
    ],
)
def test_what_is_no_answer_is_refused(client, folder, given):
    assert client.post(f"/{TOKEN}/answer", json=given).status_code in (404, 422)
    assert not (folder / "labels.jsonl").exists()


@pytest.mark.parametrize("area", ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "[" * 2000 + "]" * 2000])
def test_an_area_that_is_no_number_gets_a_sentence(client, folder, area):
    body = f'{{"image": 0, "label": 1, "area": {area}}}'
    answer = client.post(f"/{TOKEN}/answer", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "This is no answer" in answer.json()["detail"] or "error parsing the body" in answer.json()["detail"]
    assert not (folder / "labels.jsonl").exists()


def test_an_answer_has_few_bytes(client, folder):
    large = b'{"image": 0, "label": 0' + b" " * 5000 + b"}"
    for content in (large, iter([large])):  # with its size in the head, and in chunks without
        answer = client.post(f"/{TOKEN}/answer", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
    assert not (folder / "labels.jsonl").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond a size, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 10, 60])
def test_on_a_full_disk_no_answer_is_called_saved_that_is_not(client, folder, room):
    client.post(f"/{TOKEN}/answer", json={"image": 0, "label": 0})
    before = (folder / "labels.jsonl").read_bytes()
    for path, given in (("answer", {"image": 1, "label": 1, "area": 0.5}), ("undo", {})):
        with largest_file(len(before) + room):
            answer = client.post(f"/{TOKEN}/{path}", json=given)
        assert answer.status_code == 507
        assert "labels.jsonl can't be written" in answer.json()["detail"]
        assert (folder / "labels.jsonl").read_bytes() == before
    assert client.get(f"/{TOKEN}/state").json()["answers"] == {"0": {"label": 0, "area": None}}
    client.post(f"/{TOKEN}/answer", json={"image": 1, "label": 1, "area": 0.5})
    assert read_answers(folder / "labels.jsonl") == {"a.png": Answer(0), "wide.tif": Answer(1, 0.5)}


def test_on_a_full_disk_no_answer_is_called_unsaved_that_is_saved(folder):
    groups = {"a.png": "a" * 2000, "wide.tif": "b" * 2000}  # so that the data set is larger than the journal
    journal, dataset = Journal(folder / "labels.jsonl"), folder / "dataset.json"

    def save() -> str:
        return f"{write_dataset(dataset, journal.answers, groups)}"

    client = TestClient(make_app(Pictures(folder, IMAGES), journal, save, TOKEN), base_url="http://127.0.0.1:8000")
    client.post(f"/{TOKEN}/answer", json={"image": 0, "label": 0})
    with largest_file(1000):
        answer = client.post(f"/{TOKEN}/answer", json={"image": 1, "label": 1})
    assert answer.status_code == 200
    assert answer.json()["message"].startswith("Saved in labels.jsonl, and nowhere else (")
    assert answer.json()["answers"]["1"] == {"label": 1, "area": None}
    assert read_answers(folder / "labels.jsonl") == {"a.png": Answer(0), "wide.tif": Answer(1)}
    assert not list(folder.glob(".*.part"))
    assert not dataset.exists()


def test_names_that_are_no_text_are_shown_nevertheless(tmp_path):
    images = [os.fsdecode(b"M\xfcller.png"), '<b>?%#".png', "a\nb.png"]
    for number, name in enumerate(images):
        with (tmp_path / name).open("wb") as file:
            Image.new("RGB", (8, 8), (number, 0, 0)).save(file, format="PNG")
    title = os.fsdecode(b"Wie gro\xdf?")
    app = make_app(Pictures(tmp_path, images), Journal(tmp_path / "labels.jsonl"), lambda: images[0], TOKEN, title)
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    state = client.get(f"/{TOKEN}/state").json()
    assert state["images"] == [r"M\udcfcller.png", *images[1:]]
    for number, name in enumerate(images):
        assert tuple(whole(client, number)[0, 0]) == (number, 0, 0)
        answer = client.post(f"/{TOKEN}/answer", json={"image": number, "label": 1, "area": (number + 1) / 10})
        assert answer.status_code == 200
        assert read_answers(tmp_path / "labels.jsonl")[name] == Answer(1, (number + 1) / 10)
    (tmp_path / images[0]).write_bytes(b"damaged")
    assert client.post(f"/{TOKEN}/undo", json={}).json()["undone"] == 2


def test_answers_and_undos_of_several_tabs_at_once(serving, tmp_path):
    """Whatever order they come in, journal and data set agree, and nothing is taken back twice."""
    images = [f"{k}.png" for k in range(12)]
    journal, dataset = Journal(tmp_path / "labels.jsonl"), tmp_path / "dataset.json"
    app = make_app(Pictures(tmp_path, images), journal, lambda: str(write_dataset(dataset, journal.answers, {})), TOKEN)
    start = threading.Barrier(6)

    def ask(address: str, path: str, given: dict) -> int:
        connection = HTTPConnection(address.split("/")[2], timeout=60)
        with closing(connection):
            connection.connect()
            start.wait()
            headers = {"content-type": "application/json"}
            connection.request("POST", f"/{TOKEN}/{path}", json.dumps(given), headers)
            return connection.getresponse().status

    for k in range(6):
        journal.give(images[k], Answer(k % 2))
    with serving(app) as address, ThreadPoolExecutor(6) as tabs:
        for number in range(60):
            for k in range(3):  # for the undos, should they all come first
                journal.give(images[6 + (number + k) % 6], Answer(None))
            asked = [("answer", {"image": 6 + (number + k) % 6, "label": k % 2}) for k in range(3, 6)]
            assert set(tabs.map(partial(ask, address), *zip(*asked, *[("undo", {})] * 3, strict=True))) == {200}
            answers = read_answers(journal.path)
            splits = json.loads(dataset.read_text())
            items = splits["training"] + splits["validation"]
            expected = {name: answer for name, answer in answers.items() if answer.label is not None}
            assert {item["image"]: Answer(item["label"]) for item in items} == expected
    assert sum("undo" in line for line in journal.path.read_text().splitlines()) == 180


@pytest.mark.parametrize(
    "request_line",
    [b"OPTIONS * HTTP/1.1", b"GET //etc/passwd HTTP/1.1", b"GET http://evil.example/ HTTP/1.1", b"GET ? HTTP/1.1"],
)
def test_odd_requests_are_refused(client, serving, request_line):
    with serving(client.app) as address:
        host, port = address.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(request_line + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert connection.recv(1000).split()[1] in (b"400", b"403", b"404")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"/{TOKEN}/state", {"host": ""}),
        (f"/{TOKEN}/state", {"host": "127.0.0.1.evil.example"}),
        (f"/{TOKEN}/state", {"host": "evil.example", "x-forwarded-host": "127.0.0.1:8000"}),
        (f"/{TOKEN}/state", {"origin": "http://127.0.0.1.evil.example:8000"}),
        (f"/{TOKEN}/state", {"origin": "https://127.0.0.1:8000"}),
        ("/x/state", {"host": f"127.0.0.1:8000/{TOKEN}/state?"}),
        ("/", {}),
        ("/wrong/state", {}),
        ("/secret.txt", {}),
        (f"/{TOKEN}x/state", {}),
        (f"/{TOKEN}/state", {"host": "evil.example"}),
        (f"/{TOKEN}/state", {"host": "evil.example:8000"}),
        (f"/{TOKEN}/state", {"origin": "http://evil.example"}),
        (f"/{TOKEN}/state", {"origin": "http://localhost:9999"}),
        (f"/{TOKEN}/state", {"origin": "null"}),
    ],
)
def test_other_pages_get_nothing(client, path, headers):
    answer = client.get(path, headers=headers)
    assert answer.status_code == 403
    assert "a.png" not in answer.text


@pytest.mark.parametrize(
    "path", ["/image/../secret.txt", "/secret.txt", "/image/%2e%2e%2fsecret.txt", "/static/page.html"]
)
def test_nothing_but_the_images_is_served(client, path):
    answer = client.get(f"/{TOKEN}{path}")
    assert answer.status_code in (403, 404, 422)
    assert "not for you" not in answer.text


def test_a_link_that_is_put_in_later_leads_nowhere(client, folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.png"
    Image.new("RGB", (8, 8)).save(outside)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(outside)
    answer = client.get(f"/{TOKEN}/image/0")
    assert answer.status_code == 422
    assert "outside the folder" in answer.json()["detail"]


def test_comments_are_kept_apart_from_answers(client, folder):
    client.post(f"/{TOKEN}/answer", json={"image": 0, "label": 1, "area": 0.3})
    state = client.post(f"/{TOKEN}/comment", json={"image": 0, "text": " crushed \n"}).json()
    assert state["comments"] == {"0": "crushed"}
    client.post(f"/{TOKEN}/comment", json={"image": 1, "text": "folded"})
    client.post(f"/{TOKEN}/comment", json={"image": 1, "text": ""})
    state = client.post(f"/{TOKEN}/undo", json={}).json()  # of the answer: the comment stays
    assert (state["answers"], state["comments"], state["undone"]) == ({}, {"0": "crushed"}, 0)
    again = Journal(folder / "labels.jsonl")
    assert (again.answers, again.comments) == ({}, {"a.png": "crushed"})
    for given in ({"image": 9, "text": "a"}, {"image": 0, "text": "a" * 601}, {"image": 0}):
        assert client.post(f"/{TOKEN}/comment", json=given).status_code in (404, 422)


def test_names_are_hidden_on_request(folder):
    app = make_app(Pictures(folder, IMAGES), Journal(folder / "labels.jsonl"), lambda: "saved", TOKEN, hide_names=True)
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    assert client.get(f"/{TOKEN}/state").json()["images"] == ["Image 1", "Image 2", "Image 3"]
    texts = [client.get(f"/{TOKEN}/{path}").text for path in ("", "state", "image/0", "image/2", "thumbnail/2")]
    texts.append(client.post(f"/{TOKEN}/answer", json={"image": 0, "label": 0}).text)
    assert not any(name in text for name in IMAGES for text in texts)


def test_other_computers_need_the_token_alone(folder):
    app = make_app(Pictures(folder, IMAGES), Journal(folder / "labels.jsonl"), lambda: "saved", TOKEN, is_local=False)
    client = TestClient(app, base_url="http://pathology.example:8000")
    assert client.get(f"/{TOKEN}/state").status_code == 200
    given = {"image": 0, "label": 0}
    for origin, status in (("http://evil.example", 403), ("null", 403), ("http://pathology.example:8000", 200)):
        assert client.post(f"/{TOKEN}/answer", json=given, headers={"origin": origin}).status_code == status
    for path in ("/", "/state", "/wrong/state", f"/{TOKEN}x/state"):
        assert client.get(path).status_code == 403


def test_a_post_of_another_origin_changes_nothing(client, folder):
    given = {"image": 0, "label": 0}
    assert client.post(f"/{TOKEN}/answer", json=given, headers={"origin": "http://evil.example"}).status_code == 403
    assert not (folder / "labels.jsonl").exists()
    assert client.post(f"/{TOKEN}/answer", json=given, headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
