"""Windows of texts, conversations and token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from amct_pytorch._command import InputError, UsageError
from amct_pytorch._data import Source, read_apart, read_windows, windows_asked
from amct_pytorch._models import ModelFiles
from command_line import WORDS, saved_tokenizer

pytest.importorskip("transformers")


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(saved_tokenizer(tmp_path / "model"), None)


def words_of(rows: list[torch.Tensor]) -> list[str]:
    """The windows as words again."""
    assert all(row.dtype == torch.int64 and row.shape[0] == 1 for row in rows)
    return [" ".join(WORDS[token] for token in row[0]) for row in rows]


def lines_of(folder: Path, *rows: Any) -> Source:
    path = folder / "data.jsonl"
    path.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return Source(jsonl=path)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def letters(folder: Path, count: int = 20) -> Source:
    """Token ids that are all different."""
    path = folder / "ids.json"
    path.write_text(json.dumps(list(range(count))))
    return Source(token_ids=path)


class TestWindows:
    def test_a_text_from_its_start(self, files: ModelFiles, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_text("a b c d e\nf g h i")
        assert words_of(read_windows(Source(text=path), files, 3, 3, None)) == ["<s> a b", "c d e", "f g h"]

    def test_at_random_without_overlap(self, files: ModelFiles, tmp_path: Path) -> None:
        source = letters(tmp_path)
        whole = [tuple(row[0].tolist()) for row in read_windows(source, files, 2, 10, 1)]
        assert sorted(whole) == [(i, i + 1) for i in range(0, 20, 2)]
        assert whole != sorted(whole)
        # A part is a part of the whole, and another seed gives another one.
        assert [tuple(row[0].tolist()) for row in read_windows(source, files, 2, 4, 1)] == whole[:4]
        assert [tuple(row[0].tolist()) for row in read_windows(source, files, 2, 10, 2)] != whole

    @pytest.mark.parametrize("seed", [None, 0, 1])
    def test_those_to_calibrate_on_are_not_evaluated_on(
        self, files: ModelFiles, tmp_path: Path, seed: int | None
    ) -> None:
        calibration, rows = read_apart(letters(tmp_path), None, files, 2, (4, 6), seed)
        assert (len(calibration), len(rows)) == (4, 6)
        assert sorted(torch.cat([*calibration, *rows]).flatten().tolist()) == list(range(20))
        # What `calibrate` takes with the same seed.
        assert [row.tolist() for row in calibration] == [
            row.tolist() for row in read_windows(letters(tmp_path), files, 2, 4, seed)
        ]

    def test_another_file_to_calibrate_on(self, files: ModelFiles, tmp_path: Path) -> None:
        text = tmp_path / "text"
        text.write_text("a b c d e")
        calibration, rows = read_apart(letters(tmp_path), Source(text=text), files, 2, (2, 1), None)
        assert words_of(calibration) == ["<s> a", "b c"]
        assert rows[0].tolist() == [[0, 1]]

    def test_the_same_file_twice(self, files: ModelFiles, tmp_path: Path) -> None:
        source = letters(tmp_path)
        with pytest.raises(UsageError, match="for the calibration and for the evaluation"):
            read_apart(source, source, files, 2, (2, 2), None)

    def test_too_little(self, files: ModelFiles, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"ids\.json' has 20 tokens, fewer than 7 windows of 3; give a"):
            read_windows(letters(tmp_path), files, 3, 7, None)

    def test_how_many(self) -> None:
        assert windows_asked(None, None, 10, "--windows") is None
        assert windows_asked(3, None, 10, "--windows") == 3
        assert windows_asked(None, 30, 10, "--windows") == 3
        assert windows_asked(None, 31, 10, "--windows") == 4
        assert windows_asked(None, 10**400, 10, "--windows") == 10**399
        with pytest.raises(UsageError, match="--windows and --num-tokens both say how much"):
            windows_asked(3, 30, 10, "--windows")


class TestLines:
    def test_every_kind(self, files: ModelFiles, tmp_path: Path) -> None:
        source = lines_of(
            tmp_path,
            {"messages": [said("user", "a"), said("assistant", "b")], "more": 1},
            [said("user", "c")],
            {"text": "d e"},
            {"prompt": "f ", "completion": "g"},
            {"prompt": [said("user", "h")], "completion": [said("assistant", "i")]},
        )
        parts = [
            "<s> <|user|> a </s> <|assistant|> b </s>",  # with no second <s>
            "<s> <|user|> c </s>",
            "<s> d e </s>",
            "<s> f g </s>",
            "<s> <|user|> h </s> <|assistant|> i </s>",
        ]
        whole = " ".join(parts)
        assert words_of(read_windows(source, files, len(whole.split()), 1, None)) == [whole]

    def test_packed_end_to_end_in_order_or_shuffled(self, files: ModelFiles, tmp_path: Path) -> None:
        source = lines_of(tmp_path, *({"text": letter} for letter in "abcdefgh"))
        in_order = read_windows(source, files, 3, 8, None)
        assert words_of(in_order) == [f"<s> {letter} </s>" for letter in "abcdefgh"]
        assert words_of(read_windows(source, files, 4, 2, None)) == ["<s> a </s> <s>", "b </s> <s> c"]
        shuffled = words_of(read_windows(source, files, 3, 8, 3))
        assert sorted(shuffled) == words_of(in_order)
        assert shuffled != words_of(in_order)
        assert words_of(read_windows(source, files, 3, 8, 3)) == shuffled

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ('{"text": "a"', "line 3 is not JSON: Expecting ',' delimiter"),
            ("9" * 5000, "line 3 is not JSON: Exceeds the limit"),
            ("[" * 65 + "]" * 65, "line 3 is nested too deeply: more than 64 levels"),
            ('{"text": "\\ud800"}', "line 3: it is not a text: 'utf-8' codec can't encode"),
            ({"messages": "a"}, "line 3: neither a text nor a conversation"),
            ({"messages": []}, "line 3: neither a text nor a conversation"),
            ({"messages": [{"content": "a"}]}, "line 3: neither a text nor a conversation"),
            ({"prompt": "a"}, "line 3: neither a text nor a conversation"),
            ("3", "line 3: neither a text nor a conversation"),
            ([{"role": "user"}], "line 3: the chat template refuses it"),
        ],
    )
    def test_lines_that_cannot_be_used(self, row: Any, message: str, tmp_path: Path) -> None:
        strict = "{% for m in messages %}{{ m['content'] + '' }}{% endfor %}"
        files = ModelFiles(saved_tokenizer(tmp_path / "model", strict), None)
        with pytest.raises(InputError) as caught:
            read_windows(lines_of(tmp_path, {"text": "a"}, row), files, 3, 9, None)
        assert str(caught.value).startswith(f"'{tmp_path}/data.jsonl', {message}")

    def test_without_a_chat_template(self, tmp_path: Path) -> None:
        files = ModelFiles(saved_tokenizer(tmp_path / "model", None), None)
        source = lines_of(tmp_path, [said("user", "a")])
        with pytest.raises(InputError, match=r"line 1: the tokenizer has no chat template .* {\"text\""):
            read_windows(source, files, 3, 1, None)
        assert read_windows(lines_of(tmp_path, {"text": "a"}), files, 3, 1, None)


class TestFiles:
    def test_one_of_three(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="one of --text, --jsonl and --token-ids is needed"):
            Source()
        with pytest.raises(UsageError, match="token-ids is enough; leave the others out"):
            Source(text=tmp_path, jsonl=tmp_path)

    @pytest.mark.parametrize(
        ("kind", "content", "message"),
        [
            ("text", None, "cannot read '{0}': No such file or directory"),
            ("jsonl", None, "cannot read '{0}': No such file or directory"),
            ("text", b"\xff\xfe", "'{0}' is not a text in UTF-8"),
            ("token_ids", b"words", "'{0}' is not JSON: Expecting value"),
            ("token_ids", b'["words"]', "'{0}' must hold a JSON list of token ids: [1, 2, 3]"),
            ("token_ids", b"[99999999999999999999]", "'{0}' must hold a JSON list of token ids: [1, 2, 3]"),
            ("token_ids", b"[" * 100000, "'{0}' is nested too deeply"),
            ("token_ids", b"9" * 5000, "'{0}' is not JSON: Exceeds the limit"),
            ("token_ids", b"[true]", "'{0}' must hold a JSON list of token ids: [1, 2, 3]"),
        ],
    )
    def test_what_cannot_be_read(
        self, files: ModelFiles, tmp_path: Path, kind: str, content: bytes | None, message: str
    ) -> None:
        path = tmp_path / "file"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_windows(Source(**{kind: path}), files, 3, 1, None)
        assert str(caught.value).startswith(message.format(path))

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("a b c")
        with pytest.raises(InputError, match=r"has no tokenizer .* so give token ids: --token-ids FILE"):
            read_windows(Source(text=tmp_path / "text"), ModelFiles(tmp_path, None), 3, 1, None)
