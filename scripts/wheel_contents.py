"""What of others is inside a wheel: the list of components (CycloneDX) and their licences.

Bundled libraries are the files in the wheel. What is compiled in is found in the build's own record of the
headers that it read. dpkg says of which package each of them is, with version and licence; a package that
LICENSES does not know fails, so that nothing gets into a wheel unseen.
"""

from __future__ import annotations

import datetime
import hashlib
import platform
import re
import subprocess
import uuid
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

SBOM = "sboms/amct-pytorch.cdx.json"
NOTICES = "licenses/THIRD_PARTY_NOTICES.txt"

# Debian's source packages, of which the copyright files were read for these.
LICENSES = {
    "bzip2": "bzip2-1.0.6",
    "cli11": "BSD-3-Clause",
    "fmtlib": "MIT",
    "highway": "Apache-2.0",
    "libzip": "BSD-3-Clause",
    "nlohmann-json3": "MIT",
    "onetbb": "Apache-2.0",
    "openssl": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
}
# The system's, whose libraries are not inside: declarations, and templates under GCC's runtime exception.
_OF_THE_SYSTEM = re.compile(r"(gcc-\d+|gcc-defaults|glibc|linux|libxcrypt|zlib|python3(\.\d+|-defaults))$")
_LICENSES_OF_DEBIAN = Path("/usr/share/common-licenses")


@dataclass
class Part:
    """A project of which something is in the wheel."""

    name: str
    version: str
    license: str  # SPDX
    purl: PackageURL
    notice: str
    files: list[str] = field(default_factory=list)  # in the wheel; none if it is compiled in


def parts_of(wheel: Path, build: Path, ninja: Path, nanobind: Path) -> list[Part]:
    """The parts, by name.

    Parameters
    ----------
    wheel
        The folder of an unpacked wheel, libraries moved in.
    build
        The build tree that it comes of.
    ninja
        The program.
    nanobind
        The installed package that was built with.
    """
    parts: dict[str, Part] = {}
    for file in sorted(wheel.glob("*.libs/*")):
        # As auditwheel names it: libzip-5c554ca2.so.4.0
        original = re.sub(r"-[0-9a-f]{8}(?=\.so)", "", file.name)
        package = _package_of(f"*/{original}")
        part = _debian_part(package)
        parts.setdefault(part.name, part).files.append(file.relative_to(wheel).as_posix())
    headers = _headers(build, ninja)
    for package in sorted(_packages_of({header for header in headers if header.startswith("/usr/")})):
        if not _OF_THE_SYSTEM.match(_field(package, "source:Package")):
            part = _debian_part(package)
            parts.setdefault(part.name, part)
    if not any("/nanobind/include/" in header for header in headers):
        raise RuntimeError(f"{build} did not read the headers of nanobind: not the build of a wheel")
    for part in _nanobind_parts(nanobind):
        parts[part.name] = part
    return [parts[name] for name in sorted(parts)]


def sbom(wheel: Path, name: str, version: str, parts: list[Part], epoch: int) -> str:
    """A CycloneDX document; the same for the same wheel."""
    licenses = LicenseFactory()
    root = Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=name,
        purl=PackageURL("pypi", name=name, version=version),
    )
    bom = Bom()
    components = []
    for part in parts:
        files = [
            Component(
                name=file,
                type=ComponentType.FILE,
                bom_ref=file,
                hashes=[HashType.from_hashlib_alg("sha256", _sha256(wheel / file))],
            )
            for file in part.files
        ]
        # The library's own hash stands where scanners look for it, too.
        hashes = [digest for file in files for digest in file.hashes] if len(files) == 1 else []
        component = Component(
            name=part.name,
            version=part.version,
            type=ComponentType.LIBRARY,
            bom_ref=part.name,
            purl=part.purl,
            licenses=[licenses.make_from_string(part.license)],
            hashes=hashes,
            components=files,
            properties=[Property(name="amct:linkage", value="bundled" if files else "compiled in")],
        )
        components.append(component)
        bom.components.add(component)
    bom.metadata.component = root
    bom.metadata.timestamp = datetime.datetime.fromtimestamp(epoch, tz=datetime.timezone.utc)
    bom.register_dependency(root, components)
    files = sorted(path for path in wheel.rglob("*") if path.is_file())
    content = "".join(f"{path.relative_to(wheel)} {_sha256(path)}\n" for path in files)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, content)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def notices(parts: list[Part]) -> str:
    """The licences of all parts, and the texts that these refer to."""
    lines = [
        "Third-party notices",
        "",
        "This package contains the following software of others, as libraries or compiled in. It does not",
        "follow that they endorse it.",
        "",
    ]
    lines += [f"* {part.name} {part.version} ({part.license})" for part in parts]
    for part in parts:
        lines += ["", "=" * 100, f"{part.name} {part.version}", "=" * 100, "", part.notice.strip()]
    text = "\n".join(lines) + "\n"
    for name in sorted(set(re.findall(rf"{_LICENSES_OF_DEBIAN}/([\w.+-]*\w)", text))):
        license_file = _LICENSES_OF_DEBIAN / name
        heading = ["", "=" * 100, f"{license_file}", "=" * 100, ""]
        text += "\n".join(heading) + "\n" + license_file.read_text(encoding="utf-8").strip("\n") + "\n"
    return text


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _headers(build: Path, ninja: Path) -> set[str]:
    """The files that the compilers read, by ninja's log."""
    lines = _output(ninja, "-C", build, "-t", "deps").splitlines()
    return {line.strip() for line in lines if line.startswith(" ")}


