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

"""The page of results, as an HTML parser and an image library read it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from scripts.evaluation.page import Column, ResultsPage, View, draw_view, is_page, shown_side

VOID = {"meta", "link", "input", "br", "img"}
COLUMNS = [Column("probability", "probability", "fraction"), Column("positive", "yes/no", "text")]


class Page(HTMLParser):
    """All elements with their attributes and text; it fails where one is closed that was not open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[int] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self.open:
            self.texts[place] += data

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        wanted = {name.rstrip("_"): value for name, value in wanted.items()}
        found = zip(self.elements, self.texts, strict=True)
        return [
            (attributes, text.strip())
            for (name, attributes), text in found
            if name == tag and all(value in (attributes.get(key) or "").split() for key, value in wanted.items())
        ]


def decoded(address: str) -> Image.Image:
    kind, text = address.split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert f"data:image/{image.format.lower()}" == kind
    return image


def left_half() -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of 40 x 80 pixels, and a map that is 0.9 in its left half, else 0.1."""
    probability = np.full((40, 80), 0.1, np.float32)
    probability[:, :40] = 0.9
    return np.full((40, 80, 3), 120, np.uint8), probability


def test_a_view_has_the_picture_the_map_and_where_it_reaches_the_threshold() -> None:
    view = draw_view(*left_half(), 0.5)
    picture = decoded(f"data:image/jpeg;base64,{view.picture}")
    assert (view.width, view.height) == picture.size == (80, 40)
    assert np.abs(np.asarray(picture, int) - 120).max() <= 3
    heat = decoded(f"data:image/png;base64,{view.heat}").convert("RGBA")
    black = Image.new("RGBA", heat.size, "black")
    seen = np.asarray(Image.alpha_composite(black, heat), int)[20, [10, 70], :3]
    # Matplotlib's inferno at 0.9 and 0.1, as published: #f6d746 and #160b39; 32 levels lie up to 0.016 from them
    assert np.abs(seen - [[0xF6, 0xD7, 0x46], [0x16, 0x0B, 0x39]]).max() <= 12
    numbers = [float(number) for number in re.findall(r"[\d.]+", view.outline)]
    x, y = numbers[::2], numbers[1::2]
    assert (min(x), max(x)) == (pytest.approx(0, abs=0.6), pytest.approx(40, abs=0.6))
    assert (min(y), max(y)) == (pytest.approx(0, abs=0.6), pytest.approx(40, abs=0.6))


def test_the_outline_includes_the_threshold_and_may_be_none() -> None:
    picture, _ = left_half()
    whole = np.full((40, 80), 0.5, np.float32)
    assert draw_view(picture, whole, 0.5).outline.startswith("M")
    assert draw_view(picture, whole, 0.51).outline == ""
    assert draw_view(picture, whole, None).outline == ""


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (700, 1100)])
def test_a_view_of_any_shape_is_small(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    view = draw_view(rng.integers(0, 256, (*shape, 3), np.uint8), rng.random(shape, np.float32), 0.5)
    assert max(view.width, view.height) <= 360
    assert len(view.picture) + len(view.heat) < 45_000  # of noise, than which nothing is larger


def test_large_images_are_shown_large_until_there_are_many() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1800, 3), np.uint8)
    for earlier, size, most in ((0, (1600, 1067), 800_000), (50, (720, 480), 170_000)):
        view = draw_view(noise, np.zeros((2, 3), np.float32), 0.5, side=shown_side(1800, earlier))
        assert decoded(f"data:image/jpeg;base64,{view.picture}").size == size
        assert len(view.picture) + len(view.heat) < most
    assert [shown_side(1800, earlier) for earlier in (49, 500)] == [1600, 720]
    assert shown_side(1024, 0) == 360


def test_names_are_escaped_and_nothing_leads_out(tmp_path: Path) -> None:
    names = [
        "<b>&.png",
        "</script><script>alert(1)</script>",
        "\"'=x",
        "javascript:alert(1)",
        "gr\u00fc\u00dfe",
        "\udcfc",
    ]
    page = ResultsPage(tmp_path / "index.html", COLUMNS, "<i>note</i>")
    for name in names:
        values = {"probability": "0.123456", "positive": "no"}
        page.add(name, values, [draw_view(*left_half(), 0.5)], files={"<mask>": f"{name}_mask.png"})
    page.write()
    read = Page(tmp_path / "index.html")
    shown = [*names[:-1], "\\udcfc"]
    cards = read.all("li", class_="card")
    assert [attributes["data-name"] for attributes, _ in cards] == shown
    assert [text for _, text in read.all("h2")][: len(names)] == shown
    assert len(read.all("script")) == 1
    assert read.all("b") == read.all("i") == read.all("mask") == []
    addresses = [
        value for _, attributes in read.elements for key, value in attributes.items() if key in ("href", "src")
    ]
    links = [attributes["href"] for attributes, _ in read.all("a")]
    assert [unquote(link, errors="surrogateescape") for link in links] == [f"{name}_mask.png" for name in names]
    assert not any(":" in link or "/" in link for link in links)
    assert all(a.startswith(("data:", "#")) for a in addresses if a not in links)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)
    assert is_page(tmp_path / "index.html")


def test_values_are_those_of_the_table_and_can_be_read(tmp_path: Path) -> None:
    columns = [*COLUMNS, Column("area", "area", "percent"), Column("ml", "ml", "number")]
    page = ResultsPage(tmp_path / "index.html", columns)
    page.add("a", {"probability": "0.876543", "positive": "yes", "area": "0.12345", "ml": "1234.5678"}, [])
    page.add("b", {"probability": "", "positive": "", "area": "0", "ml": ""}, [])
    page.write()
    data = Page(tmp_path / "index.html").all("data")
    assert [(attributes["value"], text) for attributes, text in data] == [
        ("0.876543", "0.877"),
        ("yes", "yes"),
        ("0.12345", "12.3 %"),
        ("1234.5678", "1235"),
        ("", "\u2013"),
        ("", "\u2013"),
        ("0", "0.0 %"),
        ("", "\u2013"),
    ]


def test_a_volume_has_its_slices_one_of_which_is_seen(tmp_path: Path) -> None:
    page = ResultsPage(tmp_path / "index.html", COLUMNS)
    views = [View(4, 3, "AA", "BB", "", f"slice {k}") for k in (1, 5, 9)]
    page.add("a", {"probability": "1", "positive": "yes"}, views, shown=1)
    page.write()
    read = Page(tmp_path / "index.html")
    assert ["hidden" in attributes for attributes, _ in read.all("svg", class_="view")] == [True, False, True]
    assert [text for _, text in read.all("output")] == ["slice 5"]
    ids = [attributes["id"] for attributes, _ in read.all("image", class_="heat")]
    assert [attributes["href"] for attributes, _ in read.all("use")] == [f"#{ids[1]}"]


def test_a_page_is_written_anew(tmp_path: Path) -> None:
    page = ResultsPage(tmp_path / "index.html", [])
    page.add("first", {}, [])
    page.write()
    page.add("second", {}, [])
    page.write()
    assert [attributes["data-name"] for attributes, _ in Page(tmp_path / "index.html").all("li")] == ["second"]
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert not is_page(tmp_path / "mine.html")
    assert not is_page(tmp_path / "none.html")


def shown(browser) -> list[str]:
    return [
        card.find_element("tag name", "h2").text
        for card in browser.find_elements("css selector", ".card:not([hidden])")
    ]


def test_in_a_browser_by_pointer_and_keys(browser, tmp_path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page = ResultsPage(tmp_path / "index.html", COLUMNS)
    for name, probability in (("a10", "0.25"), ("a9", "0.75"), ("b", ""), ("c", "0.5")):
        answer = {"": "", "0.25": "no"}.get(probability, "yes")
        page.add(name, {"probability": probability, "positive": answer}, [draw_view(*left_half(), 0.5)])
    page.write()
    browser.get((tmp_path / "index.html").as_uri())
    assert shown(browser) == ["a9", "a10", "b", "c"]  # numbers in names by their value
    small = browser.find_element("css selector", ".card .map").screenshot_as_png
    grey = Image.open(io.BytesIO(small)).convert("L")
    likely, unlikely = (grey.getpixel((round(part * grey.width), grey.height // 2)) for part in (0.25, 0.75))
    assert likely > 150  # as in the colour bar
    assert unlikely < 60
    name, probability = browser.find_elements("css selector", "#sort button")[:2]
    probability.click()
    assert shown(browser) == ["a9", "c", "a10", "b"]  # the largest first, what is not known last
    probability.click()
    assert shown(browser) == ["a10", "c", "a9", "b"]
    name.click()
    assert shown(browser) == ["a9", "a10", "b", "c"]
    browser.find_elements("css selector", "#which button")[1].click()
    assert shown(browser) == ["a9", "c"]
    browser.find_element("id", "name").send_keys("A")
    assert shown(browser) == ["a9"]
    assert browser.find_element("id", "count").text == "1 of 4 images"
    browser.find_element("id", "name").send_keys(Keys.BACKSPACE)
    slider = browser.find_element("css selector", "#tools .opacity")
    slider.send_keys(Keys.HOME)
    heat = browser.find_element("css selector", ".card .view .heat")
    assert heat.value_of_css_property("opacity") == "0"
    slider.send_keys(Keys.END)
    assert heat.value_of_css_property("opacity") == "1"

    browser.find_element("css selector", ".card .look").send_keys(Keys.ENTER)
    title = browser.find_element("id", "title")
    assert title.text == "a9"
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert title.text == "c"
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()  # there are no more
    assert title.text == "c"
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not title.is_displayed()
    focused = browser.switch_to.active_element
    assert focused.get_attribute("aria-label") == "Enlarge c"
    assert browser.get_log("browser") == []
