"""What the subcommands of `amct-pytorch` share: messages, errors, progress, tables."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import typer

from amct_pytorch._checks import require_other_files
from amct_pytorch._json import plain
from amct_pytorch._log import logger
from amct_pytorch._report_names import printable

P = ParamSpec("P")


class InputError(Exception):
    """Something that the user named cannot be used; the message says what, in one line, and the mend."""

    exit_code = 1


class UsageError(InputError):
    """Options that do not go together."""

    exit_code = 2


class InterruptedBySignalError(InputError):
    """A signal ended the command; its exit code is that of a process that the signal ended."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class QuietError(InputError):
    """Another process failed, and says what happened."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"another process failed with exit code {exit_code}")
        self.exit_code = exit_code


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came; all that was begun is left as it is by Ctrl-C."""


@contextlib.contextmanager
def ending_as_by_keyboard() -> Iterator[None]:
    """Let SIGTERM unwind the command, as SIGINT does, so that nothing of it stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def with_errors_in_a_line(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command say what went wrong in a line, after the traceback where the user wants to know more."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            # Whoever reads the output has enough; nothing is left to be said, also not as Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt as error:
            say_error("interrupted")
            number = signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT
            raise typer.Exit(128 + number) from error
        except (InputError, ImportError, OSError, ValueError, RuntimeError) as error:
            if isinstance(error, typer.Exit):
                raise
            if is_verbose():
                traceback.print_exception(error)
            if not isinstance(error, QuietError):
                say_error(_message(error))
            raise typer.Exit(getattr(error, "exit_code", 1)) from error

    # Examples are shown as they are written, which the help does below this character.
    call.__doc__ = (command.__doc__ or "").replace("\n    Example:", "\n    \b\n    Example:")
    return call


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # without what there is to call in Python
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"'{error.filename}': {error.strerror}"
    return str(error)


def say_error(message: str) -> None:
    """Write an error as a line."""
    typer.echo(f"amct-pytorch: {printable(' '.join(message.split()))}", err=True)


class _LineFormatter(logging.Formatter):
    """A message is one line, whatever names it holds; what follows it, as a traceback, is not."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name of the base class
        return printable(super().formatMessage(record))


def be_verbose(verbose: bool) -> None:
    """Show what the package logs on the standard error: warnings, or all that it does with the time."""
    handler = logging.StreamHandler()
    if verbose:
        handler.setFormatter(_LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    else:
        handler.setFormatter(_LineFormatter("amct-pytorch: %(levelname)s: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def is_verbose() -> bool:
    """Whether the user wants to be told more."""
    return logger.isEnabledFor(logging.INFO)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long something took."""
    start = time.perf_counter()
    yield
    logger.info("%s: %.1f s", what, time.perf_counter() - start)


@contextlib.contextmanager
def progress(label: str, steps: int, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal, and nothing elsewhere; what it yields is called with the number of steps done."""
    if not (visible and sys.stderr.isatty()):
        yield lambda _: None
        return
    with typer.progressbar(length=steps, label=label, file=sys.stderr) as shown:
        yield shown.update


def echo_json(content: Any) -> None:
    """Write the result of a command as JSON."""
    typer.echo(json.dumps(plain(content), indent=2))


def refuse_one_file_for_two(written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """Raise UsageError where two options name one file, and one of them writes it."""
    try:
        require_other_files(
            {option: None if path is None else str(path) for option, path in written.items()},
            {option: None if path is None else str(path) for option, path in read.items()},
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; not cut to the width of a terminal, since names are there to be copied.

    Names of a file or a model cannot drive the terminal: they are `printable`.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