def _packages_of(files: set[str]) -> set[str]:
    result = subprocess.run(
        ["dpkg-query", "--search", *sorted(files)], capture_output=True, text=True, check=False
    )
    unknown = [line for line in result.stderr.splitlines() if "no path found" in line]
    if result.returncode != 0 or unknown:
        raise RuntimeError(f"dpkg does not know of which package these are: {result.stderr.strip()}")
    return {
        package
        for line in result.stdout.splitlines()
        if not line.startswith("diversion ")
        for package in line.rpartition(": ")[0].split(", ")
    }


def _package_of(pattern: str) -> str:
    packages = _packages_of({pattern})
    if len(packages) != 1:
        raise RuntimeError(f"{pattern} is in {len(packages)} packages: {', '.join(sorted(packages))}")
    return packages.pop()


def _field(package: str, name: str) -> str:
    return _output("dpkg-query", "--show", f"--showformat=${{{name}}}", package)


def _debian_part(package: str) -> Part:
    source, name, version, architecture = (
        _field(package, field) for field in ("source:Package", "Package", "Version", "Architecture")
    )
    if source not in LICENSES:
        raise RuntimeError(
            f"{package} gets into the wheel: read its copyright file and add {source} to LICENSES"
        )
    system = platform.freedesktop_os_release()
    return Part(
        name=source,
        version=version,
        license=LICENSES[source],
        purl=PackageURL(
            "deb",
            namespace=system["ID"],
            name=name,
            version=version,
            qualifiers={
                "arch": architecture,
                "distro": f"{system['ID']}-{system.get('VERSION_ID', 'sid')}",
                "upstream": source,
            },
        ),
        notice=Path(f"/usr/share/doc/{name}/copyright").read_text(encoding="utf-8"),
    )


def _nanobind_parts(folder: Path) -> list[Part]:
    """Nanobind, and the hash map that it brings along."""
    version = next(iter(metadata.distributions(name="nanobind", path=[str(folder.parent)]))).version
    license_file = folder.parent / f"nanobind-{version}.dist-info" / "licenses" / "LICENSE"
    header = (folder / "ext" / "robin_map" / "include" / "tsl" / "robin_map.h").read_text(encoding="utf-8")
    comment = header.partition("*/")[0].removeprefix("/**").strip()
    robin_license = "\n".join(line.strip().removeprefix("*").strip() for line in comment.splitlines())
    return [
        Part(
            name="nanobind",
            version=version,
            license="BSD-3-Clause",
            purl=PackageURL("pypi", name="nanobind", version=version),
            notice=license_file.read_text(encoding="utf-8"),
        ),
        Part(
            name="robin-map",
            version=_robin_version(folder),
            license="MIT",
            purl=PackageURL(
                "github", namespace="tessil", name="robin-map", version=f"v{_robin_version(folder)}"
            ),
            notice=robin_license,
        ),
    ]


def _robin_version(folder: Path) -> str:
    text = (folder / "ext" / "robin_map" / "include" / "tsl" / "robin_growth_policy.h").read_text(
        encoding="utf-8"
    )
    numbers = re.findall(r"#define TSL_RH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text)
    if len(numbers) != 3:
        raise RuntimeError("robin_growth_policy.h does not say its version")
    return ".".join(numbers)
