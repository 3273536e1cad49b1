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
"""The labelling page in a browser: keys to answers, killed and started again, to a data set that training takes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.data.datalist import load_datalist
from scripts.demo.dataset import make_demo_dataset
from scripts.labelling.images import find_images
from scripts.labelling.journal import Answer, Field, Journal, read_answers
from scripts.labelling.server import make_app
from scripts.labelling.subjects import Pictures, SlideFields

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
BUNDLE = Path(__file__).resolve().parents[3] / "bundle"


class Page:
    """A page in the browser."""

    def __init__(self, browser, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.wait(lambda: "answered" in self.text("count"))

    def text(self, name: str) -> str:
        return self.browser.find_element("id", name).text

    def wait(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 60).until(lambda _: condition())

    def wait_for_picture(self) -> None:
        self.wait(lambda: self.browser.find_element("id", "viewer").get_attribute("aria-busy") == "false")

    def key(self, key: str, on=None) -> None:
        self.wait_for_picture()
        (on or self.browser.switch_to.active_element).send_keys(key)

    def press(self, key: str, answered: int) -> None:
        self.key(key)
        self.wait(lambda: f"{answered} answered" in self.text("count"))


class Program:
    """The program, running, at an address."""

    def __init__(self, python: str, folder: Path, *options: str) -> None:
        command = [python, "-m", "scripts.labelling", "label", str(folder), "--no_browser", *options]
        heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        self.process = subprocess.Popen(command, cwd=BUNDLE, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
        lines = iter(self.process.stdout.readline, "")
        self.address = next(found[0] for found in (re.search(r"http://\S+", line) for line in lines) if found)

    def end(self, number: int = signal.SIGINT) -> str:
        """Send a signal; what the program says after it."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[0]
        assert self.process.returncode == 0
        return said


@pytest.fixture
def served(serving) -> Callable[..., AbstractContextManager[str]]:
    """The address of a page in this process."""

    @contextmanager
    def page_of(shown: Pictures | SlideFields, journal: Journal, **options) -> Iterator[str]:
        with serving(make_app(shown, journal, lambda: "Saved.", "secret", **options)) as address:
            yield f"{address}/secret/"

    return page_of


