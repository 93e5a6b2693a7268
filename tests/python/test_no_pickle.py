"""Nothing is unpickled, and no text of a file is run: neither in the sources nor while the package works."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import amct_pytorch
import pytest
from helpers import run_python

PACKAGE = Path(amct_pytorch.__file__).parent

# Modules that run what they read, and calls that do.
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "yaml",
    "code",
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
ATTRIBUTES = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("numpy.load", "np.load", "pandas.read_pickle", "os.system", "os.popen"),
    # Of torch.distributed, those that pickle what they are given.
    *(f"{way}_object{rest}" for way in ("all_gather", "gather", "scatter") for rest in ("", "_list")),
    *("broadcast_object_list", "send_object_list", "recv_object_list"),
}


# What keeps transformers from unpickling weights.
SAFE = {"use_safetensors", "gguf_file"}


def name_of(node: ast.expr) -> str:
    """'torch.load' of an expression that is such a name."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.ImportFrom):
            named = (f"{node.module}.{name.name}" for name in node.names)
            yield from (f"from {name}" for name in named if name in ATTRIBUTES)
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            words = {word.arg for word in node.keywords}
            # Of weights; tokenizers and configurations are JSON.
            if re.search(r"(kind|Model\w*|CausalLM)\.from_pretrained$", name) and not words & SAFE:
                yield "from_pretrained()"
            if name in CALLS or name in ATTRIBUTES or name.split(".")[-1] in ATTRIBUTES:
                yield f"{name}()"
            if any(
                word.arg == "trust_remote_code"
                and not (isinstance(word.value, ast.Constant) and word.value.value is False)
                for word in node.keywords
            ):
                yield "trust_remote_code"
            if any(word.arg == "shell" for word in node.keywords):
                yield "shell"


def test_the_check_sees_what_it_looks_for() -> None:
    source = (
        "import pickle, torch\nfrom yaml import load\neval('1')\ntorch.load('x')\n"
        "dist.all_gather_object([], 1)\nf(trust_remote_code=False)\nf(trust_remote_code=x)\n"
        "subprocess.run('x', shell=True)\n"
        "from torch import load\nAutoModelForCausalLM.from_pretrained('x')\n"
        "AutoTokenizer.from_pretrained('x')\nLlamaModel.from_pretrained('x', use_safetensors=True)"
    )
    assert sorted(faults_in(ast.parse(source))) == sorted(
        [
            *("import pickle", "from yaml", "eval()", "torch.load()", "dist.all_gather_object()"),
            *("trust_remote_code", "shell", "from torch.load", "from_pretrained()"),
        ]
    )


def test_sources() -> None:
    examples = Path(__file__).parents[2] / "examples"
    sources = sorted([*PACKAGE.rglob("*.py"), *examples.glob("*.py")])
    assert len(sources) > 40
    found = {path.name: list(faults_in(ast.parse(path.read_text("utf-8")))) for path in sources}
    assert {name: faults for name, faults in found.items() if faults} == {}


BLOCKED = """
import os, pathlib, sys, builtins, io, pickle
import torch, torch.distributed, torch.serialization
import amct_pytorch as amct
import amct_pytorch.evaluation, amct_pytorch.report

def blocked(*args, **kwargs):
    raise AssertionError("something was pickled or unpickled")

def block():
    for module, names in (
        (pickle, ("load", "loads", "dump", "dumps", "Unpickler", "Pickler", "_Unpickler", "_Pickler")),
        (torch, ("load", "save")),
        (torch.serialization, ("load", "save")),
    ):
        for name in names:
            setattr(module, name, blocked)
    try:
        pickle.loads(b"")
    except AssertionError:
        return
    raise SystemExit("it is not blocked")
"""


def test_calibrating_and_going_on(tmp_path: Path) -> None:
    script = (
        BLOCKED
        + """
import jinja2, matplotlib.pyplot  # jinja2 pickles a number as it is imported
sys.path.insert(0, sys.argv[2])
from helpers import Decoder, config_for, tokens
folder = pathlib.Path(sys.argv[1])
config = config_for(folder, Decoder(), None, "batch_num: 3")
block()
model = Decoder()
more = {"snapshot_file": str(folder / "s"), "snapshot_batches": 1, "counts_file": str(folder / "all.counts")}
try:
    with amct.calibrate(model, config, str(folder / "record.txt"), **more):
        model(tokens(0))
        raise KeyError
except KeyError:
    pass
assert (folder / "s").exists()
model = Decoder()
with amct.calibrate(model, config, str(folder / "record.txt"), resume=True, **more) as run:
    assert run.batches_done == 1
    for seed in (1, 2):
        model(tokens(seed))
amct.solve_counts(folder / "all.counts", folder / "other.txt", act_algo="mse")
amct.merge_counts([folder / "all.counts"], folder / "merged.counts")
for to in ("json", "npz", "lmdeploy"):
    amct.export_record(folder / "record.txt", to, folder / to)
    amct.verify_export(folder / to, to, record=folder / "record.txt")
for kind in ("html", "json", "md"):
    amct.report(folder / "record.txt", folder / "merged.counts", folder / kind, format=kind)
print(len(amct.read_record(folder / "record.txt")))
"""
    )
    assert run_python(script, tmp_path, Path(__file__).parent).stdout == "4\n"


def test_evaluating_a_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    script = (
        BLOCKED
        + """
import transformers
sys.path.insert(0, sys.argv[2])
from command_line import saved_model
from amct_pytorch.cli import app
folder = pathlib.Path(sys.argv[1])
arguments = saved_model(folder, "llama")
block()
def run(*words):
    try:
        app(list(map(str, words)), prog_name="amct-pytorch")
    except SystemExit as end:
        assert not end.code, end.code
run("calibrate", *arguments, "--tap", "cache", "--record", folder / "record.txt", "--counts", folder / "c")
run("evaluate", *arguments[:4], "--sequence-length", "12", "--record", folder / "record.txt")
"""
    )
    run_python(script, tmp_path, Path(__file__).parent)


def test_processes_that_calibrate_together(tmp_path: Path) -> None:
    """What they tell each other is tensors (`_distributed.py`), so blocking what pickles stops nothing."""
    if not torch_distributed_is_there():
        pytest.skip("torch was built without torch.distributed")
    script = (
        BLOCKED
        + """
import torch.multiprocessing
sys.path.insert(0, sys.argv[2])
from helpers import Decoder, config_for, tokens
folder, rank = pathlib.Path(sys.argv[1]), int(sys.argv[3])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
block()
for name in ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"):
    setattr(torch.distributed, name, blocked)
model = Decoder()
group = torch.distributed.group.WORLD
with amct.calibrate(model, str(folder / "config.json"), str(folder / "record.txt"), process_group=group):
    model(tokens(rank))
torch.distributed.barrier()
print(len(amct.read_record(folder / "record.txt")))
torch.distributed.destroy_process_group()
"""
    )
    import threading

    from helpers import Decoder, config_for

    config_for(tmp_path, Decoder(), None, "batch_num: 2")
    said: list[str] = []

    def one(rank: int) -> None:
        said.append(run_python(script, tmp_path, Path(__file__).parent, rank).stdout)

    ranks = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert said == ["4\n", "4\n"]


def torch_distributed_is_there() -> bool:
    import torch.distributed

    return torch.distributed.is_available()
