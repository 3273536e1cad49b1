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
A copy of the bundle for MONAI Label, which reads train.json and inference.json alone: with overlays merged into them.

In ``bundle/``: ``python -m scripts.monai_label.apply_overlays FOLDER [dws.json superpixels.json ...]``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from scripts import bundle_root
from scripts.runtime.errors import InputError, first_line, report_input_errors

if __name__ == "__main__":  # before imports that take seconds, in which a signal would be a traceback
    report_input_errors()

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from scripts.runtime.files import new_folder

__all__ = ["apply_overlays"]

MERGED = ("train.json", "inference.json")
NEEDED = "monai_label.json"  # of which each config gets what it has a place for
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "runs", ".*.part")


def apply_overlays(folder: str | PathLike, overlays: Sequence[str | PathLike] = ()) -> None:
    """
    Copy the bundle, its models as well, and merge overlays into the copy's ``train.json`` and ``inference.json``.

    The first of them is the bundle's ``monai_label.json``. The included model of the copy's method is its
    ``models/model.pt``.

    Args:
        folder: of the copy; must not exist. MONAI Label reads the task off its name: let it end in ``_segmentation``.
        overlays: config files, in the order of their application: paths, or names of files in the bundle's ``configs``.

    Raises:
        InputError: when the folder exists, lies in the bundle or can't be written, or an overlay can't be read.
    """
    configs = Path(bundle_root()) / "configs"
    files = [Path(o) if Path(o).is_file() else configs / o for o in overlays]
    for path in files:
        if not path.is_file():
            raise InputError(f"There is no overlay '{path.name}', here or in '{configs}'.")
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"The overlay '{path}' is not valid JSON: {error}.") from error
    with new_folder(folder) as copy:
        try:
            shutil.copytree(bundle_root(), copy, ignore=LEFT_BEHIND, dirs_exist_ok=True)
            for name in MERGED:
                original, merged = (ConfigParser(ConfigParser.load_config_file(str(configs / name))) for _ in range(2))
                needed = ConfigParser.load_config_file(str(configs / NEEDED))
                overlay = {key: value for key, value in needed.items() if key.removeprefix("+") in merged}
                for content in (overlay, *(ConfigParser.load_config_file(str(path)) for path in files)):
                    for key, value in content.items():
                        merge_kv(merged, key, value)
                for key, value in overlay.items():
                    # an overlay has replaced the dictionary, with this in it as it was
                    if "#" in key and merged.get(key) == original.get(key):
                        merge_kv(merged, key, value)
                ConfigParser.export_config_file(merged.get(), str(copy / "configs" / name), indent=4)
            included = copy / "models" / f"{merged['method']}.pt"
            if included.is_file():
                included.replace(copy / "models" / "model.pt")
        except shutil.Error as error:  # a list of files, each with what failed
            raise InputError(f"The bundle can't be copied to '{folder}' ({error.args[0][0][2]}).") from error
        except OSError as error:
            raise InputError(f"The bundle can't be copied to '{folder}' ({first_line(error)}).") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("folder", help="of the copy")
    parser.add_argument("overlays", nargs="*", help="config files, or names of some in the bundle's configs")
    arguments = parser.parse_args()
    try:
        apply_overlays(arguments.folder, arguments.overlays)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"Written: {arguments.folder}")


if __name__ == "__main__":
    main()
