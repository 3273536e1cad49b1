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

"""What a user sees of an error, in a program of its own where the interpreter is to end."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scripts.runtime.errors import InputError, first_line, input_error_of

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"


def raised(*chain: Exception, explicit: bool = True) -> Exception:
    """The last error of a chain, each raised from the one before."""
    error = chain[0]
    for following in chain[1:]:
        following.__cause__ = error if explicit else None
        following.__context__ = error
        error = following
    return error


@pytest.mark.parametrize("explicit", [True, False], ids=["raise from", "raise in except"])
def test_the_cause_is_found_however_deep(explicit: bool) -> None:
    cause = InputError("label 2")
    assert input_error_of(raised(cause, RuntimeError("instantiate"), ValueError("config"), explicit=explicit)) is cause


def test_the_outermost_input_error_is_taken() -> None:
    outer = InputError("outer")
    assert input_error_of(raised(InputError("inner"), outer, RuntimeError("config"))) is outer


@pytest.mark.parametrize("error", [None, ValueError("x"), raised(KeyError("x"), RuntimeError("y"))])
def test_other_errors_are_none(error: Exception | None) -> None:
    assert input_error_of(error) is None


@pytest.fixture
def run(quick_python: str) -> Callable[[str], subprocess.CompletedProcess]:
    def run(code: str) -> subprocess.CompletedProcess:
        program = f"from scripts.runtime.errors import *\nreport_input_errors()\n{code}"
        return subprocess.run([quick_python, "-c", program], cwd=BUNDLE, capture_output=True, text=True, check=False)

    return run


def test_an_input_error_ends_the_program_with_its_message_alone(run) -> None:
    result = run("try: raise InputError('area is 30')\nexcept InputError as e: raise RuntimeError('wrapped') from e")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "\nerror: area is 30\n")


@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')",
        "MemoryError('20.00 GiB')",
        "RuntimeError('[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can\\'t allocate memory: 20.00 GiB')",
    ],
)
def test_a_lack_of_memory_is_a_sentence_with_remedies(run, error: str) -> None:
    result = run(f"import torch\ntry: raise {error}\nexcept Exception as e: raise RuntimeError('wrapped') from e")
    assert result.returncode == 1
    assert result.stderr.startswith("\nerror: There is not enough memory (")
    assert "20.00 GiB" in result.stderr
    assert "--spatial_size" in result.stderr
    assert result.stderr.count("\n") == 2


def test_a_full_disk_is_a_sentence_with_a_remedy(run) -> None:
    code = "import errno\ntry: raise OSError(errno.ENOSPC, 'No space left on device', 'a.png')\n"
    result = run(code + "except Exception as e: raise RuntimeError('wrapped') from e")
    assert result.returncode == 1
    assert result.stderr.startswith("\nerror: There is no room to write 'a.png' (No space left on device). Make room")
    assert result.stderr.count("\n") == 2


def test_any_other_error_keeps_its_traceback(run) -> None:
    result = run("1 / 0")
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_bug_in_the_bundle_keeps_its_traceback(run) -> None:
    """Not every ValueError of its own files is the user's: only an InputError is."""
    result = run("from scripts.volumes.reading import read_volume\nread_volume('none')")
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "reading.py" in result.stderr
    result = run("from scripts.losses.pooling import Pooling\nPooling('middle')")
    assert (result.returncode, result.stderr.count("\n")) == (1, 2)
    assert result.stderr.startswith("\nerror: pooling must be one of")


def test_first_line_is_that_of_the_innermost_cause() -> None:
    error = RuntimeError("cannot find a reader")
    error.__cause__ = OSError("\n  broken data stream\nat byte 7")
    assert first_line(error) == "broken data stream"
    assert first_line(KeyError()) == "KeyError"


def test_pytorchs_reason_is_told_and_not_its_advice_to_run_what_is_in_a_file(tmp_path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert first_line(caught.value).startswith("Unsupported global: GLOBAL print was not an allowed global")
    assert "weights_only" not in first_line(caught.value)


HEARS = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("scripts.labelling", "numpy"),
        ("scripts.model_zoo", "yaml"),
        ("scripts.monai_label.apply_overlays", "monai"),
        ("scripts.experiments", "fire"),
    ],
)
def test_a_signal_during_the_imports_is_no_traceback(tmp_path: Path, module: str, imported: str, number: int) -> None:
    (tmp_path / f"{imported}.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    command = [sys.executable, "-c", HEARS, module]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True, check=False)
    sentence = f"\nstopped by {number.name}; give the same command again to go on\n"
    assert (done.returncode, done.stderr) == (128 + number, sentence)
