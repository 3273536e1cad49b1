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
A `python` for tests: each program is a fork of one process that has imported the large packages, nothing of the bundle.

Most of a short program's time goes into importing PyTorch and MONAI. A program that is forked has its own arguments,
folder, environment, input and output, and ends as usual; `sys.executable` is this `python`, for programs it starts.
`python quick_python.py serve SOCKET` is that process, `python quick_python.py run SOCKET ARGUMENTS` runs a program.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys

IMPORTED = ("monai.bundle", "monai.handlers", "monai.engines", "ignite.handlers", "torch.utils.tensorboard", "nibabel")
IMPORTED += ("torchvision.models", "matplotlib.pyplot", "scipy.ndimage", "skimage.measure", "tifffile", "jsonschema")
IMPORTED += ("timm", "numba", "skimage.color", "shapely", "jinja2", "torch.distributed.run")


def run(path: str, arguments: list[str]) -> int:
    """Have a program run; its exit status, as a shell has it."""
    command = arguments[arguments[:1] == ["-u"] :]
    if not command or (command[0].startswith("-") and command[0] not in ("-m", "-c")):
        os.execv(sys.executable, [sys.executable, *arguments])
    request = json.dumps({"command": command, "cwd": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(request)
        answers = server.makefile("r")
        process = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(process, number))
        status = int(answers.readline() or 1)
    return status if status >= 0 else 128 - status


def serve(path: str) -> dict:
    """Fork for each program until the parent is gone; returns in the forks, with the program to run."""
    import gc
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["numba"].njit(lambda: 0)()  # its first function takes seconds
    gc.freeze()
    parent, running = os.getppid(), {}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.part")
    listener.listen(64)
    os.rename(f"{path}.part", path)
    while os.getppid() == parent:
        ready, _, _ = select.select([listener, *running], [], [], 0.02 if running else 1.0)
        for client in ready:
            if client is not listener:  # it was killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running[client], signal.SIGKILL)
                continue
            client, _ = listener.accept()
            size, descriptors, _, _ = socket.recv_fds(client, 4, 3)
            with client.makefile("rb") as file:
                request = json.loads(file.read(int.from_bytes(size, "big")))
            process = os.fork()
            if process == 0:
                for opened in (listener, client, *running):
                    opened.close()
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            client.sendall(f"{process}\n".encode())
            running[client] = process
        for client, process in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del running[client]
                with contextlib.suppress(OSError), client:
                    client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    for process in running.values():
        os.kill(process, signal.SIGKILL)
    os._exit(0)


def become(command: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Be the program of a command line; at its end the interpreter isn't taken apart, which takes a second."""
    import atexit
    import threading

    status = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests that run in the background ignore
    try:
        execute(command, cwd, environment)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def execute(command: list[str], cwd: str, environment: dict[str, str]) -> None:
    import runpy

    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = environment["QUICK_PYTHON"]
    added = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kind = command.pop(0) if command[0] in ("-m", "-c") else "file"
    folder = {"-m": cwd, "-c": "", "file": os.path.dirname(os.path.abspath(command[0]))}[kind]
    sys.path[:1] = [folder, *added]
    sys.argv = ["-c", *command[1:]] if kind == "-c" else command
    if kind == "-m":
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(command[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(run(sys.argv[2], sys.argv[3:]))
    become(**serve(sys.argv[2]))
