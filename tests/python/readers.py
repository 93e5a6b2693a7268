"""Single functions and classes of runtimes, run without the runtimes: `make readers` fetches their files."""

from __future__ import annotations

import ast
import sys
import types
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parents[2] / "build" / "readers"


class Quiet:
    """A logger that takes any message."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def definitions(project: str, file: str, *names: str, **given: Any) -> types.ModuleType:
    """A module with these functions and classes of a file, and nothing else of it.

    Parameters
    ----------
    project : str
        Whose file it is, as scripts/fetch_readers.py calls it. The test is skipped where it was not fetched.
    file : str
        Path in the wheel.
    names : str
        What is defined at the top of the file; ``Class.method`` gives the method as a function.
    given : Any
        What they use besides.
    """
    path = _FOLDER / project / file
    if not path.exists():
        pytest.skip(f"{project} is not here: make readers")
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
