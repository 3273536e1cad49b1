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

"""The page of a review in a browser: strokes drawn over the viewer, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.review.corrections import Corrections, paint
from scripts.review.doubt import Finding, doubt_of
from scripts.review.server import Entry, make_review_app

ActionChains = pytest.importorskip("selenium.webdriver").ActionChains
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
SIZE = 64


@pytest.fixture
def address(serving, tmp_path: Path) -> Iterator[str]:
    """Of the page of two pictures."""
    entries = []
    for name, area in (("a.png", 0.9), ("b.png", 0.3)):
        Image.effect_noise((SIZE, SIZE), 60).save(tmp_path / name)
        finding = Finding(1.0, area, 0.0)
        entries.append(
            Entry(name, tmp_path / name, "training", 1, 0.3, finding, doubt_of(finding, 1, 0.3), (SIZE, SIZE))
        )
    (tmp_path / "views").mkdir()
    app = make_review_app(entries, tmp_path, "now", Corrections(tmp_path / "review.jsonl"), lambda: "Saved.", "secret")
    with serving(app) as served:
        yield f"{served}/secret/"


def test_a_stroke_is_where_it_was_drawn_and_the_next_image_follows_an_answer(browser, address, tmp_path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(condition) -> None:
        WebDriverWait(browser, 90).until(lambda _: condition())

    def text(name: str) -> str:
        return browser.find_element("id", name).text

    browser.get(address)

    def is_shown() -> bool:
        return browser.find_element("id", "viewer").get_attribute("aria-busy") == "false"

    wait(lambda: "1 of 2" in text("count") and is_shown())
    assert text("count").startswith("a.png")
    # where the middle row's second and last quarter lie on the screen, by the viewer
    at = "const p = viewer.world.getItemAt(0).imageToWindowCoordinates(new OpenSeadragon.Point(...arguments)); "
    points = [browser.execute_script(f"{at}return [p.x, p.y]", x, SIZE / 2) for x in (SIZE / 4, 3 * SIZE / 4)]
    (x0, y0), (x1, y1) = ((round(x), round(y)) for x, y in points)
    ActionChains(browser).send_keys("p").perform()
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(x0, y0).pointer_down()
    actions.w3c_actions.pointer_action.move_to_location((x0 + x1) // 2, y0).move_to_location(x1, y1).pointer_up()
    actions.perform()
    wait(lambda: "1 strokes" in text("given"))
    journal = tmp_path / "review.jsonl"
    [stroke] = Corrections(journal).answers["a.png"].strokes
    painted = paint((stroke,), (SIZE, SIZE))
    rows, columns = np.nonzero(painted == 2)
    assert abs(rows - SIZE / 2).max() <= 2
    assert abs(columns.min() - SIZE / 4) <= 2
    assert abs(columns.max() - 3 * SIZE / 4) <= 2
    ActionChains(browser).send_keys("7").perform()
    wait(lambda: text("count").startswith("b.png"))
    assert Corrections(journal).answers["a.png"].area == 0.7
    ActionChains(browser).send_keys("u").send_keys("u").perform()
    wait(lambda: "0 reviewed" in text("count"))
    assert Corrections(journal).answers == {}
    wait(is_shown)
    slow = {"offline": False, "latency": 3000, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    try:
        ActionChains(browser).send_keys(Keys.ARROW_RIGHT).send_keys("7").perform()
        wait(lambda: "Wait until the picture is shown" in text("message"))
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", slow | {"latency": 0})
    wait(is_shown)
    assert Corrections(journal).answers == {}
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "view/" not in entry["message"]
    ]
    assert severe == []
