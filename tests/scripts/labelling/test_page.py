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

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from scripts.data.datalist import load_datalist
from scripts.demo.dataset import make_demo_dataset
from scripts.labelling.journal import Answer, read_answers

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"


class Page:
    """The program, running, and its page in the browser."""

    def __init__(self, browser, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "scripts.labelling", "label", str(folder), "--no_browser", *options]
        heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        self.process = subprocess.Popen(command, cwd=BUNDLE, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
        lines = iter(self.process.stdout.readline, "")
        address = next(found[0] for found in (re.search(r"http://\S+", line) for line in lines) if found)
        self.browser = browser
        browser.get(address)
        self.wait(lambda: "answered" in self.text("count"))

    def text(self, name: str) -> str:
        return self.browser.find_element("id", name).text

    def wait(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 60).until(lambda _: condition())

    def press(self, key: str, answered: int) -> None:
        self.browser.find_element("tag name", "body").send_keys(key)
        self.wait(lambda: f"{answered} answered" in self.text("count"))

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=60) == 0


def pictures(folder: Path, count: int) -> Path:
    """A folder of phantoms that nothing is known of."""
    dataset = make_demo_dataset(folder, counts={"training": count}, size=(48, 48))
    dataset.unlink()
    for masks in folder.glob("*mask*"):
        shutil.rmtree(masks)
    return folder


def test_keys_become_a_data_set_although_the_program_is_killed(browser, tmp_path):
    folder = pictures(tmp_path / "data", 8)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert len(names) == 8

    page = Page(browser, folder)
    for count, key in enumerate("30n9", start=1):
        page.press(key, count)
    page.press("u", 3)  # the 9 was a slip
    os.kill(page.process.pid, signal.SIGKILL)
    page.process.wait(timeout=60)
    browser.find_element("tag name", "body").send_keys("1")
    page.wait(lambda: "Not saved" in page.text("message"))

    page = Page(browser, folder)
    assert names[3] in page.text("count")  # where it stopped
    for count, key in enumerate("nsa5n", start=4):
        page.press(key, count)
    assert page.text("left") == "All answered."
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "answer" not in entry["message"]
    ]
    assert not severe
    page.end()

    given = [Answer(1, 0.3), Answer(1, 1.0), Answer(0), Answer(0), Answer(None), Answer(1), Answer(1, 0.5), Answer(0)]
    assert read_answers(folder / "labels.jsonl") == dict(zip(names, given, strict=True))
    datalist = load_datalist(folder)
    assert sum(map(len, datalist.values())) == 7  # all but the unsure one


def test_nothing_runs_out_of_the_page(browser, tmp_path):
    page = Page(browser, pictures(tmp_path / "data", 2))
    for width in (390, 768, 1280):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 800}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.refresh()
        image = browser.find_element("id", "image")
        page.wait(lambda image=image: browser.execute_script("return arguments[0].naturalWidth", image) == 48)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        view = browser.find_element("id", "view")  # which shows the whole image
        assert browser.execute_script("return arguments[0].scrollHeight <= arguments[0].clientHeight", view)
        for button in browser.find_elements("tag name", "button"):
            assert button.size["height"] >= 44  # a finger's
            assert button.location["y"] + button.size["height"] <= 800
    page.end()
