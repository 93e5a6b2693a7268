"""What a user does with the installed package; run in an empty folder by the Python that has it.

Usage: use_wheel.py CONFIG RECORD MODULE...
CONFIG is a configuration of three batches, RECORD gets the factors, and the modules are imported in that
order before anything is done. Prints as JSON which files of libraries the process has loaded.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

config, record, *modules = sys.argv[1:]
for name in modules:
    importlib.import_module(name)

import amct_pytorch as amct  # noqa: E402
import torch  # noqa: E402


class Layer(torch.nn.Module):
    """Projections that hand on some of their inputs, so that every machine gets the same bits."""

    def __init__(self) -> None:
        super().__init__()
        self.k_proj = torch.nn.Linear(32, 16, bias=False)
        self.v_proj = torch.nn.Linear(32, 16, bias=False)
        with torch.no_grad():
            self.k_proj.weight.copy_(torch.eye(32)[:16])
            self.v_proj.weight.copy_(torch.eye(32)[16:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.k_proj(x), self.v_proj(x)), -1)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(Layer(), Layer())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def batch(number: int) -> torch.Tensor:
    """Numbers without a pattern, thinner towards the ends."""
    index = torch.arange(1, 2 * 40 * 32 + 1, dtype=torch.int64) + number * 7919
    uniform = (index * 40503 % 65536 - 32768).double() / 32768
    return (uniform**3).float().reshape(2, 40, 32)


model = Model()
amct.create_quant_cali_config("made.json", model)
assert json.loads(Path("made.json").read_text(encoding="utf-8"))["batch_num"] == 1
calibration_model = amct.create_quant_cali_model(config, record, model)
with torch.no_grad():
    for i in range(3):
        x = batch(i)
        assert torch.equal(calibration_model(x), x)
assert len(amct.read_record(record)) == 4

if "google.protobuf" in sys.modules:  # it works, too
    from google.protobuf.struct_pb2 import Struct

    message = Struct()
    message.update({"layers": 4})
    assert Struct.FromString(message.SerializeToString())["layers"] == 4

mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
print(json.dumps(sorted({line.split(maxsplit=5)[5] for line in mapped if ".so" in line})))
