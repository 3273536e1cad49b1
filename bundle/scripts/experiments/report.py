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


"""The report of a study: self-contained HTML, Markdown tables, and the numbers of every run as CSV."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from PIL import Image

from scripts.experiments.figures import draw_curves, draw_fusion, draw_side_by_side, draw_size_errors, draw_spread
from scripts.experiments.plan import SUPERVISED, Plan, Study
from scripts.experiments.results import (
    RowResults,
    choose_area_weights,
    choose_fusion_weights,
    fusion_scores,
    read_rows,
    simplex,
)
from scripts.experiments.statistics import holm, mean_and_spread, mean_by_group, paired_p
from scripts.images.slide_parts import item_name, source_of
from scripts.runtime.files import replacing, write_rows

__all__ = ["Section", "make_section", "ratios", "results_table", "write_report"]

COLUMNS = {
    "f_pos": "F+",
    "f_neg": "F-",
    "marked": "marked",
    "ods": "ODS",
    "ois": "OIS",
    "px_ap": "pixel AP",
    "auc": "AUC",
}
BASELINES = {"all_ones": "all pixels marked", "disc": "best disc"}
TIMES = {"training_seconds": "training", "inference_seconds": "inference"}
CURVES = {key: COLUMNS[key] for key in ("f_pos", "f_neg", "ods", "px_ap")}
DPI = 110
SHOWN_FUSIONS = 10


@dataclass
class Table:
    """Text cells; a row is a mapping of its ``cells`` and its ``kind``, for the style."""

    caption: str
    header: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, *cells: str, kind: str = "") -> None:
        self.rows.append({"cells": list(cells), "kind": kind})

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *(row["cells"] for row in self.rows)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.caption}\n\n{table}" if self.caption else table


@dataclass
class Picture:
    """A figure as a data URI."""

    source: str
    width: int
    height: int
    caption: str


@dataclass
class Section:
    """An experiment's part of the report."""

    name: str
    plan: Plan
    results: list[RowResults]
    tables: list[Table]
    figures: list[Picture]
    limits: list[str]
    chosen: str = ""
    overlay: str = ""


def _number(mean_value: float, spread: float | None, digits: int = 3) -> str:
    return f"{mean_value:.{digits}f}" if spread is None else f"{mean_value:.{digits}f} ± {spread:.{digits}f}"


def _shown(values: Sequence[float], digits: int = 3) -> str:
    return _number(*mean_and_spread(values), digits) if values else ""


def p_values(results: Sequence[RowResults], reference: RowResults, groups: Mapping[str, str]) -> dict[str, list[float]]:
    """
    Of each row but the reference the corrected p of F+ and of F-; all of a table are one family (Holm).

    Rows whose images are not those of the reference are left out.
    """
    pairs, raw = [], []
    for row in results:
        if row is reference:
            continue
        scores = [[mean_by_group(r.image_scores(label), groups) for r in (row, reference)] for label in (1, 0)]
        if all(own.keys() == other.keys() for own, other in scores):
            pairs.append(row.row.name)
            raw += [paired_p(own, other) for own, other in scores]
    corrected = holm(raw) if raw else []
    return {name: corrected[2 * i : 2 * i + 2] for i, name in enumerate(pairs)}


def results_table(plan: Plan, results: Sequence[RowResults], groups: Mapping[str, str]) -> Table:
    """Mean and spread of each row, corrected p against the reference, and the trivial baselines."""
    reference = next(r for r in results if r.row.name == plan.reference)
    tested = p_values(results, reference, groups)
    images = len(reference.image_scores(1)), len(reference.image_scores(0))
    table = Table(
        f"Mean ± standard deviation of the runs; {images[0]} positive and {images[1]} negative test images. 'marked': "
        "part of the positive images that the mask takes. p: two-sided Wilcoxon signed-rank test of the images' F "
        f"(mean over runs, then over the images of a group) against '{plan.reference}', corrected for all tests of the "
        "table by Holm.",
        ["", *COLUMNS.values(), "p F+", "p F-", "runs"],
    )
    for r in results:
        p = [f"{value:.3f}" if value >= 0.001 else "< 0.001" for value in tested.get(r.row.name, [])] or ["", ""]
        kind = "reference" if r is reference else ""
        values = [_shown(r.values(key)) for key in COLUMNS]
        table.add(r.row.name, *values, *p, str(len(r.evaluations)), kind=kind)
    for key, name in BASELINES.items():
        values = [f"{mean(reference.values(f'{key}_f_{sign}')):.3f}" for sign in ("pos", "neg")]
        table.add(name, *values, *[""] * (len(table.header) - 3), kind="trivial")
    return table


