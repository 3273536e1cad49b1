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

"""What can be seen of a data set without MONAI, whose import takes seconds."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts import bundle_root
from scripts.console.configs import top_of
from scripts.console.options import MONAI_OPTIONS
from scripts.data.dataset_file import dataset_file

__all__ = ["check_arguments", "check_at_once", "has_no_area", "look_at_once"]


def check_arguments(
    files: Sequence[Path], options: Sequence[tuple[str, str | None]], typed: str | None
) -> dict[str, Any] | None:
    """
    What `check_datalist` is to be given, where that needs nothing that MONAI's parser finds out.

    Args:
        files: of the run.
        options: as typed.
        typed: path of the data set.

    Returns:
        Its arguments; None where MONAI's parser has to be asked.
    """
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".json"]
    given = dict(options)
    deeper = any(key.startswith("datalist") and key != "datalist" for key in given)
    top = top_of(files)
    arguments = dict(top.get("datalist", {}))
    changes = {key: value for content in contents for key, value in content.items() if key.startswith("datalist#")}
    deeper = deeper or not {key.removeprefix("datalist#") for key in changes} <= arguments.keys()
    arguments |= {key.removeprefix("datalist#"): value for key, value in changes.items()}
    is_usual = arguments.pop("_target_", None) == "scripts.data.datalist.load_datalist"
    if typed is None or deeper or not is_usual or len(contents) < len(files) or given.keys() & set(MONAI_OPTIONS):
        return None
    named = {name: value for name, value in (top | given).items() if isinstance(value, str)}

    def meant(value: Any) -> Any:
        if isinstance(value, list):
            return [named.get(part[1:], part) if str(part)[:1] == "@" else part for part in value]
        return top.get(value[1:], value) if str(value)[:1] == "@" else value

    values = {name: meant(value) for name, value in arguments.items()}
    for name in values.keys() & given.keys() - {"dataset_dir"}:
        if given[name] not in ("True", "False"):
            return None
        values[name] = given[name] == "True"
    values["dataset_dir"] = typed
    plain = (part for value in values.values() for part in (value if isinstance(value, list) else [value]))
    return None if any(str(part)[:1] in ("@", "$", "%") for part in plain) else values


def check_at_once(**values: Any) -> None:
    """The run ``checking``, of the arguments of `check_arguments`. Raises InputError with all that is wrong."""
    from logging.config import fileConfig

    from scripts.data.datalist import check_datalist, report_datalist

    fileConfig(Path(bundle_root()) / "configs" / "logging.conf", disable_existing_loggers=False)
    report_datalist(check_datalist(**values))


def look_at_once(**values: Any) -> None:
    """The same without opening a file and without a word, unless something is wrong, which raises InputError."""
    from scripts.data.datalist import check_datalist

    logging.disable()  # the run repeats what there is to say
    try:
        check_datalist(**values, opened=False)
    finally:
        logging.disable(logging.NOTSET)


def has_no_area(data: Path) -> bool:
    """Whether a dataset.json states no area; what is wrong with one, the training says."""
    try:
        content = json.loads(dataset_file(data).read_text(encoding="utf-8"))
        return not any(item.get("area") or isinstance(item["label"], str) for item in content["training"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False
