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
ROOT = Path(__file__).parents[2]

# Modules that run what they read, and functions that do.
MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"),
    *("yaml", "code", "codeop", "runpy", "imp", "pty"),
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
ATTRIBUTES = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("torch.serialization.load", "torch.serialization.save", "torch.utils.cpp_extension.load"),
    *("numpy.load", "numpy.lib.format.read_array", "pandas.read_pickle", "os.system", "os.popen"),
    *(f"builtins.{name}" for name in CALLS),
    *("importlib.util.spec_from_file_location", "importlib.machinery.SourceFileLoader", "exec_module"),
    # Of torch.distributed, those that pickle what they are given.
    *(f"{way}_object{rest}" for way in ("all_gather", "gather", "scatter") for rest in ("", "_list")),
    *("broadcast_object_list", "send_object_list", "recv_object_list"),
}
IMPORT = "importlib.import_module"


# What keeps transformers from unpickling weights.
SAFE = {"use_safetensors", "gguf_file"}
# Names that are looked up and cannot be those of a function that runs something.
HARMLESS = {
    "getattr(torch, dtype)",  # a choice of an option
    "getattr(torch, device.type, None)",  # of a device that torch knows
    "getattr(transformers, known[0])",  # what has _from_config, which is all that is called
}


def imported(tree: ast.AST) -> dict[str, str]:
    """What names stand for that were imported: 'torch.distributed' by 'dist'."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                root = name.name.split(".")[0]
                names[name.asname or root] = name.name if name.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return names


def name_of(node: ast.expr, names: dict[str, str]) -> str:
    """'torch.load' of an expression that is such a name."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def is_bad(name: str) -> bool:
    return name in CALLS or name in ATTRIBUTES or name.split(".")[-1] in ATTRIBUTES


def asked_for_by_name(node: ast.Call, name: str, names: dict[str, str]) -> str | None:
    """What a call looks up by a text: an attribute of a module that was imported, or a module."""
    if name not in ("getattr", IMPORT):
        return None
    text = node.args[name == "getattr"] if len(node.args) > (name == "getattr") else None
    known = text.value if isinstance(text, ast.Constant) else None
    if name == IMPORT:
        return None if isinstance(known, str) and known.split(".")[0] not in MODULES else ast.unparse(node)
    owner = name_of(node.args[0], names)
    if owner.split(".")[0] not in {whole.split(".")[0] for whole in names.values()}:
        return None
    is_harmless = isinstance(known, str) and not is_bad(f"{owner}.{known}")
    return None if is_harmless else ast.unparse(node)


def faults_in(tree: ast.AST) -> Iterator[str]:
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.ImportFrom):
            named = (f"{node.module}.{name.name}" for name in node.names)
            yield from (f"from {name}" for name in named if is_bad(name))
        elif isinstance(node, (ast.Attribute, ast.Name)):  # called or not
            name = name_of(node, names)
            if is_bad(name):
                yield name
            if name.endswith(".__dict__") and name.removesuffix(".__dict__") in names.values():
                yield name
        elif isinstance(node, ast.Call):
            name = name_of(node.func, names)
            words = {word.arg for word in node.keywords}
            # Of weights; tokenizers and configurations are JSON.
            if re.search(r"(kind|Model\w*|CausalLM)\.from_pretrained$", name) and not words & SAFE:
                yield "from_pretrained()"
            asked = asked_for_by_name(node, name, names)
            if asked is not None and asked not in HARMLESS:
                yield asked
            if any(
                word.arg == "trust_remote_code"
                and not (isinstance(word.value, ast.Constant) and word.value.value is False)
                for word in node.keywords
            ):
                yield "trust_remote_code"
            yield from words & {"shell", "allow_pickle"}


# By fault: a source that has it.
FAULTS = {
    "import pickle": "import pickle, torch",
    "import runpy": "import runpy",
    "from yaml": "from yaml import load",
    "eval": "eval('1')",
    "exec": "run = exec",
    "builtins.eval": "import builtins as b\nb.eval('1')",
    "torch.load": "import torch\ntorch.load('x')",
    "torch.jit.load": "import torch.jit as j\nread = j.load",
    "numpy.load": "import numpy as np\nnp.load('x')",
    "from torch.load": "from torch import load",
    "getattr(torch, 'load')": "import torch\ngetattr(torch, 'load')('x')",
    "getattr(t, name)": "import torch as t\ngetattr(t, name)",
    "torch.__dict__": "import torch\ntorch.__dict__['load']('x')",
    "importlib.import_module('pickle')": "import importlib\nimportlib.import_module('pickle')",
    "load('dill.source')": "from importlib import import_module as load\nload('dill.source')",
    "importlib.import_module(x)": "import importlib\nimportlib.import_module(x)",
    "torch.distributed.all_gather_object": "import torch.distributed as dist\ndist.all_gather_object([], 1)",
    "trust_remote_code": "f(trust_remote_code=x)",
    "shell": "subprocess.run('x', shell=True)",
    "allow_pickle": "f(allow_pickle=True)",
    "from_pretrained()": "AutoModelForCausalLM.from_pretrained('x')",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_sees_what_it_looks_for(fault: str) -> None:
    assert list(faults_in(ast.parse(FAULTS[fault]))) == [fault]


def test_the_check_passes_what_is_harmless() -> None:
    source = (
        "import importlib, torch\nfrom torch import compile\nimportlib.import_module('transformers.x')\n"
        "getattr(torch, 'float16')\ngetattr(model, name)\nmodel.eval()\nmodel.__dict__['x']\n"
        "f(trust_remote_code=False)\ntorch.compile(model)\n"
        "AutoTokenizer.from_pretrained('x')\nLlamaModel.from_pretrained('x', use_safetensors=True)"
    )
    assert list(faults_in(ast.parse(source))) == []


def test_sources() -> None:
    sources = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "examples").glob("*.py")])
    assert len(sources) > 40
    found = {path.name: list(faults_in(ast.parse(path.read_text("utf-8")))) for path in sources}
    assert {name: faults for name, faults in found.items() if faults} == {}


# Functions of C that run a program, or what another file holds, and the headers of some.
RUNS = re.compile(
    r"(?<![\w.>])(?:system|popen|dlm?open|dlv?sym|exec[lv]p?e?|execveat|fexecve|posix_spawnp?|v?fork|wordexp)\s*\("
    r"|#\s*include\s*<(?:dlfcn|spawn|wordexp)\.h>"
)
NOT_RUN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def runs_in(source: str) -> list[str]:
    """What C++ may run, outside of comments and texts."""
    return RUNS.findall(NOT_RUN.sub('""', source))


def test_the_check_of_cpp_sees_what_it_looks_for() -> None:
    bad = 'std::system(x); ::popen("y", "r");\n#include <dlfcn.h>\nx = dlopen (x, 0); execvp(a, b); fork();'
    assert len(runs_in(bad)) == 6
    good = '// system(x)\n/* popen\n( */ f("dlopen(", "\\"fork(");\nfile.system(x); file_system(x); forks(y);'
    assert runs_in(good) == []


def test_sources_of_cpp() -> None:
    folders = [ROOT / name for name in ("src", "include", "python/bindings")]
    sources = [path for folder in folders for kind in ("*.cc", "*.h") for path in folder.rglob(kind)]
    assert len(sources) > 100
    found = {path.name: runs_in(path.read_text("utf-8")) for path in sources}
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