def times_table(results: Sequence[RowResults]) -> Table:
    table = Table(
        "Seconds per image. Training: an image in an epoch, loading and steps, without validation; of several rounds "
        "the sum. Inference: from the loaded image to its map, the median. On the machine of the run, with whatever "
        "else it did.",
        ["", *TIMES.values()],
    )
    for r in results:
        table.add(r.row.name, *(_shown(r.values(key), 4) for key in TIMES))
    return table


def ratios(results: Sequence[RowResults]) -> Table | None:
    """F+, F- and ODS of each weak method as ratios to the supervised one with the best F+ and F-; None without one."""
    keys = ("f_pos", "f_neg", "ods")
    means = {r.row.name: {key: mean(r.values(key)) for key in keys} for r in results}
    supervised = [name for name in means if name in SUPERVISED]
    if not supervised:
        return None
    best = max(supervised, key=lambda name: means[name]["f_pos"] + means[name]["f_neg"])
    table = Table(
        f"Ratios of weak methods to '{best}', which learned from masks.", [f"ratio to {best}", "F+", "F-", "ODS"]
    )
    for name, values in means.items():
        if name not in SUPERVISED:
            table.add(name, *(f"{values[key] / means[best][key]:.3f}" if means[best][key] else "" for key in keys))
    return table


