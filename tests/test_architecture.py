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

"""The folders of ``bundle/scripts`` depend on each other in one direction, their modules not in circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "bundle" / "scripts"
TESTS = ROOT / "tests" / "scripts"

# From the bottom up: a folder imports from those of the rows above its own, and from itself.
LAYERS = (
    ("runtime",),
    ("images",),
    ("data", "losses", "metrics", "networks"),
    ("evaluation", "training"),
    ("boosting", "slides", "volumes"),
    ("demo", "labelling", "monai_label"),
    ("review",),
    ("console", "experiments", "exports", "model_zoo"),
)
RANKS = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}


def modules_of(root: Path) -> dict[str, Path]:
    """Files by their dotted names below the package, that of the package itself being empty."""
    names = {path: path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py")}
    return {".".join(p for p in parts if p != "__init__"): path for path, parts in names.items()}


def imports_of(path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and module of every import from the package, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in found:
            package, _, rest = name.partition(".")
            if package == "scripts":
                yield node.lineno, rest if rest in modules else rest.rpartition(".")[0]


def upward_imports(root: Path) -> list[str]:
    """Imports from a folder that is not below the importing one, and modules in no known folder."""
    modules = modules_of(root)
    problems = []
    for module, path in sorted(modules.items()):
        folder = module.split(".")[0]
        if folder and folder not in RANKS:
            problems.append(f"{module} is in no folder of LAYERS")
            continue
        for line, imported in imports_of(path, modules):
            other = imported.split(".")[0]
            if other not in (folder, "") and not RANKS.get(other, len(LAYERS)) < RANKS.get(folder, 0):
                problems.append(f"{path.relative_to(root)}:{line}: {folder} imports from {other}")
    return problems


def circles(root: Path) -> list[str]:
    """A circle of modules that import each other, if there is one."""
    modules = modules_of(root)
    graph = {module: {imported for _, imported in imports_of(path, modules)} for module, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_folders_import_from_those_below_them() -> None:
    assert upward_imports(SCRIPTS) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(SCRIPTS) == []


def test_every_folder_says_what_it_is_for() -> None:
    for folder in RANKS:
        if folder != "model_zoo":  # one module, the only one beside the folders
            assert ast.get_docstring(ast.parse((SCRIPTS / folder / "__init__.py").read_text(encoding="utf-8"))), folder


def test_tests_lie_where_their_module_lies() -> None:
    known = {path.relative_to(SCRIPTS).parent for path in modules_of(SCRIPTS).values()}
    strays = [path for path in TESTS.rglob("test_*.py") if path.relative_to(TESTS).parent not in known - {Path()}]
    assert strays == []


@pytest.mark.parametrize("path", sorted((ROOT / "bundle" / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_configs_name_what_exists(path: Path) -> None:
    for name in re.findall(r"\bscripts(?:\.\w+)+", path.read_text(encoding="utf-8")):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of three modules that is in order."""
    for name, text in {
        "__init__.py": "",
        "runtime/__init__.py": "",
        "runtime/errors.py": "from scripts import version",
        "training/__init__.py": "",
        "training/trainer.py": "from scripts.runtime.errors import InputError",
        "training/resume.py": "from scripts.training import trainer",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_tree_in_order_is_let_pass(tree: Path) -> None:
    assert upward_imports(tree) == []
    assert circles(tree) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from scripts.training.trainer import Trainer",
        "from scripts.training import trainer",
        "import scripts.training.trainer",
        "def late():\n    from scripts.training.trainer import Trainer",
    ],
)
def test_an_import_upwards_is_found(tree: Path, statement: str) -> None:
    (tree / "runtime" / "errors.py").write_text(statement)
    assert [problem.split(": ")[1] for problem in upward_imports(tree)] == ["runtime imports from training"]


def test_an_import_from_beside_is_found(tree: Path) -> None:
    (tree / "training" / "trainer.py").write_text("from scripts.evaluation.scores import Scores")
    assert [problem.split(": ")[1] for problem in upward_imports(tree)] == ["training imports from evaluation"]


def test_a_module_in_no_folder_is_found(tree: Path) -> None:
    (tree / "utils.py").write_text("")
    assert upward_imports(tree) == ["utils is in no folder of LAYERS"]


def test_a_circle_is_found(tree: Path) -> None:
    (tree / "training" / "trainer.py").write_text("from scripts.training.resume import fit")
    assert set(circles(tree)) == {"training.trainer", "training.resume"}


def test_modules_import_no_private_names() -> None:
    private = [
        f"{path.relative_to(SCRIPTS)}:{node.lineno}: {alias.name}"
        for path in modules_of(SCRIPTS).values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("scripts")
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert private == []
