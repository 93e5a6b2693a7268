"""Fetches the code by which runtimes read factors, for tests/python/test_readers.py.

Usage: fetch_readers.py FOLDER

The runtimes want GPUs or NPUs and other versions of torch, so none is installed: of each wheel the files
named here are kept in FOLDER/PROJECT, and the tests take single functions out of them. A wheel that cannot be
had is named as such, and its tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple


class Reader(NamedTuple):
    project: str
    version: str
    files: tuple[str, ...]


READERS = (
    Reader(
        "vllm",
        "0.33.0",
        (
            "vllm/model_executor/model_loader/weight_utils.py",
            "vllm/model_executor/layers/quantization/kv_cache.py",
            "vllm/model_executor/layers/quantization/compressed_tensors/compressed_tensors.py",
        ),
    ),
    Reader(
        "sglang",
        "0.5.23",
        ("sglang/srt/model_loader/weight_utils.py", "sglang/srt/layers/quantization/kv_cache.py"),
    ),
    Reader("lmdeploy", "0.18.0", ("lmdeploy/pytorch/backends/dlinfer/ascend/op_backend.py",)),
    Reader(
        "vllm-ascend",
        "0.23.0",
        (
            "vllm_ascend/quantization/modelslim_config.py",
            "vllm_ascend/quantization/methods/kv_c8.py",
            "vllm_ascend/attention/attention_v1.py",
        ),
    ),
)

# Only text is read, so a wheel for any machine will do.
_PLATFORMS = [
    f"manylinux_2_{minor}_{machine}"
    for machine in ("x86_64", "aarch64")
    for minor in (17, 24, 28, 31, 34, 35, 39)
]


def fetch(reader: Reader, folder: Path) -> None:
    """Put the files of a reader into `folder`/project, unless they are there in its version.

    Raises subprocess.CalledProcessError where pip does not find the wheel, KeyError where it lacks a file.
    """
    target = folder / reader.project
    stamp = target / "VERSION"
    if (
        stamp.exists()
        and stamp.read_text() == reader.version
        and all((target / f).exists() for f in reader.files)
    ):
        return
    print(f"Fetching {reader.project} {reader.version}", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        options = [option for platform in _PLATFORMS for option in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", *options]
        command += ["--python-version", "3.11", "--dest", temporary, f"{reader.project}=={reader.version}"]
        subprocess.run(command, check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in reader.files:
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    stamp.write_text(reader.version)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    for reader in READERS:
        try:
            fetch(reader, Path(sys.argv[1]))
        except (subprocess.CalledProcessError, KeyError, OSError) as error:
            print(
                f"warning: no {reader.project} {reader.version}, its tests are skipped: {error}",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
