"""Single functions and classes of runtimes, run without the runtimes: `make readers` fetches their files."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import pytest

_FOLDER = Path(__file__).parents[2] / "build" / "readers"


def missing(what: str) -> NoReturn:
    """Skip the test that needs what is missing; where AMCT_NEED_READERS is 1, as in CI, fail it instead."""
    if os.environ.get("AMCT_NEED_READERS") == "1":
        pytest.fail(f"{what}, and AMCT_NEED_READERS says that it must be")
    pytest.skip(what)


def library(name: str) -> Any:
    """A module that a runtime uses; see `missing`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"{name} is not installed")


class Quiet:
    """A logger that takes any message."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def definitions(project: str, file: str, *names: str, **given: Any) -> types.ModuleType:
    """A module with these functions and classes of a file, and nothing else of it.

    Parameters
    ----------
    project : str
        Whose file it is, as scripts/fetch_readers.py calls it; see `missing` for one that was not fetched.
    file : str
        Path in the wheel.
    names : str
        What is defined at the top of the file; ``Class.method`` gives the method as a function.
    given : Any
        What they use besides.
    """
    path = _FOLDER / project / file
    if not path.exists():
        missing(f"{file} of {project} is not here: make readers")
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}": method for method in methods}
    assert not set(names) - set(found), f"{project} has no {sorted(set(names) - set(found))} any more"
    future = ast.parse("from __future__ import annotations").body
    tree = ast.Module([*future, *(found[name] for name in names)], type_ignores=[])
    module = types.ModuleType(f"{project}_{path.stem}")
    vars(module).update(given)
    sys.modules[module.__name__] = module  # where pydantic looks for what annotations name
    exec(compile(tree, path, "exec"), vars(module))
    return module
