"""What models of the command line are run on: a text, conversations, or token ids, cut into windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amct_pytorch import _json
from amct_pytorch._command import InputError, UsageError, timed
from amct_pytorch._models import ModelFiles, load_tokenizer
from amct_pytorch.evaluation import windows


@dataclass(frozen=True)
class Source:
    """A file of tokens, of one of three kinds.

    Attributes
    ----------
    text : Path or None
        Text in UTF-8.
    jsonl : Path or None
        A JSON value a line: a conversation, ``{"messages": [...]}`` or the list alone, which the tokenizer's
        chat template turns into text; ``{"text": ...}``; or ``{"prompt": ..., "completion": ...}``, two
        texts or two lists of messages. They follow each other without padding.
    token_ids : Path or None
        A JSON list of token ids.
    """

    text: Path | None = None
    jsonl: Path | None = None
    token_ids: Path | None = None

    def __post_init__(self) -> None:
        if len(self._named) != 1:
            which = "one of --text, --jsonl and --token-ids"
            raise UsageError(
                f"{which} is enough; leave the others out" if self._named else f"{which} is needed"
            )

    def __str__(self) -> str:
        return str(self._named[0])

    @property
    def _named(self) -> list[Path]:
        return [path for path in (self.text, self.jsonl, self.token_ids) if path is not None]


def windows_asked(windows_: int | None, num_tokens: int | None, tokens_each: int, option: str) -> int | None:
    """How many windows, or batches, are asked for by number, or by the tokens in them; None where neither is.

    Parameters
    ----------
    windows_, num_tokens : int or None
        What was given.
    tokens_each : int
        Tokens in one.
    option : str
        The option for the number.
    """
    if windows_ is not None and num_tokens is not None:
        raise UsageError(f"{option} and --num-tokens both say how much is read; leave one out")
    return windows_ if num_tokens is None else -(-num_tokens // tokens_each)


def read_windows(
    source: Source, files: ModelFiles, length: int, count: int, seed: int | None
) -> list[torch.Tensor]:
    """Windows of token ids, int64, ``[1, length]`` each, none of which overlap.

    Parameters
    ----------
    source : Source
        The file.
    files : ModelFiles
        The model, whose tokenizer is taken.
    length, count : int
        Tokens in a window, and windows.
    seed : int or None
        Windows of a text are taken at random, and lines of JSON in random order; None: as they come.
    """
    if count == 0:
        return []
    with timed(f"read {count} windows of {length} tokens from '{source}'"):
        if source.jsonl is not None:
            ids = _ids_of_lines(source.jsonl, files, count * length, seed)
        elif source.token_ids is not None:
            ids = _ids_of_json(source.token_ids)
        else:
            assert source.text is not None
            words = _content(source.text)
            ids = load_tokenizer(files)(words, verbose=False)["input_ids"]
        if len(ids) < count * length:
            raise InputError(
                f"'{source}' has {len(ids)} tokens, fewer than {count} windows of {length}; "
                "give a longer one, or ask for less"
            )
        found = windows(torch.tensor(ids, dtype=torch.int64), length)
        if source.jsonl is None and seed is not None:
            found = [found[i] for i in _order(len(found), seed)]
    return found[:count]


def read_apart(
    source: Source,
    calibration: Source | None,
    files: ModelFiles,
    length: int,
    counts: tuple[int, int],
    seed: int | None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Windows to calibrate and to evaluate on, as of `read_windows`; none is both.

    Parameters
    ----------
    source, calibration : Source
        What is evaluated on, and what is calibrated on; without the latter the windows of `source` that come
        before the evaluated ones.
    files, length, seed
        As of `read_windows`.
    counts : tuple of int
        Windows to calibrate on, and to evaluate on.
    """
    for_calibration, for_evaluation = counts
    if calibration is None:
        rows = read_windows(source, files, length, for_calibration + for_evaluation, seed)
        return rows[:for_calibration], rows[for_calibration:]
    if Path(str(calibration)).resolve() == Path(str(source)).resolve():
        raise UsageError(
            f"'{source}' is named for the calibration and for the evaluation; leave out the former, and the "
            "calibration takes the windows before the evaluated ones"
        )
    return (
        read_windows(calibration, files, length, for_calibration, seed),
        read_windows(source, files, length, for_evaluation, seed),
    )


def _order(count: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not a text in UTF-8: {error}") from error


def _ids_of_json(path: Path) -> list[int]:
    try:
        ids = _json.parse(_content(path), f"'{path}'")
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(ids, list) or not all(type(token) is int and abs(token) < 2**63 for token in ids):
        raise InputError(f"'{path}' must hold a JSON list of token ids: [1, 2, 3]")
    return ids


def _ids_of_lines(path: Path, files: ModelFiles, enough: int, seed: int | None) -> list[int]:
    """Token ids of lines, one after the other; no more lines are tokenized than make enough."""
    lines = list(_lines(path))
    if seed is not None:
        lines = [lines[i] for i in _order(len(lines), seed)]
    tokenizer = load_tokenizer(files)
    ids: list[int] = []
    for number, content in lines:
        if len(ids) >= enough:
            break
        ids.extend(_ids_of(content, tokenizer, f"'{path}', line {number}"))
    return ids


def _lines(path: Path) -> Iterator[tuple[int, str | list[Any]]]:
    """Number and content of lines that are not empty: a text, or messages."""
    for number, line in enumerate(_content(path).split("\n"), start=1):  # JSON may hold other line ends
        if not line.strip():
            continue
        try:
            content = _text_or_messages(_json.parse(line, f"'{path}', line {number}"))
        except ValueError as error:
            raise InputError(str(error)) from error
        if content is None:
            raise InputError(
                f"'{path}', line {number}: neither a text nor a conversation; "
                'write {"messages": [{"role": ..., "content": ...}]} or {"text": "..."}'
            )
        yield number, content


def _text_or_messages(row: Any) -> str | list[Any] | None:
    match row:
        case {"text": str(text)}:
            return text
        case {"prompt": str(prompt), "completion": str(completion)}:
            return prompt + completion
        case {"messages": [*messages]} | [*messages]:
            pass
        case {"prompt": [*prompt], "completion": [*completion]}:
            messages = prompt + completion
        case _:
            return None
    is_conversation = all(isinstance(message, dict) and "role" in message for message in messages)
    return messages if messages and is_conversation else None


def _ids_of(content: str | list[Any], tokenizer: Any, where: str) -> list[int]:
    if isinstance(content, str):
        ids: list[int] = _tokenized(content, tokenizer, where)
        end = tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]
    if tokenizer.chat_template is None:
        raise InputError(
            f'{where}: the tokenizer has no chat template for messages; write them as {{"text": "..."}}'
        )
    try:
        text = tokenizer.apply_chat_template(content, tokenize=False)
    except Exception as error:  # a template may raise whatever it likes
        raise InputError(f"{where}: the chat template refuses it: {error}") from error
    # The template has put in all special tokens.
    return _tokenized(text, tokenizer, where, add_special_tokens=False)


def _tokenized(text: str, tokenizer: Any, where: str, **options: Any) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can say half of a character
        raise InputError(f"{where}: it is not a text: {error}") from error
    ids: list[int] = tokenizer(text, verbose=False, **options)["input_ids"]
    return ids