def _picture(figure: Figure, caption: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    with Image.open(file) as image:
        width, height = image.size
    return Picture(source, width, height, caption)


def _limits(study: Study, results: Sequence[RowResults], reference: RowResults, by_fold: bool) -> list[str]:
    images = [len(reference.image_scores(label)) for label in (1, 0)]
    runs = max(len(r.evaluations) for r in results)
    limits = [
        f"All scores are of {images[0]} positive and {images[1]} negative images of one data set; of other scanners, "
        "stains, organs and annotators they say nothing.",
        "A p-value is about these images, with the runs averaged; it doesn't know that another seed or training set "
        "would have given other networks, and a large p doesn't show that two methods are equal.",
        "Settings that a method isn't tuned for are those of its overlay; another may gain more from tuning.",
        "F+ alone rewards marking much: read it beside F-, and beside what marking all pixels scores.",
        "The truth is itself a drawing; how far two annotators agree isn't known here.",
    ]
    if runs < 3:
        limits.append(f"{'One run' if runs == 1 else 'Two runs'} of each row can't tell luck from effect.")
    if by_fold:
        limits.append("Folds share most of their training images, so their spread is smaller than that of new data.")
    if study.base["test"] == study.base["validation"]:
        limits.append("Thresholds were chosen on the test images, which flatters the scores.")
    return limits


def _titles(results: RowResults) -> tuple[dict[str, str], dict[str, str]]:
    """Images to show by the reference's F: best, quartiles and worst positive, worst negative; and the worst cases."""
    ranked = {
        label: sorted(scores.items(), key=lambda s: s[1]) for label in (1, 0) if (scores := results.image_scores(label))
    }
    positives, last = ranked[1], len(ranked[1]) - 1
    shown = {positives[last][0]: "best", positives[last // 2][0]: "median", positives[last // 4][0]: "lower quartile"}
    shown |= {ranked[0][-1][0]: "negative"}
    worst = {name: "worst positive" for name, _ in positives[:3]} | {
        name: "worst negative" for name, _ in ranked[0][:2]
    }
    return shown, worst


def make_section(output_dir: Path, name: str, plan: Plan, study: Study) -> Section:
    """Tables, figures and limits of an experiment whose cells have all finished; and its overlay, where it chooses."""
    results = read_rows(output_dir, plan)
    reference = next(r for r in results if r.row.name == plan.reference)
    items = [item for splits in study.variants.values() for split in splits.values() for item in split]
    sources = {item_name(item): source_of(item) for item in items}
    groups = {item_name(item): str(item["group"]) for item in items if "group" in item}
    threshold = reference.evaluations[0].specification["settings"].get("threshold", 0.5)
    section = Section(name, plan, results, [results_table(plan, results, groups)], [], [])
    by_fold = name in ("cross_validation", "area_weight", "fusion_weights")
    section.limits = _limits(study, results, reference, by_fold)
    if name == "comparison" and (table := ratios(results)):
        section.tables.append(table)
    if name == "area_weight":
        _choose(section, output_dir, choose_area_weights(results, study.area_weights))
        section.limits.append("Only the candidates listed were tried, so the score of the best of them is optimistic.")
    if name == "fusion_weights":
        _add_fusion(section, output_dir, study, threshold)
    section.tables.append(times_table(results))
    if plan.x_label:
        figure = draw_curves(results, CURVES, plan.x_label)
        section.figures.append(_picture(figure, "Mean and standard deviation of the runs."))
    else:
        section.figures.append(_picture(draw_spread(results, CURVES), "Every run (points) and the means (bars)."))
    shown, worst = _titles(reference)
    for titles, caption in (
        (shown, f"Inputs, truths, and the probability maps of each row with the outline of the mask at {threshold:g}"),
        (worst, f"Worst cases: images on which '{plan.reference}' has the lowest F"),
    ):
        for figure in draw_side_by_side(results, titles, threshold, sources):
            section.figures.append(_picture(figure, f"{caption}. First run of each row."))
    section.figures.append(
        _picture(
            draw_size_errors([reference, *(r for r in results if r is not reference)]),
            f"Error against the size of the lesion: medians of the images in thirds by size; dots: '{plan.reference}'.",
        )
    )
    return section


def _choose(section: Section, output_dir: Path, overlay: Mapping[str, Any]) -> None:
    path = output_dir / f"{section.name}.json"
    with replacing(path) as file:
        json.dump(overlay, file, indent=4)
    section.chosen = ", ".join(f"{key} {value}" for key, value in overlay.items() if key != "_desc_")
    section.overlay = path.name


def _add_fusion(section: Section, output_dir: Path, study: Study, threshold: float) -> None:
    weights = simplex(study.fusion_step)
    scores = fusion_scores(section.results[:-1], weights, threshold)
    _choose(section, output_dir, choose_fusion_weights(weights, scores))
    means = [sum(pair) / 2 for pair in scores]
    table = Table(f"The best of {len(weights)} choices, on held-out folds.", ["sides 1 / 2 / 3", "F+", "F-", "mean"])
    for i in sorted(range(len(weights)), key=lambda i: -means[i])[:SHOWN_FUSIONS]:
        table.add(" / ".join(f"{w:g}" for w in weights[i]), *(f"{v:.3f}" for v in (*scores[i], means[i])))
    section.tables.append(table)
    section.figures.append(_picture(draw_fusion(weights, means), "The grid of weights; the circle is what was chosen."))
    section.limits.append("The best of many choices on the same images looks better than it will be on new ones.")


def _settings(sections: Sequence[Section]) -> list[Table]:
    table = Table("What was run.", ["run", "overlays", "settings", "data", "seed"])
    environments = Table("Where.", ["versions and machine", "runs"])
    seen, machines = set(), {}
    for evaluation in (e for s in sections for r in s.results for e in r.evaluations):
        cell = evaluation.folder.parent
        if cell in seen:
            continue
        seen.add(cell)
        s = evaluation.specification
        settings = ", ".join(f"{key} {value}" for key, value in s["settings"].items())
        overlays = ", ".join(s["overlays"]) + (f"; {s['rounds']} rounds" if s["rounds"] > 1 else "")
        table.add(cell.name, overlays, settings, Path(s["dataset_dir"]).name, str(s["seed"]))
        found = json.loads((cell / "training" / "environment.json").read_text(encoding="utf-8"))
        text = ", ".join(f"{key} {value}" for key, value in found.items())
        machines[text] = machines.get(text, 0) + 1
    for text, count in machines.items():
        environments.add(text, str(count))
    return [table, environments]


def write_report(output_dir: Path, sections: Sequence[Section], command: str) -> list[Path]:
    """
    Write NAME.html, NAME.md, NAME.csv and NAME_times.csv of each section, and report.html of several.

    Returns:
        The files written.
    """
    written = []
    for section in sections:
        written.append(_write_html(output_dir / f"{section.name}.html", section.plan.title, [section], command))
        written.append(output_dir / f"{section.name}.md")
        with replacing(written[-1]) as file:
            tables = [table for table in section.tables if table.header[1:] != list(TIMES.values())]
            file.write("\n\n".join([f"# {section.plan.title}", section.plan.question, *(t.markdown() for t in tables)]))
            file.write("\n")
        for suffix, keys in (("", COLUMNS), ("_times", TIMES)):
            written.append(output_dir / f"{section.name}{suffix}.csv")
            with replacing(written[-1]) as file:
                evaluations = [(r.row.name, e) for r in section.results for e in r.evaluations]
                rows = [
                    [row, f"{e.folder.parent.name}/{e.folder.name}", *(e.metrics.get(key, "") for key in keys)]
                    for row, e in evaluations
                ]
                write_rows(file, [["row", "run", *keys], *rows])
    if len(sections) > 1:
        written.append(
            _write_html(output_dir / "report.html", "Study of weakly supervised segmentation", sections, command)
        )
    return written


def _write_html(path: Path, title: str, sections: Sequence[Section], command: str) -> Path:
    runs = {e.folder.parent for s in sections for r in s.results for e in r.evaluations}
    lead = f"Trained networks: {len(runs)}. Means, spreads and tests are computed from each run's own metrics."
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    html = environment.get_template("report.html").render(
        title=title, lead=lead, sections=sections, settings=_settings(sections), command=command
    )
    with replacing(path) as file:
        file.write(html)
    return path
