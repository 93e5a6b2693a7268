"""Where a model of the command line lies."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from amct_pytorch._command import InputError
from amct_pytorch._models import ModelFiles, check_device, find_model, load, skeleton
from command_line import saved_skeleton

transformers = pytest.importorskip("transformers")


def test_a_folder(tmp_path: Path) -> None:
    saved_skeleton(tmp_path, "llama")
    (tmp_path / "a.gguf").touch()
    assert find_model(str(tmp_path), None) == ModelFiles(tmp_path, None)
    assert find_model(str(tmp_path), "a.gguf") == ModelFiles(tmp_path, "a.gguf")


def test_a_gguf_file_that_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    assert find_model(str(tmp_path), None) == ModelFiles(tmp_path, "a.gguf")
    assert find_model(str(path), None) == ModelFiles(tmp_path, "a.gguf")
    assert str(find_model(str(path), None)) == str(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    def message(model: str, gguf: str | None = None) -> str:
        with pytest.raises(InputError) as caught:
            find_model(model, gguf)
        return str(caught.value)

    assert message("./none") == "there is no folder './none'"
    assert message("someone/some-model") == (
        "there is no folder 'someone/some-model'; a model of the hub is downloaded with: "
        "hf download someone/some-model --local-dir FOLDER"
    )
    folder = str(tmp_path)
    assert message(folder) == f"'{folder}' is not a model's folder: it has no config.json and no GGUF file"
    assert message(folder, "c.gguf") == f"'{folder}' has no file 'c.gguf'; it holds no GGUF file"
    for name in ("a.gguf", "b.gguf", "readme"):
        (tmp_path / name).touch()
    assert message(folder) == f"'{folder}' holds several GGUF files; add --gguf with one of a.gguf, b.gguf"
    assert message(folder, "c.gguf") == f"'{folder}' has no file 'c.gguf'; it holds a.gguf, b.gguf"
    assert message(f"{folder}/readme") == (
        f"'{folder}/readme' is a file, but neither a model's folder nor a GGUF file"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"{"), ("config.json", b"{}"), ("model.gguf", b"GGUF"), ("model.gguf", b"nothing")],
)
def test_what_transformers_cannot_read(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    files = find_model(str(tmp_path), None)
    with pytest.raises(InputError, match=r"is not a model that transformers can read: .") as caught:
        skeleton(files)
    assert str(caught.value).startswith(f"'{files}'")


def test_damaged_weights(tmp_path: Path) -> None:
    saved_skeleton(tmp_path, "llama")
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    files = find_model(str(tmp_path), None)
    with pytest.raises(InputError, match=r"is not a model that transformers can read: ."):
        load(files, skeleton(files), "auto", "cpu")


def test_a_device_that_is_not_there() -> None:
    check_device("cpu")
    with pytest.raises(InputError, match=r"device 'nonsense' cannot be used: ."):
        check_device("nonsense")


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_of_a_gguf_file_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    gguf = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    log = transformers.utils.logging
    was_shown = log.is_progress_bar_enabled()
    log.enable_progress_bar()
    monkeypatch.setattr(gguf, "tqdm", gguf.tqdm)  # put back at the end
    monkeypatch.setattr(sys, "stderr", Stream())
    try:
        with pytest.raises(InputError):
            skeleton(ModelFiles(Path("none"), "none.gguf"))
        list(gguf.tqdm(range(3), file=sys.stderr))
        assert bool(sys.stderr.getvalue()) == terminal
    finally:
        (log.enable_progress_bar if was_shown else log.disable_progress_bar)()
