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

"""
The bundle as the model zoo and the Hugging Face hub get it: assembled in a folder, checked, and pushed if asked to.

In ``bundle/``: ``python -m scripts.model_zoo FOLDER [--push USER/NAME]``. Without ``--push`` nothing is sent.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from scripts import bundle_root, bundle_version
from scripts.runtime.errors import InputError, first_line, report_input_errors

if __name__ == "__main__":  # before imports that take seconds, in which a signal would be a traceback
    report_input_errors()

import yaml
from monai.bundle import push_to_hf_hub
from monai.utils import OptionalImportError

from scripts.networks.weights import load_tensors, not_finite
from scripts.runtime.files import new_folder

__all__ = ["assemble", "find_problems", "push"]

SUBMITTED = ("LICENSE", "__main__.py", "large_files.yml", "configs/*", "docs/*", "scripts/**/*", "models/*.pt")
NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "docs/data_license.txt")
NEEDED += ("models/model.pt",)
MEGABYTE = 2**20
LARGEST_FILE = 25 * MEGABYTE  # of the model zoo; larger ones are linked to in large_files.yml
TEXTS = (".json", ".md", ".py", ".txt", ".yml")
PERSONAL_PATH = re.compile(r"(?<![\w.])(?:/home/|/Users/|/root/|[A-Za-z]:\\+Users\\+)[\w.-]+")


def assemble(folder: str | PathLike) -> list[Path]:
    """
    Copy what is submitted of the bundle into a folder of its own.

    Args:
        folder: of the copy; must not exist. Its name is the bundle's in the model zoo.

    Returns:
        The files in the copy, relative to it.

    Raises:
        InputError: when the folder exists, lies in the bundle or can't be written, or what it has isn't fit for the
            model zoo.
    """
    source, folder = Path(bundle_root()), Path(folder)
    files = sorted(set(_submitted(source)))
    with new_folder(folder) as copy:
        try:
            for file in files:
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, copy / file)
            problems = find_problems(copy)
        except OSError as error:
            raise InputError(f"The bundle can't be copied to '{folder}' ({error.strerror}).") from error
        if problems:
            raise InputError("The bundle is not ready for the model zoo:\n  - " + "\n  - ".join(problems))
    return files


def _submitted(source: Path) -> Iterator[Path]:
    linked = _linked(source)
    for pattern in SUBMITTED:
        for path in source.glob(pattern):
            relative = path.relative_to(source)
            hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
            if path.is_file() and not hidden and relative.as_posix() not in linked:
                yield relative


def _linked(folder: Path) -> set[str]:
    """
    Files that ``large_files.yml`` has the address of, for MONAI's ``download_large_files``; relative to the bundle.

    Raises:
        InputError: when the file isn't as MONAI expects it.
    """
    path = folder / "large_files.yml"
    if not path.is_file():
        return set()
    try:
        files = yaml.safe_load(path.read_text(encoding="utf-8"))["large_files"]
        return {str(file["path"]) for file in files if file["url"]}
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"large_files.yml must have a list 'large_files' with 'path' and 'url' of each ({first_line(error)})."
        ) from error


def find_problems(folder: str | PathLike) -> list[str]:
    """What the model zoo would refuse in a bundle's folder, a sentence each; its network is MONAI's to check."""
    folder = Path(folder)
    missing = (name for name in NEEDED if not (folder / name).is_file())
    problems = [f"{name} is missing" for name in missing if name not in _linked(folder)]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if path.stat().st_size > LARGEST_FILE:
            problems.append(f"{name} is larger than 25 MB; upload it elsewhere, and link to it in large_files.yml")
        found = PERSONAL_PATH.search(path.read_text(encoding="utf-8")) if path.suffix in TEXTS else None
        if found:
            problems.append(f"{name} has a path of somebody's computer, '{found[0]}'; make it relative")
    return [*problems, *_metadata_problems(folder), *_model_problems(folder)]


def _metadata_problems(folder: Path) -> Iterator[str]:
    path = folder / "configs" / "metadata.json"
    if path.is_file():
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if metadata.get("version") not in metadata.get("changelog", {}):
            yield f"configs/metadata.json has no changelog for version {metadata.get('version')}"


def _model_problems(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "models").glob("*.pt")):
        name = path.relative_to(folder).as_posix()
        try:
            damaged = not_finite(load_tensors(path))
            if damaged is not None:
                yield f"{name} has values in '{damaged}' that are not finite"
        except Exception as error:  # it raises nearly anything on a damaged file
            yield f"{name} is not weights alone, or is damaged ({first_line(error)})"


def push(folder: str | PathLike, repo: str, private: bool = True) -> str:
    """
    Push an assembled folder to the Hugging Face hub, with a tag of the bundle's version; the address of the commit.

    The token is the one that ``hf auth login`` or the variable ``HF_TOKEN`` has set.

    Raises:
        InputError: when the package ``huggingface_hub`` is missing, or the hub refuses.
    """
    folder = Path(folder).resolve()
    try:
        return str(push_to_hf_hub(repo, folder.name, str(folder.parent), private=private, version=bundle_version()))
    except OptionalImportError as error:
        raise InputError("Pushing needs the package huggingface_hub: pip install huggingface_hub.") from error
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors, a malformed name is a ValueError
        raise InputError(f"'{repo}' can't be pushed to ({first_line(error)}); the folder '{folder}' stays.") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the copy, with the bundle's name in the model zoo")
    parser.add_argument("--push", metavar="USER/NAME", help="repository on the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="of a repository that is new (private)")
    arguments = parser.parse_args()
    try:
        for file in assemble(arguments.folder):
            print(f"{(arguments.folder / file).stat().st_size:>12,}  {file}")
        print(f"Assembled: {arguments.folder}, version {bundle_version()}")
        if arguments.push:
            print(f"Pushed: {push(arguments.folder, arguments.push, private=not arguments.public)}")
        else:
            print("Nothing has been sent; --push USER/NAME does, to the Hugging Face hub.")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
