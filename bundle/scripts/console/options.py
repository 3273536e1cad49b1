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

"""What was typed after a command: taken apart, and refused where that can be seen before imports that take seconds."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path

from scripts.console.configs import UsageError, top_of
from scripts.data.dataset_file import dataset_file
from scripts.images.limits import MIN_SIZE
from scripts.runtime.command_line import did_you_mean
from scripts.runtime.errors import InputError
from scripts.runtime.values import image_size

__all__ = [
    "EXPORT_FOLDERS",
    "INCLUDED",
    "MONAI_OPTIONS",
    "is_there",
    "refuse_options",
    "require_dataset",
    "require_images",
    "take_own",
    "take_rounds",
    "top_name",
]

OWN = ("method", "overlay")  # options that aren't settings
# what MONAI's own `run` takes
MONAI_OPTIONS = ("run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking", "args_file", "workflow_name")
MONAI_OPTIONS += ("workflow_type", "properties_path")
# folders that cdws export makes, an option each
EXPORT_FOLDERS = {"wsinfer": "WSInfer, also in QuPath", "bioimageio": "the model format of bioimage.io"}
WRITTEN = {"export_file", "export_dir", "export_as"}  # settings of export.json that cdws export gives
INCLUDED = "included"  # as ckpt_path: the model that comes with the bundle


def take_rounds(options: list[tuple[str, str | None]]) -> str | None:
    """Take the number of rounds, as typed, out of the options, which are changed; None where it is not among them."""
    given = [value or "nothing" for name, value in options if name == "rounds"]
    options[:] = [option for option in options if option[0] != "rounds"]
    return given[-1] if given else None


def take_own(options: list[tuple[str, str | None]], method: str) -> tuple[str, list[str]]:
    """
    Take the method and the overlays out of the options, which are changed.

    Args:
        options: as typed.
        method: where none is.

    Raises:
        UsageError: for one without a value.
    """
    added = []
    for name, value in options:
        if name in OWN and not value:
            raise UsageError(f"--{name} has no value; give a name of those that cdws train -h lists.")
        method = value if name == "method" else method
        added += value.split(",") if name == "overlay" else []
    options[:] = [option for option in options if option[0] not in OWN]
    return method, added


def refuse_options(command: str, options: Sequence[tuple[str, str | None]], files: Sequence[Path]) -> None:
    """
    Refuse options that no setting at the top of the configs is called as, and values that end in MONAI's traceback.

    The run itself refuses those that name something deeper, or that come with experiment tracking.

    Raises:
        UsageError: naming what is unknown, with what was probably meant.
    """
    given = dict(options)
    if "config_file" in given:
        raise UsageError(f"cdws {command} chooses --config_file itself; add yours by --overlay FILE.")
    # what MONAI takes itself, and ends in a traceback
    for name in ("seed", "num_workers"):
        if not re.fullmatch(r"[-+]?\d+|None|[$@%].*", given.get(name, "0") or ""):
            raise UsageError(f"--{name} is a whole number; got '{given[name] or 'nothing'}'.")
    size = given.get("spatial_size", "@")
    if not str(size).startswith(("$", "@", "%")):
        try:
            image_size("--spatial_size", literal_eval(size or ""), MIN_SIZE)
        except InputError as error:
            raise UsageError(str(error)) from error
        except (SyntaxError, ValueError):
            raise UsageError(f"--spatial_size is height and width, as [224,224]; got '{size or 'nothing'}'.") from None
    for name in ("args_file", "logging_file"):
        if name in given and given[name] not in ("False", "None") and not Path(given[name] or "").is_file():
            raise UsageError(f"There is no file '{given[name] or ''}'; name one with --{name}, or leave it out.")
    for name in ("dataset_dir", "output_dir", "ckpt_dir"):  # as of a variable of the shell that is not set
        if name in given and not given[name]:
            raise UsageError(f"--{name} has no value; name a folder, or leave it out.")
    others = {"train": ["rounds"], "export": EXPORT_FOLDERS}.get(command, [])
    known = {*top_of(files), *OWN, *MONAI_OPTIONS, *others} - WRITTEN
    if "tracking" in given or any(file.suffix != ".json" for file in files):
        return
    meant = {k: did_you_mean(top_name(k), known, "--") for k in given if top_name(k) not in known}
    # of the two that are as near the one that takes this word
    meant |= {k: " (did you mean --ckpt_path?)" for k in meant if given[k] == INCLUDED and "ckpt_path" in known}
    meant |= {k: " (it is of cdws train alone)" for k in meant if k == "rounds"}
    unknown = [f"--{name}{near}" for name, near in meant.items()]
    if unknown:
        raise UsageError(
            f"There is no option {', '.join(unknown)}; `cdws settings` lists the settings, `cdws {command} -h` the "
            "other options."
        )


def top_name(name: str) -> str:
    """What stands at the top of a config of a setting that may be deeper in it, or added to a list."""
    return name.removeprefix("+").replace("::", "#").partition("#")[0]


def require_dataset(data: str) -> None:
    """
    Refuse what is no data set, before imports that take seconds.

    Raises:
        InputError: when it is neither the folder of a dataset.json nor a file.
    """
    if not is_there(dataset_file(data)):
        raise InputError(
            f"There is no data set at '{data}'; give DATA, the folder of dataset.json or that file. `cdws data -h` "
            "says how one is written."
        )


def require_images(paths: Sequence[str], what: str) -> None:
    """
    Refuse paths of images at which there is nothing.

    Args:
        paths: that were typed.
        what: should have been, for the message.

    Raises:
        InputError: for the first of them.
    """
    for path in paths:
        if not is_there(Path(path)):
            raise InputError(f"There is no folder or file '{path}'; give {what}.")


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; none has a name that the system does not take."""
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file
        return False
