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
What was typed: a path means the file of exactly that name.

Fire reads ``2024`` as a number and cuts ``set#2`` at its comment; MONAI's parser replaces ``#`` by ``::``, and takes
what begins with ``@`` or ``$`` for a reference or for Python. So values of settings that are paths or names are taken
from the command line itself, and from its ``--args_file``. MONAI adds a setting that no config has, so a misspelt
one is refused here.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from ast import literal_eval
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from difflib import get_close_matches
from inspect import signature
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NoReturn

from scripts.runtime.errors import InputError

__all__ = [
    "NAMES",
    "PATHS",
    "Parser",
    "did_you_mean",
    "is_rewritten",
    "keep_typed",
    "refuse_unknown",
    "remember",
    "typed_options",
    "typed_setting",
    "typed_words",
    "was_left_out",
]

PATHS = ("dataset_dir", "images", "output_dir", "prediction_dir", "ckpt_dir", "ckpt_path", "superpixel_cache")
PATHS += ("demo_dir", "pretrained", "tissue", "export_dir", "export_file")
NAMES = ("class_name", "segment_label", "split")
OPTION = re.compile(r"--|-[a-zA-Z]")  # as Fire has it
logger = logging.getLogger(__name__)
_given: dict[str, Any] = {}
_typed: dict[str, Any] | None = None  # settings, where they are known
_exact: set[str] = set()


def remember(settings: Mapping[str, Any]) -> None:
    """Take paths and names from here instead of the command line: for programs that start MONAI's workflows."""
    _given.clear()
    _given.update(settings)


def keep_typed(resolved: MutableMapping[str, Any]) -> None:
    """
    Give settings that are paths or names the values that were typed, whatever has been made of them on the way.

    Args:
        resolved: what MONAI's parser has resolved so far, and doesn't resolve again; ``$__local_refs`` in a config.

    Raises:
        InputError: when one of them has no value, or what was typed is no setting of the configs.
    """
    global _typed
    options: Mapping[str, Any] = _given
    _typed = dict(_given) if _given else None
    if not _given and _is_monai_bundle(sys.argv[0]):
        options = typed_options(sys.argv[1:])
        defaults = _read_arguments(options.get("args_file"))
        refuse_unknown(defaults | options)
        # a file has references and Python, as configs have
        _typed = {name.removeprefix("+"): value for name, value in (defaults | options).items()}
        options = {k: v for k, v in defaults.items() if not str(v).startswith(("@", "$", "%"))} | options
    _exact.clear()
    for name in (*PATHS, *NAMES):
        if name in options:
            value = _value(name, options[name])
            _exact.update(value if isinstance(value, list) else [value])
            resolved[name] = value


def typed_setting(name: str) -> Any:
    """The value of a setting as it was typed; None where it was not, or was a reference or Python."""
    value = (_typed or {}).get(name)
    return None if str(value).startswith(("@", "$", "%")) else value


def was_left_out(name: str) -> bool:
    """Whether a setting is known not to have been typed; False for programs that say nothing of theirs."""
    return _typed is not None and name not in _typed


def is_rewritten(path: str | PathLike) -> bool:
    """Whether a path has '::' that MONAI's parser, not the user, has put there in the place of '#'."""
    text = fspath(path)
    return "::" in text and not any(exact in text for exact in _exact if "::" in exact)


def typed_options(arguments: Sequence[str]) -> dict[str, str | None]:
    """Options of a command line and their values as typed, by Fire's rules; None for one without a value."""
    return dict(typed_words(arguments)[1])


