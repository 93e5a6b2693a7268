"""NumPy archives that somebody made to break their reader."""

from __future__ import annotations

import struct
import time
import zipfile
from pathlib import Path

import amct_pytorch as amct
import numpy as np
import pytest

MIB = 1 << 20
MOST_ARRAYS = 131_073


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def refused(path: Path, *words: str) -> None:
    """`verify` says that the archive is no good, and takes no time and memory for it."""
    start = time.monotonic()
    report = amct.verify_export(path, "npz")
    assert time.monotonic() - start < 20
    assert not report.ok
    text = str(report)
    for word in words:
        assert word in text, text


def archive_of(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def test_arrays_that_grow(tmp_path: Path) -> None:
    """Zeros compress to a thousandth."""
    begin = header("(16777216,)")
    large = archive_of(tmp_path / "large.npz", [("a.scale.npy", begin + bytes(64 * MIB - len(begin) + 1))])
    assert large.stat().st_size < MIB
    refused(large, "too large for factors")
    limit = archive_of(tmp_path / "limit.npz", [("a.scale.npy", begin + bytes(64 * MIB - len(begin)))])
    report = str(amct.verify_export(limit, "npz"))
    assert "too large" not in report
    many = [(f"{i}.scale.npy", begin + bytes(52 * MIB)) for i in range(5)]
    refused(archive_of(tmp_path / "many.npz", many), "too large for factors")


def test_a_size_that_is_not_so(tmp_path: Path) -> None:
    """The directory of the archive says 1 KiB, or 4 GiB less 1, of 1 MiB."""
    path = archive_of(tmp_path / "a.npz", [("a.scale.npy", header("(262144,)") + bytes(MIB))])
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", len(header("(262144,)")) + MIB)
    assert content.count(size) == 2
    for said in (1024, 2**32 - 2):
        path.write_bytes(content.replace(size, struct.pack("<I", said)))
        refused(path)


def test_more_arrays_than_layers_have(tmp_path: Path) -> None:
    """Empty files, without compression: an archive of as many as may be, and of one more."""

    def archive(count: int) -> Path:
        local, central = [], []
        offset = 0
        for i in range(count):
            name = b"%06d" % i
            fixed = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
            local.append(b"PK\x03\x04" + fixed + name)
            central.append(b"PK\x01\x02\x14\x00" + fixed + struct.pack("<3H2I", 0, 0, 0, 0, offset) + name)
            offset += len(local[-1])
        directory = b"".join(central)
        many = struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, count, count, len(directory), offset)
        locator = struct.pack("<IQI", 0, offset + len(directory), 1)
        end = struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        path = tmp_path / "many.npz"
        path.write_bytes(
            b"".join(local) + directory + b"PK\x06\x06" + many + b"PK\x06\x07" + locator + b"PK\x05\x06" + end
        )
        return path

    path = archive(MOST_ARRAYS)
    with zipfile.ZipFile(path) as made:
        assert len(made.namelist()) == MOST_ARRAYS
    assert "too many" not in str(amct.verify_export(path, "npz"))
    refused(archive(MOST_ARRAYS + 1), "too many arrays")


def test_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    with path.open("wb") as file:
        file.truncate((512 << 20) + 1)
    refused(path, "too large for factors")


@pytest.mark.parametrize(
    "content",
    [
        header("(1,)")[:9],
        header("(1,)")[:11],
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(64),
        b"\x93NUMPY\x01\x00\xff\xff",
        header("(18446744073709551617,)") + bytes(4),
        header("(1,") + bytes(4),
        header("()", "|O") + b"\x80\x04K\x01.",  # pickled
        header("()", "<U1") + struct.pack("<I", 0x110000),
        header("()", "<U2") + struct.pack("<II", 0xD800, 0xFFFFFFFF),
        header("(1,)") + b"\x00",
    ],
)
def test_arrays_that_are_none(content: bytes, tmp_path: Path) -> None:
    for name in ("a.scale.npy", "amct.npy", "../../a.scale.npy", "/a.scale.npy", "a\\b.npy"):
        path = archive_of(tmp_path / "a.npz", [(name, content)])
        report = amct.verify_export(path, "npz")
        assert not report.ok
        assert all(line.isprintable() for line in str(report).splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"a.scale": np.array([print], dtype=object)})
    refused(tmp_path / "a.npz")
