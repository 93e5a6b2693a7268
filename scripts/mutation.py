"""Mutation testing: do tests notice when a line of a source is changed?

Each mutant is one source file with one line changed (universalmutator). It is compiled, linked to the tests
in front of the library, which is searched only for what is missing then, and run: a mutant for which no test
fails survives. Those that do not compile do not count, nor do those that compile to the same code. Some
survivors are no fault of the tests: what prunes candidates changes the time that a search takes, not what it
finds.

Run with the Python that universalmutator is installed for; `make mutation` does.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A source file with one line changed."""

    source: str  # relative to the project
    line: int  # from 1
    before: str
    after: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed, timeout (killed, too), survived, equivalent or invalid."""

    source: str
    line: int
    before: str
    after: str
    verdict: str


class Build:
    """How the tests of a build folder are made."""

    def __init__(self, folder: Path, ninja: str) -> None:
        self.folder = folder
        commands = json.loads((folder / "compile_commands.json").read_text())
        self._compile = {
            str(Path(c["file"]).resolve().relative_to(ROOT)): shlex.split(c["command"]) for c in commands
        }
        listed = subprocess.run(
            [ninja, "-C", str(folder), "-t", "commands", "amct_tests"],
            capture_output=True,
            text=True,
            check=True,
        )
        # ": && c++ ... -o tests/cpp/amct_tests ... && cd ... && ..."
        (link,) = [
            part.strip()
            for line in listed.stdout.splitlines()
            for part in line.split("&&")
            if " -o tests/cpp/amct_tests " in part
        ]
        self._link = shlex.split(link)

    def compile(self, source: str, text: Path, to: Path) -> bool:
        """Compile `text` as if it were `source`: in less time, with assertions, and whatever its warnings."""
        command = [word for word in self._compile[source] if word != "-Werror"]
        command += ["-O1", "-UNDEBUG"]
        command[command.index("-o") + 1] = str(to)
        command[command.index("-c") + 1] = str(text)
        command.insert(command.index("-c"), f"-I{(ROOT / source).parent}")
        return subprocess.run(command, cwd=self.folder, capture_output=True, check=False).returncode == 0

    def link(self, first: Path, to: Path) -> None:
        """Link the tests with an object in front of the library that has the same one."""
        command = list(self._link)
        at = command.index("-o")
        command[at + 1] = str(to)
        command.insert(at, str(first))
        subprocess.run(command, cwd=self.folder, capture_output=True, check=True)


def run_tests(program: Path, timeout: float | None) -> str:
    """Whether some test fails: killed, timeout or survived."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = subprocess.run(
                [str(program), "--gtest_brief=1", "--gtest_fail_fast"],
                cwd=folder,
                env=os.environ | {"TMPDIR": folder},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "timeout"
    return "survived" if ended.returncode == 0 else "killed"


def mutants_of(source: str, folder: Path) -> list[Mutant]:
    """All mutants of a source file, in a fixed order."""
    here = folder / source.replace("/", "_")
    here.mkdir()
    mutate = Path(sys.executable).with_name("mutate")
    command = [str(mutate), str(ROOT / source), "cpp", "--noCheck", "--mutantDir", str(here)]
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    original = (ROOT / source).read_text().splitlines()
    found: dict[tuple[int, str], Mutant] = {}
    for path in here.iterdir():
        text = path.read_text()
        lines = text.splitlines()
        at = next((i for i, (a, b) in enumerate(zip(original, lines, strict=False)) if a != b), None)
        if at is None or original[at].lstrip().startswith(("//", "#include", "namespace", "}  // namespace")):
            continue
        after = "\n".join(lines[at : len(lines) - (len(original) - at - 1)])
        found[at, after] = Mutant(source, at + 1, original[at].strip(), after.strip(), text)
    return [found[key] for key in sorted(found)]


def try_mutant(mutant: Mutant, build: Build, whole: dict[str, bytes], timeout: float) -> Outcome:
    """Compile, compare, link, run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, code, program = folder / Path(mutant.source).name, folder / "mutant.o", folder / "tests"
        text.write_text(mutant.text)
        if not build.compile(mutant.source, text, code):
            verdict = "invalid"
        elif code.read_bytes() == whole[mutant.source]:
            verdict = "equivalent"
        else:
            build.link(code, program)
            verdict = run_tests(program, timeout)
    return Outcome(mutant.source, mutant.line, mutant.before, mutant.after, verdict)


def table(outcomes: list[Outcome]) -> str:
    """Figures of each file and of all."""
    lines = [f"{'file':34}{'mutants':>9}{'killed':>8}{'survived':>10}{'score':>8}"]
    sources = sorted({outcome.source for outcome in outcomes})
    for source in [*sources, None]:
        of_source = [outcome for outcome in outcomes if source in (outcome.source, None)]
        counted = Counter(outcome.verdict for outcome in of_source)
        killed, survived = counted["killed"] + counted["timeout"], counted["survived"]
        score = f"{100 * killed / (killed + survived):.1f}%" if killed + survived else "-"
        lines.append(f"{source or 'all':34}{killed + survived:9}{killed:8}{survived:10}{score:>8}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutation testing of sources in src/.")
    parser.add_argument("sources", nargs="+", help="source files, relative to the project")
    parser.add_argument("--build", type=Path, required=True, help="build folder of the tests (Ninja)")
    parser.add_argument("--ninja", required=True, help="the program ninja")
    parser.add_argument("--mutants", type=int, default=0, help="how many are tried, by lot; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the lot")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--at-least", type=float, default=0, help="score in percent below which this fails")
    parser.add_argument("--json", type=Path, help="where the outcomes are written")
    arguments = parser.parse_args()

    build = Build(arguments.build.resolve(), arguments.ninja)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mutants = [mutant for source in sorted(arguments.sources) for mutant in mutants_of(source, folder)]
        print(f"{len(mutants)} mutants of {len(arguments.sources)} files", flush=True)
        if 0 < arguments.mutants < len(mutants):
            mutants = random.Random(arguments.seed).sample(mutants, arguments.mutants)
        # The code that each file gives unchanged, made in the same way; the name of the file may be in it.
        whole: dict[str, bytes] = {}
        for source in sorted({mutant.source for mutant in mutants}):
            text, code = folder / Path(source).name, folder / "whole.o"
            text.write_text((ROOT / source).read_text())
            if not build.compile(source, text, code):
                raise SystemExit(f"{source} does not compile")
            whole[source] = code.read_bytes()
        program = build.folder / "tests" / "cpp" / "amct_tests"
        begin = time.monotonic()
        if run_tests(program, None) != "survived":
            raise SystemExit(f"{program} fails without a mutant")
        timeout = 20 + 10 * (time.monotonic() - begin)

        outcomes = []
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            tried = [pool.submit(try_mutant, mutant, build, whole, timeout) for mutant in mutants]
            for done in concurrent.futures.as_completed(tried):
                outcome = done.result()
                outcomes.append(outcome)
                if outcome.verdict == "survived":
                    print(
                        f"{outcome.source}:{outcome.line}: {outcome.before}  ==>  {outcome.after}", flush=True
                    )
    print(table(outcomes))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    killed = sum(outcome.verdict in ("killed", "timeout") for outcome in outcomes)
    counted = killed + sum(outcome.verdict == "survived" for outcome in outcomes)
    if not counted or 100 * killed / counted < arguments.at_least:
        print(f"fewer than {arguments.at_least:g}% were killed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
