"""Processes of one torch.distributed group, as torchrun starts them, in a fraction of its time.

They are forked from a process that has imported what they need, which takes seconds for each of them else.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

# Seconds that others have to end by themselves once one has failed; torchrun ends them at once.
PATIENCE = 20
# Seconds that a group may take.
LIMIT = 200

_nursery: subprocess.Popen[str] | None = None


class Ended(NamedTuple):
    """The exit code of each, negative for a signal, and what they said, one after the other."""

    codes: list[int]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        """0, or that of one that failed."""
        return next((code for code in self.codes if code), 0)


def start_ranks(ranks: int, file: str, *arguments: str, check: bool = True) -> Ended:
    """Run a file's main() in some processes; where `check` is set, none of them may fail."""
    global _nursery
    if _nursery is None:
        _nursery = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        )
        atexit.register(_nursery.communicate)
    assert _nursery.stdin is not None
    assert _nursery.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        request = {"ranks": ranks, "file": file, "arguments": arguments, "folder": folder}
        _nursery.stdin.write(json.dumps(request) + "\n")
        _nursery.stdin.flush()
        codes = json.loads(_nursery.stdout.readline())
        said = ["".join(path.read_text() for path in sorted(Path(folder).glob(f"*.{n}"))) for n in (1, 2)]
    ended = Ended(codes, *said)
    if check and ended.returncode != 0:
        raise AssertionError(f"exit codes {codes}\n{ended.stdout}\n{ended.stderr}")
    return ended


def _serve() -> None:
    """Start groups of processes as standard input asks for, and write the exit codes of each."""
    import amct_pytorch  # noqa: F401  # each of these takes seconds
    import transformers  # noqa: F401
    from families import tiny

    tiny("llama")  # which loads more of transformers
    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        running = {_child(rank, port, request): rank for rank in range(request["ranks"])}
        codes = [0] * len(running)
        deadline = time.monotonic() + LIMIT
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                code = codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
                if code:
                    deadline = min(deadline, time.monotonic() + PATIENCE)
            elif time.monotonic() > deadline:
                for other in running:
                    os.kill(other, signal.SIGKILL)
                deadline += LIMIT
            else:
                time.sleep(0.01)
        print(json.dumps(codes), flush=True)


def _child(rank: int, port: int, request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid != 0:
        return pid
    import runpy

    for number in (1, 2):
        file = os.open(f"{request['folder']}/{rank:03}.{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(request["ranks"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    sys.argv = [request["file"], *request["arguments"]]
    code = 0
    try:
        runpy.run_path(request["file"], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
