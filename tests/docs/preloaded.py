"""Runs Python programs without the seconds that torch and transformers take to import.

    preloaded.py SOCKET            serves: it has imported them, and forks for every program
    preloaded.py SOCKET NAME ...   is the program NAME: `amct-pytorch` or `python`

The second has the first run the program with its own arguments, folder, environment and open files, and
exits as it does.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any


def serve(path: str) -> None:
    """Fork for everyone who asks, until the parent process is gone."""
    import amct_pytorch.cli  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        server.settimeout(1)
        while os.getppid() == parent:
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            with client:
                client.setblocking(True)
                if os.fork() == 0:
                    server.close()
                    _serve_one(client)


def run(path: str, words: list[str]) -> int:
    """Have a program run, and return what it exits with."""
    request = {"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        answer = server.recv(16)
    return int(answer) if answer else 70


class Session:
    """A Python program that is told its lines bit by bit."""

    def __init__(self, path: str, folder: str, environment: dict[str, str]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        request = {"words": ["session"], "folder": folder, "environment": environment}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [0, 1, 2])
        self._lines = self._socket.makefile("rw", encoding="utf-8")

    def run(self, code: str, name: str) -> tuple[str, str]:
        """Execute code; return what it printed, and the traceback where it failed."""
        self._lines.write(json.dumps({"code": code, "name": name}) + "\n")
        self._lines.flush()
        answer = self._lines.readline()
        if not answer:
            return "", "the interpreter crashed"
        content = json.loads(answer)
        return content["printed"], content["error"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def _serve_one(client: socket.socket) -> None:
    """In the child: run what is asked for, answer, and exit."""
    code: Any = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        message, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
        request = json.loads(message)
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        name, *sys.argv = request["words"]
        sys.path[0] = request["folder"]
        if name == "session":
            _session(client)
        elif name == "amct-pytorch":
            from amct_pytorch.cli import main

            sys.argv.insert(0, name)
            main()
        else:
            sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # noqa: PTH100, PTH120
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as exit_:
        code = exit_.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with suppress(OSError):  # whoever asked may be gone
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            client.send(str(code or 0).encode())
        os._exit(0)


def _session(client: socket.socket) -> None:
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    lines = client.makefile("rw", encoding="utf-8")
    for line in lines:
        request = json.loads(line)
        printed, error = io.StringIO(), ""
        with redirect_stdout(printed), redirect_stderr(io.StringIO()) as messages:
            try:
                exec(compile(request["code"], request["name"], "exec"), module.__dict__)
            except BaseException:
                error = messages.getvalue() + traceback.format_exc()
        lines.write(json.dumps({"printed": printed.getvalue(), "error": error}) + "\n")
        lines.flush()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
