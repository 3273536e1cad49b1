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

"""The quick `python` of the tests runs a program as Python's own does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TELLS = """
import atexit, os, sys
atexit.register(print, "bye")
sys.stdout.reconfigure(errors="backslashreplace")
print(sys.argv, os.getcwd(), sys.path[:2], os.environ.get("WHO"), sys.stdin.read(), __name__, "scripts" in sys.modules)
"""


@pytest.mark.parametrize("how", ["module", "file", "text"])
def test_arguments_folder_environment_and_pipes_are_the_programs_own(quick_python, tmp_path, how) -> None:
    (tmp_path / "tells.py").write_text(TELLS)
    (tmp_path / "other").mkdir()
    program = {"module": ["-m", "tells"], "file": ["-u", "../tells.py"], "text": ["-c", TELLS]}[how]
    options = {"env": os.environ | {"WHO": "me", "PYTHONPATH": str(tmp_path)}, "input": "given", "text": True}
    told = [
        subprocess.run([python, *program, "a b"], cwd=tmp_path / "other", capture_output=True, check=True, **options)
        for python in (sys.executable, quick_python)
    ]
    assert told[0].stdout == told[1].stdout
    assert told[0].stdout.endswith("__main__ False\nbye\n")


@pytest.mark.parametrize("code", ["1 / 0", "import sys; sys.exit('said')", "import sys; sys.exit(7)", "import nothing"])
def test_a_failure_is_the_programs_own(quick_python, code) -> None:
    pythons = (sys.executable, quick_python)
    plain, quick = (subprocess.run([python, "-c", code], capture_output=True, text=True) for python in pythons)
    assert plain.returncode == quick.returncode > 0
    assert plain.stderr.splitlines()[-1:] == quick.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_reaches_the_program(quick_python, tmp_path: Path, number) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
    process = subprocess.Popen([quick_python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    program = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    for _ in range(1200):
        try:
            os.kill(program, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the program goes on")


def test_a_program_started_by_a_program_is_quick_too(quick_python) -> None:
    tells = "import sys; print('torch' in sys.modules)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {tells!r}])"
    done = subprocess.run([quick_python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