def typed_words(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """What of a command line belongs to no option; and its options with their values, see `typed_options`, in order."""
    words: list[str] = []
    options: list[tuple[str, str | None]] = []
    position = 0
    while position < len(arguments) and arguments[position] != "--":
        argument = arguments[position]
        position += 1
        if OPTION.match(argument):
            name, equals, value = argument.lstrip("-").partition("=")
            follows = position < len(arguments) and not OPTION.match(arguments[position])
            options.append((name.replace("-", "_"), value if equals else arguments[position] if follows else None))
            position += not equals and follows
        else:
            words.append(argument)
    return words, options


def did_you_mean(typed: str, known: Iterable[str], prefix: str = "") -> str:
    """In brackets the nearest of the known names, after a space; nothing where none is near."""
    near = get_close_matches(typed, list(known), n=1)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that refuses in one sentence, with the nearest name that there is, and exit status 2."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message[0].upper()}{message[1:]}; see {self.prog} -h.\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            typed = sys.argv[1:] if args is None else args
            commands = [action.choices for action in self._actions if isinstance(action.choices, dict)]
            chosen = next((parsers[typed[0]] for parsers in commands if typed[0] in parsers), self)
            name = rest[0].partition("=")[0]
            if name[:1] != "-":
                chosen.error(f"'{name}' is one word too many")
            chosen.error(f"there is no option {name}{did_you_mean(name, chosen._option_string_actions)}")
        return options

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = did_you_mean(str(value), map(str, action.choices))
            name = action.metavar or action.dest
            raise argparse.ArgumentError(None, f"'{value}' is no {name}{near}: {', '.join(map(str, action.choices))}")


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """
    Refuse settings that no config has, nor MONAI's own ``run``, and say which of the others nothing refers to.

    A component may be given an argument that its config leaves out: MONAI fails where it takes none.

    Args:
        options: of a ``python -m monai.bundle run``, with values as typed.

    Raises:
        InputError: naming them, each with the nearest that there is.
    """
    from fire.parser import DefaultParseValue
    from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, run
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    tracking = options.get("tracking")
    settings = DEFAULT_EXP_MGMT_SETTINGS.get(str(tracking)) if tracking else {"configs": {}}
    files = options.get("config_file")
    if settings is None or not files:  # tracking may bring settings of its own
        return
    try:
        listed = DefaultParseValue(files) if isinstance(files, str) else files
        config = ConfigParser(ConfigParser.load_config_files(listed))
    except Exception:  # MONAI has read them, so they were written in another way
        return
    own = {name for function in (run, create_workflow, ConfigWorkflow) for name in signature(function).parameters}
    known = {*config.get(), *own, *settings["configs"]}
    unknown = []
    for name in options:
        setting = name.removeprefix("+").replace("::", "#")
        top, *inner = setting.split("#")
        replaced = str(options.get(top, "")).startswith("%")  # by part of another file
        if top in own or top in settings["configs"] or top.startswith("_") or (inner and replaced):
            continue
        if setting not in config and not (inner and _is_component(config, setting.rpartition("#")[0])):
            parent = "#".join([top, *inner[:-1]])
            siblings = config[parent] if inner and parent in config and isinstance(config[parent], dict) else {}
            near = did_you_mean(setting, [*known, *(f"{parent}#{key}" for key in siblings)], "--")
            unknown.append(f"--{name}{near}")
    if unknown:
        raise InputError(f"There is no such setting in the configs: {', '.join(unknown)}.")
    unused = [f"--{name}" for name in options if name in config.get() and _is_unused(name, config.get())]
    if unused:
        logger.info(f"Nothing in these configs uses {', '.join(unused)}.")


def _is_unused(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a setting is a plain value to which nothing refers, as those of a network that an overlay replaces."""
    value = json.dumps(config[name], default=str)
    plain = not re.search(r'"([$@%]|_target_")', value)  # anything else may be for MONAI
    return plain and not re.search(rf"[@%]{re.escape(name)}\b", json.dumps(config, default=str))


def _is_component(config: Any, name: str) -> bool:
    return name in config and isinstance(config[name], dict) and "_target_" in config[name]


def _read_arguments(path: str | None) -> dict[str, Any]:
    """The options in a file of them, in which MONAI has found them; none where there is none."""
    if not path:
        return {}
    from monai.bundle import ConfigParser

    return dict(ConfigParser.load_config_file(path))


def _is_monai_bundle(program: str) -> bool:
    return Path(program).parts[-3:] == ("monai", "bundle", "__main__.py")


def _value(name: str, typed: Any) -> Any:
    if not typed:
        raise InputError(f"--{name} has no value; give one, and write './-x' for a path that begins with '-'.")
    if name != "images":
        return fspath(typed) if isinstance(typed, PathLike) else str(typed)
    if isinstance(typed, str):
        try:
            listed = literal_eval(typed)
        except (SyntaxError, ValueError):
            return typed
        files = isinstance(listed, (list, tuple)) and all(isinstance(path, str) for path in listed)
        return list(listed) if files and not os.path.exists(typed) else typed  # a list is too long for a name
    return typed