@pytest.fixture
def page(browser, served, tmp_path) -> Iterator[Page]:
    """The page of six pictures in ``data``."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        Image.effect_noise((48, 48), 60).save(folder / f"{number}.png")
    with served(Pictures(folder, find_images(folder)), Journal(folder / "labels.jsonl")) as address:
        yield Page(browser, address)


def pictures(folder: Path, count: int) -> Path:
    """A folder of phantoms that nothing is known of."""
    dataset = make_demo_dataset(folder, counts={"training": count}, size=(48, 48))
    dataset.unlink()
    for masks in folder.glob("*mask*"):
        shutil.rmtree(masks)
    return folder


def test_keys_become_a_data_set_although_the_program_is_killed(browser, quick_python, tmp_path):
    folder = pictures(tmp_path / "data", 8)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert len(names) == 8

    program = Program(quick_python, folder)
    page = Page(browser, program.address)
    for count, key in enumerate("30n9", start=1):
        page.press(key, count)
    page.press("u", 3)  # the 9 was a slip
    page.wait_for_picture()
    program.process.kill()
    program.process.communicate(timeout=60)  # until nobody answers
    page.key("1")
    page.wait(lambda: "Not saved" in page.text("message"))

    program = Program(quick_python, folder)
    page = Page(browser, program.address)
    assert names[3] in page.text("count")  # where it stopped
    for count, key in enumerate("nsa5n", start=4):
        page.press(key, count)
    assert page.text("left") == "All answered."
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "answer" not in entry["message"]
    ]
    assert not severe
    assert "Saved. dataset.json: " in program.end(signal.SIGTERM)

    given = [Answer(1, 0.3), Answer(1, 1.0), Answer(0), Answer(0), Answer(None), Answer(1), Answer(1, 0.5), Answer(0)]
    assert read_answers(folder / "labels.jsonl") == dict(zip(names, given, strict=True))
    datalist = load_datalist(folder)
    assert sum(map(len, datalist.values())) == 7  # all but the unsure one


def drag(browser, *places: tuple[int, int]) -> None:
    kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 2), "mouseReleased"]
    for kind, (x, y) in zip(kinds, places, strict=True):
        mouse = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", mouse)


def size(browser, width: int, height: int, touch: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
    browser.refresh()


ZOOM = "return viewer?.isOpen() && viewer.world.getItemAt(0).getFullyLoaded() ? viewer.viewport.getZoom(true) : 0"
# the point of the picture, in parts of its width, that is shown at a point of the page
BELOW = """const box = document.getElementById('viewer').getBoundingClientRect();
const found = viewer.viewport.pointFromPixel(new OpenSeadragon.Point(arguments[0] - box.x, arguments[1] - box.y), true);
return [found.x, found.y];"""


def wait_for_image(page: Page) -> float:
    """Until it is shown, and no longer moves: how large, in parts of the view's width."""
    page.wait(lambda: page.browser.execute_script(ZOOM))
    page.wait(lambda: page.browser.execute_script("return viewer.viewport.getZoom(true) === viewer.viewport.getZoom()"))
    return page.browser.execute_script(ZOOM)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_nothing_runs_out_of_the_page(page, browser, width, height):
    size(browser, width, height, touch=width < 800)
    wait_for_image(page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    corners = "const b = viewer.viewport.getBounds(true); return [-b.x, -b.y, b.x + b.width, b.y + b.height]"
    assert min(browser.execute_script(corners)[:2]) > -0.01  # all of the square is shown, but for a fraction of a pixel
    assert min(browser.execute_script(corners)[2:]) > 0.99
    buttons = [button for button in browser.find_elements("tag name", "button") if button.is_displayed()]
    assert len(buttons) >= 23
    for button in buttons:
        assert button.size["height"] >= 40  # a finger's
        assert button.location["y"] + button.size["height"] <= height
        assert button.accessible_name


def test_close_covers_no_heading_on_a_phone(page, browser):
    size(browser, 390, 844, touch=True)
    page.key("r")
    shut = browser.find_element("id", "shut")
    heads = browser.find_elements("css selector", "#areas-shown figcaption")
    assert [head.text for head in heads] == ["10 %", "30 %", "50 %", "70 %"]
    assert shut.is_displayed()
    assert min(head.location["y"] for head in heads) >= shut.location["y"] + shut.size["height"]


def test_a_picture_is_enlarged_at_the_pointer_by_wheel_pinch_and_keys(page, browser):
    size(browser, 1280, 800)
    whole = wait_for_image(page)
    before = browser.execute_script(BELOW, 500, 300)
    wheel = {"type": "mouseWheel", "x": 500, "y": 300, "deltaX": 0, "deltaY": -300}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
    page.wait(lambda: browser.execute_script(ZOOM) > 1.2 * whole)
    larger = wait_for_image(page)
    assert browser.execute_script(BELOW, 500, 300) == pytest.approx(before, abs=0.01)

    drag(browser, (500, 300), (540, 320), (560, 330), (560, 330))
    page.wait(lambda: browser.execute_script(BELOW, 500, 300)[0] < before[0] - 0.01)

    page.key("+")
    page.wait(lambda: browser.execute_script(ZOOM) > 1.2 * larger)
    page.key("z")
    page.wait(lambda: browser.execute_script(ZOOM) == pytest.approx(whole, rel=0.01))
    assert "0 answered" in page.text("count")

    size(browser, 390, 844, touch=True)
    whole = wait_for_image(page)
    pinch = {"x": 195, "y": 350, "scaleFactor": 2, "relativeSpeed": 2000, "gestureSourceType": "touch"}
    browser.execute_cdp_cmd("Input.synthesizePinchGesture", pinch)
    page.wait(lambda: browser.execute_script(ZOOM) > 1.3 * whole)


def test_a_picture_seen_as_a_whole_stays_whole_in_a_view_of_another_size(page, browser):
    shown = """const [image, view] = [viewer.world.getHomeBounds(), viewer.viewport.getBounds()];
        return view.y <= image.y + 1e-6 && view.y + view.height >= image.y + image.height - 1e-6;"""

    def view(height: int) -> None:  # of the page that is open
        metrics = {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    size(browser, 1280, 800)
    wait_for_image(page)
    assert browser.execute_script(shown)
    for resize in (lambda: page.key("r"), lambda: page.key("r"), lambda: view(560)):
        before = browser.execute_script("return viewer.viewport.getContainerSize().toString()")
        resize()
        page.wait(
            lambda before=before: (
                browser.execute_script("return viewer.viewport.getContainerSize().toString()") != before
            )
        )
        page.wait(lambda: browser.execute_script(shown))
    page.key("+")
    page.wait(lambda: not browser.execute_script(shown))
    enlarged = browser.execute_script("return viewer.viewport.getContainerSize().toString()")
    view(600)
    page.wait(lambda: browser.execute_script("return viewer.viewport.getContainerSize().toString()") != enlarged)
    time.sleep(0.5)  # by then it would be whole
    assert not browser.execute_script(shown)  # what was enlarged stays so


def test_space_and_enter_repeat_no_answer_and_the_question_mark_is_none(page, browser, tmp_path):
    browser.find_element("css selector", "#areas button").click()
    page.wait(lambda: "1 answered" in page.text("count"))
    for key in (" ", Keys.ENTER, "?"):
        page.key(key)
    assert browser.find_element("id", "keys").is_displayed()
    page.key("5")  # is read, not meant
    page.key(Keys.ESCAPE)
    browser.execute_script("document.getElementById('none').focus()")
    page.key(Keys.ENTER)  # with the focus on a button it is one answer
    page.wait(lambda: "2 answered" in page.text("count"))
    page.key(Keys.ENTER)
    page.press("s", 3)
    assert [answer.label for answer in read_answers(tmp_path / "data" / "labels.jsonl").values()] == [1, 0, None]


def test_no_picture_is_labelled_before_it_is_shown(page, browser, tmp_path):
    page.wait_for_picture()
    slow = {"offline": False, "latency": 3000, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    try:
        page.key(Keys.ARROW_RIGHT)
        page.wait(lambda: "2 of 6" in page.text("count"))
        shown = "return viewer.isOpen() ? viewer.world.getItemAt(0).source.getTileUrl(0, 0, 0) : 'image/1/'"
        assert browser.execute_script(shown).startswith("image/1/")  # not that before it
        browser.switch_to.active_element.send_keys("3")
        page.wait(lambda: "Wait until the picture is shown" in page.text("message"))
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", slow | {"latency": 0})
    page.press("4", 1)
    assert read_answers(tmp_path / "data" / "labels.jsonl") == {"1.png": Answer(1, 0.4)}


def test_comments_and_the_overview(page, browser, tmp_path):
    folder = tmp_path / "data"
    for count, key in enumerate("3nns", start=1):
        page.press(key, count)
    page.key("c")
    browser.switch_to.active_element.send_keys("crushed n3")
    page.key("6", on=browser.switch_to.active_element)  # belongs to the comment
    page.key(Keys.ESCAPE, on=browser.switch_to.active_element)
    page.wait(lambda: "Comment saved" in page.text("message"))
    assert list(Journal(folder / "labels.jsonl").comments.values()) == ["crushed n36"]

    page.key("g")
    shown = {button.text: button for button in browser.find_elements("css selector", "#which button")}
    assert list(shown) == ["All 6", "Open 2", "With area 1", "Area unknown 0", "None 2", "Unsure 1", "Comment 1"]
    shown["None 2"].click()
    cards = browser.find_elements("css selector", ".card")
    assert [card.text.splitlines()[-1] for card in cards] == ["None", "None"]
    seen = "return [...document.querySelectorAll('.card img')].every(image => image.naturalWidth > 0)"
    page.wait(lambda: browser.execute_script(seen))
    browser.find_element("id", "through").click()
    assert "2 of 6" in page.text("count")
    page.key(Keys.ARROW_RIGHT)
    page.wait(lambda: "3 of 6" in page.text("count"))
    page.key("4")
    page.wait(lambda: "40 %" in page.text("given"))  # it is the last of the two
    given = list(read_answers(folder / "labels.jsonl").values())
    assert given == [Answer(1, 0.3), Answer(0), Answer(1, 0.4), Answer(None)]


def test_the_overview_shows_where_long_names_differ(browser, served, tmp_path):
    names = [f"patient_{'x' * 60}_{number}.png" for number in (1, 2)]
    for name in names:
        Image.effect_noise((48, 48), 60).save(tmp_path / name)
    with served(Pictures(tmp_path, names), Journal(tmp_path / "labels.jsonl")) as address:
        Page(browser, address).key("g")
        cards = browser.find_elements("css selector", ".card")
        assert [card.get_attribute("title") for card in cards] == names
        inside = """const [card] = arguments, name = card.querySelector(".name"), end = name.lastChild;
            return [end.textContent, end.scrollWidth <= end.clientWidth,
                end.getBoundingClientRect().right <= card.getBoundingClientRect().right, name.textContent];"""
        for card, name in zip(cards, names, strict=True):
            assert browser.execute_script(inside, card) == [name[-9:], True, True, name]


def test_positive_images_are_asked_for_their_area(browser, served, tmp_path):
    images = ["a.png", "b.png", "c.png"]
    for name in images:
        Image.new("L", (48, 48)).save(tmp_path / name)
    given = {"a.png": Answer(0), "b.png": Answer(1), "c.png": Answer(1, 0.4)}
    titles = {"title": "Is it there?", "area_title": "How much of it?", "following": lambda: "cdws train DATA"}
    with served(Pictures(tmp_path, images), Journal(tmp_path / "labels.jsonl"), given=given, **titles) as address:
        page = Page(browser, address)
        assert "b.png" in page.text("count")  # the only one of which something is missing
        assert (page.text("title"), page.text("finished")) == ("How much of it?", "")
        assert "2 answered" in page.text("count")
        assert page.text("given") == "Positive: how much?"
        page.press("3", 3)
        assert page.text("left") == "All answered."
        # what was answered stays, and that it is all is said
        assert "b.png" in page.text("count")
        finished = "All 3 answered. Finished: you can close this page. Next: cdws train DATA"
        assert page.text("finished") == finished
        page.key("5")  # a stray one
        page.wait(lambda: "Not changed" in page.text("message"))
        assert page.text("finished") == finished
        page = Page(browser, address)  # opened anew it stands on the first one
        page.key("n")
        page.wait(lambda: "Not changed" in page.text("message"))
        assert page.text("finished") == finished
        assert read_answers(tmp_path / "labels.jsonl") == {"b.png": Answer(1, 0.3)}
        page.key(Keys.ARROW_RIGHT)
        page.wait(lambda: "b.png" in page.text("count"))
        page.key("5")  # of an image that was gone to
        page.wait(lambda: page.text("finished") == finished)
        assert page.text("given") == "50 %"
        browser.find_element("css selector", "#areas [data-area='0.4']").click()
        page.wait(lambda: page.text("given") == "40 %")
        assert page.text("finished") == finished
        for given in ("50 %", "30 %", "Positive: how much?"):
            page.key("u")
            page.wait(lambda given=given: page.text("given") == given)
        assert page.text("finished") == ""
        page.key(Keys.ARROW_LEFT)
        page.wait(lambda: page.text("title") == "Is it there?")


def test_dark_and_light_are_chosen_and_kept(page, browser):
    ground = "return getComputedStyle(document.body).backgroundColor"
    first = browser.execute_script(ground)
    browser.find_element("id", "theme").click()
    second = browser.execute_script(ground)
    assert second != first
    browser.refresh()
    page.wait(lambda: "answered" in page.text("count"))
    assert browser.execute_script(ground) == second


def test_fields_of_a_slide_are_labelled_drawn_and_moved(browser, served, tmp_path, write_slide):
    picture = np.full((600, 900, 3), (150, 60, 160), np.uint8)
    write_slide(tmp_path / "a.svs", picture, 0.5, (1, 4))
    journal = Journal(tmp_path / "labels.jsonl")
    with served(SlideFields(tmp_path, ["a.svs"], journal, number=2, size=64), journal) as address:
        page = Page(browser, address)
        wait_for_image(page)
        assert len(browser.find_elements("css selector", ".field")) == 2
        page.press("3", 1)
        page.key("z")  # the whole slide, of two thirds as high as wide
        wait_for_image(page)

        page.key("d")
        corners = [(400, 250), (440, 280), (480, 330), (480, 330)]
        expected = [browser.execute_script(BELOW, *corner) for corner in corners[::3]]  # in parts of the width
        drag(browser, *corners)
        page.wait(lambda: "of 3" in page.text("count"))
        drawn = [field for field in journal.placed if field.region[2:] != (128, 128)]
        left, top, width, height = drawn[0].region
        found = [left, top, left + width, top + height]
        assert found == pytest.approx([900 * value for corner in expected for value in corner], abs=3)
        page.press("n", 2)

        page.key(Keys.ARROW_LEFT)
        page.key("m")
        page.key(Keys.ARROW_RIGHT)
        page.key(Keys.ENTER)
        page.wait(lambda: sum(journal.placed.values()) == 2)
        moved = next(field for field, there in journal.placed.items() if there and field not in drawn)
        came_from = next(field for field, there in journal.placed.items() if not there)
        assert moved == Field("a.svs", (came_from.region[0] + 16, *came_from.region[1:]), 1.0)
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe
