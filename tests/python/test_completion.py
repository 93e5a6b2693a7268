"""Completion of the command line in shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import run


def script_of(shell: str) -> str:
    result = run("completion", shell)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def completed(*words: str) -> set[str]:
    """What bash offers for the last word; an empty set is left to it, which offers files."""
    script = f"""
        {script_of("bash")}
        complete -p amct-pytorch > /dev/null || exit 1
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _amct_pytorch
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = ["bash", "-uo", "pipefail", "-c", script, "bash", "amct-pytorch", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_commands() -> None:
    assert completed("ca") == {"calibrate"}
    assert completed("") >= {"layers", "config", "calibrate", "evaluate", "recommend", "report", "-v"}
    assert completed("-v", "re") == {"recommend", "report"}


def test_options_of_the_command() -> None:
    assert completed("calibrate", "--se") == {"--sequence-length", "--seed"}
    assert completed("-v", "layers", "--") == {"--model", "--gguf", "--json", "--verbose", "--help"}
    # A value that is called as a command is not one.
    assert completed("calibrate", "--record", "report", "--num") == {"--num-tokens"}


@pytest.mark.parametrize("before", [("--tap",), ("--tap", "=")])
def test_values_that_are_known(before: tuple[str, ...]) -> None:
    assert completed("calibrate", *before, "") == {"linear", "cache"}
    assert completed("calibrate", *before, "c") == {"cache"}


def test_one_value_of_many() -> None:
    assert completed("config", "--dst-type", "FP8_E4") == {"FP8_E4M3", "FP8_E4M3FNUZ"}
    assert completed("completion", "") == {"bash", "zsh", "fish"}
    assert completed("calibrate", "--tap", "=") == {"linear", "cache"}


def test_files_are_left_to_the_shell(tmp_path: Path) -> None:
    for words in (("--model", ""), ("--model", "c"), ("--text", "r"), ("--tokens", "")):
        assert completed("calibrate", *words) == set()
    assert completed("layers", "") == set()
    assert completed("layers", "c") == set()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_the_same_words(shell: str) -> None:
    script = script_of(shell)
    for word in ("layers", "completion", "num-tokens", "per_channel", "FP8_E4M3FNUZ", "asymmetric"):
        assert word in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_a_shell_that_is_not_known() -> None:
    result = run("completion", "csh")
    assert result.exit_code == 2
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in result.stderr
