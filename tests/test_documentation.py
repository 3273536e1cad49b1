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

"""The documents name files, settings and commands that exist."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "bundle/docs/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_exist(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / document).parent / target).exists(), target


def test_the_citation_is_of_this_version(configs):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == json.loads((configs / "metadata.json").read_text())["version"]


@pytest.mark.parametrize("document", ["README.md", "bundle/docs/README.md", "docs/paper-results.md", "docs/volumes.md"])
def test_commands_name_existing_configs_and_settings(document, configs):
    text = (ROOT / document).read_text().replace("\\\n", " ")
    commands = re.findall(r"^(?:\$ )?\s*python -m monai\.bundle run .*$", text, flags=re.MULTILINE)
    assert commands
    known = {key for path in configs.glob("*.json") for key in json.loads(path.read_text())}
    for command in commands:
        for config in re.findall(r"configs/\w+\.json", command):
            assert (configs / Path(config).name).exists(), config
        options = set(re.findall(r"--(\w+)", command))
        assert options - {"config_file"} <= known, command


def test_settings_table_agrees_with_the_config(configs):
    """Every setting at the top of train.json is described, and what is described is at the top of a config."""
    text = (ROOT / "bundle" / "docs" / "settings.md").read_text()
    tops = {name: json.loads((configs / f"{name}.json").read_text()) for name in BASES}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE))
    train = list(tops["train"])
    assert set(train[1 : train.index("device") + 1]) <= set(rows)
    for name, default in rows.items():
        value = next(top[name] for top in tops.values() if name in top)
        if not isinstance(value, dict) and not str(value).startswith(("$", "@")):
            assert [_number(v) for v in re.findall(r"[\w./]+", default)] == [_number(str(v)) for v in _flat(value)], (
                name
            )


BASES = ("train", "recommended", "next_round", "evaluate", "inference")


def _flat(value):
    return value if isinstance(value, list) else [value]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_placeholder_is_left(document):
    """A line of one word in capitals, or TODO."""
    text = (ROOT / document).read_text()
    assert not re.findall(r"^[A-Z]{4,}$|TODO", text, flags=re.MULTILINE)


def test_the_tables_of_the_papers_method_have_the_numbers_of_their_runs():
    text = (ROOT / "docs" / "paper-results.md").read_text()
    runs: dict[str, dict[str, dict]] = {}
    for name in ("comparison", "less_data", "side_outputs", "area_noise"):
        with (ROOT / "docs" / "results" / "colon_study" / f"{name}.csv").open() as file:
            for run in csv.DictReader(file):
                runs.setdefault(run["row"], {})[run["run"]] = run
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.M)]
    rows = [row for row in rows if row[0] in runs and len(row) > 5]  # not of the table of times
    assert len(rows) == 26
    for name, *cells in rows:
        for key, cell in zip(("f_pos", "f_neg", "marked", "ods", "px_ap"), cells[-5:], strict=True):
            values = [runs[name][run][key] for run in sorted(runs[name])]
            assert cell == ", ".join(f"{float(value):.3f}" for value in values), (name, key)


def test_the_table_of_weaker_labels_has_the_numbers_of_its_runs():
    text = (ROOT / "docs" / "results.md").read_text()
    runs = json.loads((ROOT / "docs" / "results" / "colon_weaker.json").read_text())
    rows = re.findall(r"^\| `(quarters|noisy|half_missing|\d+_percent(?:_spread)?)` \| [^|]+ \|(.+)\|$", text, re.M)
    assert len(rows) == 7
    for name, cells in rows:
        for key, cell in zip(("f_pos", "f_neg", "ods", "px_ap"), cells.split("|"), strict=True):
            assert cell.strip() == ", ".join(f"{runs[name][seed][key]:.3f}" for seed in sorted(runs[name])), (name, key)
