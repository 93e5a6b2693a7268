"""The fenced blocks of a Markdown page, and whether what a command printed is what the page shows."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

RUN = {"console", "bash", "python"}
SHOWN = {"text", "json", "protobuf", "cpp", "cmake", "yaml", "ini", "diff"}
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`]*)$")
_HIDDEN = re.compile(r"^<!-- run: (?P<language>bash|python)$")
_NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w])")
_FRAME = re.compile(r"[\s─━│┃┏┓┗┛┡┩└┘├┤┬┴┼╇┳┻╋]+")


@dataclass
class Block:
    """One fenced block, or one hidden in a comment."""

    path: Path
    line: int  # of the opening fence, from 1
    language: str
    options: dict[str, str]
    lines: list[str]
    indent: str = ""
    hidden: bool = False

    @property
    def text(self) -> str:
        return "".join(line + "\n" for line in self.lines)

    @property
    def where(self) -> str:
        return f"{self.path.name}:{self.line}"

    @property
    def skipped(self) -> bool:
        return "skip" in self.options

    @property
    def file(self) -> str | None:
        """The file that the block shows: its title, where that is the name of one. It is written, not run."""
        title = self.options.get("title", "")
        is_file = self.language in SHOWN | {"python"} and re.fullmatch(r"[\w./-]+\.\w+", title)
        return title if is_file and not self.skipped else None

    @property
    def is_output(self) -> bool:
        """Whether it shows what the block before it prints."""
        return self.options.get("title") == "Output"


@dataclass
class Command:
    """A command of a console block, and what the page shows of its output."""

    line: int  # in the block's lines, of the prompt
    text: str
    shown: list[str] = field(default_factory=list)
    first: int = 0  # index of the first line shown


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found: list[Block] = []
    block: Block | None = None
    closing = ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if block is not None:
            if line.strip() == closing:
                found.append(block)
                block = None
            else:
                block.lines.append(line.removeprefix(block.indent))
            continue
        if hidden := _HIDDEN.match(line):
            block, closing = Block(path, number, hidden["language"], {}, [], hidden=True), "-->"
        elif fence := _FENCE.match(line):
            words = shlex.split(fence["info"])
            language = words[0] if words else ""
            options = dict(word.partition("=")[::2] for word in words[1:])
            block = Block(path, number, language, options, [], fence["indent"])
            closing = fence["fence"]
    if block is not None:
        raise ValueError(f"{path}:{block.line}: the block is not closed")
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block: lines that begin with `$ `, which a backslash continues."""
    found: list[Command] = []
    lines = iter(enumerate(block.lines))
    for number, line in lines:
        if line.startswith("$ "):
            text = line[2:]
            while text.endswith("\\"):
                number, more = next(lines)
                text = text[:-1] + more.removeprefix("> ")
            found.append(Command(number, text, first=number + 1))
        elif found:
            found[-1].shown.append(line)
        else:
            raise ValueError(f"{block.where}: a console block begins with a line '$ COMMAND'")
    return found


def same(shown: list[str], printed: list[str]) -> bool:
    """Whether a page shows what was printed, by the rule of CONTRIBUTING.md."""
    shown, printed = _stripped(shown), _stripped(printed)
    if "..." not in shown:
        return len(shown) == len(printed) and all(map(_same_line, shown, printed))
    at = shown.index("...")
    if not all(map(_same_line, shown[:at], printed)) or len(printed) < at:
        return False
    rest = shown[at + 1 :]
    return any(same(rest, printed[begin:]) for begin in range(at, len(printed) + 1))


def difference(shown: list[str], printed: list[str]) -> str:
    """What to show of a page that is wrong."""
    return "\n".join(
        difflib.unified_diff(shown, printed, "the page shows", "the command printed", lineterm="")
    )


def elided(shown: list[str], printed: list[str]) -> list[str]:
    """What was printed, with as much left out as the page leaves out."""
    shown, printed = _stripped(shown), _stripped(printed)
    marks = [number for number, line in enumerate(shown) if line.strip() == "..."]
    if len(marks) != 1 or len(printed) <= len(shown):
        return printed
    tail = len(shown) - marks[0] - 1
    return [*printed[: marks[0]], shown[marks[0]], *printed[len(printed) - tail :]]


def _stripped(lines: list[str]) -> list[str]:
    lines = [line.rstrip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return ["..." if line.strip() == "..." else line for line in lines]


def _same_line(shown: str, printed: str) -> bool:
    shown, printed = (_FRAME.sub(" ", line).strip() for line in (shown, printed))
    if shown == printed:
        return True
    if _NUMBER.sub("#", shown) != _NUMBER.sub("#", printed):
        return False
    has_decimals = any("." in number for number in _NUMBER.findall(shown))
    pairs = zip(_NUMBER.finditer(shown), _NUMBER.finditer(printed), strict=True)
    return all(_same_number(a[1], b[1], shown[a.end() :], has_decimals) for a, b in pairs)


def _same_number(shown: str, printed: str, after: str, has_decimals: bool) -> bool:
    if shown == printed or re.match(r" ?(s|ms|seconds?)\b", after):
        return True
    a, b = float(shown), float(printed)
    if "." not in shown + printed and "e" not in shown + printed:
        return has_decimals and abs(a - b) <= 1  # a count is exact; an offset may be rounded the other way
    return abs(a - b) <= (0.5 if after.startswith("%") else max(0.05 * abs(a), 1e-6))
