"""What is inside the wheels and the source distribution of `make wheel`."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib import resources
from pathlib import Path, PurePosixPath

import pytest
import wheel_contents
from conftest import ROOT, WHEELS, Wheel
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

MIB = 1 << 20


def _platform_libraries(tag: str) -> set[str]:
    """The libraries that every system of a manylinux tag has."""
    policies = json.loads((resources.files("auditwheel") / "policy/manylinux-policy.json").read_text())
    (policy,) = (policy for policy in policies if policy["name"] == tag.removesuffix("_x86_64"))
    return {*policy["lib_whitelist"], "ld-linux-x86-64.so.2"}


def _dynamic(content: bytes) -> dict[str, list[str]]:
    section = ELFFile(io.BytesIO(content)).get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    result: dict[str, list[str]] = {}
    for tag in section.iter_tags():
        for field in ("needed", "soname", "rpath", "runpath"):
            if hasattr(tag, field):
                result.setdefault(field, []).append(getattr(tag, field))
    return result


def _sbom(wheel: Wheel) -> dict[str, dict[str, object]]:
    return {part["name"]: part for part in json.loads(wheel.info(wheel_contents.SBOM))["components"]}


def test_there_is_one_wheel_for_all_stable_pythons() -> None:
    stable = [path.name for path in WHEELS if "-abi3-" in path.name]
    others = [path.name.split("-")[2] for path in WHEELS if "-abi3-" not in path.name]
    assert len(stable) <= 1
    assert all("-cp312-abi3-" in name for name in stable)
    assert set(others) <= {"cp310", "cp311"}
    assert len(others) == len(set(others))


def test_it_is_for_many_linuxes(wheel: Wheel) -> None:
    interpreter, abi, platform = wheel.tags
    assert re.fullmatch(r"manylinux_2_\d+_x86_64", platform)
    assert f"Tag: {interpreter}-{abi}-{platform}" in wheel.info("WHEEL").splitlines()
    assert "Root-Is-Purelib: false" in wheel.info("WHEEL")


def test_it_is_small(wheel: Wheel) -> None:
    assert wheel.path.stat().st_size < 8 * MIB


def test_it_keeps_to_the_stable_abi(wheel: Wheel) -> None:
    if wheel.tags[1] != "abi3":
        pytest.skip("for one version of Python")
    audit = [Path(sys.executable).parent / "abi3audit", "--strict", "--report", wheel.path]
    done = subprocess.run(audit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ((report),) = json.loads(done.stdout)["specs"].values()
    (module,) = report["wheel"]
    assert module["name"] == "_core.abi3.so"
    assert module["result"]["is_abi3"]
    assert module["result"]["non_abi3_symbols"] == []


def test_every_library_is_inside_or_of_the_system(wheel: Wheel) -> None:
    inside = {PurePosixPath(name).name for name in wheel.files if ".libs/" in name}
    allowed = inside | _platform_libraries(wheel.tags[2])
    files = wheel.elf_files()
    assert any(name.startswith("amct_pytorch/_core.") for name in files)
    assert "amct_pytorch.scripts/amct" in files
    for name, content in files.items():
        dynamic = _dynamic(content)
        assert set(dynamic.get("needed", [])) <= allowed, name
        for path in ":".join(dynamic.get("rpath", []) + dynamic.get("runpath", [])).split(":"):
            assert path == "" or path.startswith("$ORIGIN"), name


def test_bundled_libraries_have_names_of_their_own(wheel: Wheel) -> None:
    """So that another copy of the same library may be in the process."""
    bundled = {name: content for name, content in wheel.elf_files().items() if ".libs/" in name}
    assert bundled
    for name, content in bundled.items():
        assert re.search(r"-[0-9a-f]{8}\.so", name)
        assert _dynamic(content)["soname"] == [PurePosixPath(name).name]


def test_it_is_stripped(wheel: Wheel) -> None:
    for name, content in wheel.elf_files().items():
        sections = {section.name for section in ELFFile(io.BytesIO(content)).iter_sections()}
        assert not {
            section for section in sections if section == ".symtab" or section.startswith(".debug")
        }, name


def test_no_folder_of_the_build_shows(wheel: Wheel) -> None:
    places = {str(ROOT), str(Path(sys.prefix))}
    for name, content in wheel.files.items():
        assert [place for place in places if place.encode() in content] == [], name
    ours = [name for name in wheel.elf_files() if ".libs/" not in name]
    assert len(ours) == 2
    for name in ours:
        for place in (f"{Path.home()}/", f"{tempfile.gettempdir()}/", "site-packages", "build/wheel"):
            assert place.encode() not in wheel.files[name], name


def test_what_it_records_is_so(wheel: Wheel) -> None:
    rows = list(csv.reader(io.StringIO(wheel.info("RECORD"))))
    assert {name for name, _, _ in rows} == set(wheel.files)
    for name, digest, size in rows:
        if not name.endswith("/RECORD"):
            sha256 = (
                base64.urlsafe_b64encode(hashlib.sha256(wheel.files[name]).digest()).rstrip(b"=").decode()
            )
            assert (digest, int(size)) == (f"sha256={sha256}", len(wheel.files[name])), name


def test_the_list_of_components_is_valid(wheel: Wheel) -> None:
    document = wheel.info(wheel_contents.SBOM)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    # The validator does tell what is wrong.
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.replace('"library"', '"libary"'))
        is not None
    )
    about = json.loads(document)["metadata"]["component"]
    assert (about["name"], about["version"]) == ("amct-pytorch", wheel.path.name.split("-")[1])
    assert [
        name for name in wheel.files if "/sboms/" in name and not name.endswith(wheel_contents.SBOM)
    ] == []


def test_every_bundled_library_is_a_component(wheel: Wheel) -> None:
    listed = {
        file["name"]: file["hashes"][0]["content"]
        for part in _sbom(wheel).values()
        for file in part.get("components", [])
    }
    bundled = {name: content for name, content in wheel.files.items() if ".libs/" in name}
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in bundled.items()}


def test_what_is_compiled_in_is_a_component(wheel: Wheel) -> None:
    parts = _sbom(wheel)
    compiled_in = {name for name, part in parts.items() if not part.get("components")}
    assert compiled_in >= {"cli11", "nanobind", "nlohmann-json3", "robin-map"}
    assert {"protobuf", "onetbb", "libzip", "highway", "fmtlib"} <= set(parts) - compiled_in
    for part in parts.values():
        assert part["version"]
        assert part["licenses"]
        assert re.match(r"pkg:(deb|pypi|github)/", part["purl"])


def test_every_component_has_its_notice(wheel: Wheel) -> None:
    text = wheel.info(wheel_contents.NOTICES)
    rule = "=" * 100
    sections = dict(re.findall(rf"{rule}\n([^\n]+)\n{rule}\n\n(.+?)(?=\n{rule}|\Z)", text, re.DOTALL))
    for name, part in _sbom(wheel).items():
        notice = sections[f"{name} {part['version']}"]
        assert re.search(r"copyright", notice, re.IGNORECASE), name
        assert len(notice) > 500, name
    for reference in re.findall(r"/usr/share/common-licenses/([\w.+-]*\w)", text):
        assert len(sections[f"/usr/share/common-licenses/{reference}"]) > 1000
    assert (
        f"License-File: {PurePosixPath(wheel_contents.NOTICES).name}" in wheel.info("METADATA").splitlines()
    )


def test_the_source_distribution_is_whole(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    sources = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "cmake", "include", "python", "src"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert sources
    assert {*sources, "CMakeLists.txt", "VERSION", "pyproject.toml", "README.md", "PKG-INFO"} <= names
    assert {name.partition("/")[0] for name in names} & {
        "build",
        "dist",
        ".ci",
        ".git",
        "tests",
        "bench",
    } == set()
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
