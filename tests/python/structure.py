"""What a user may know a model by: what its modules are, what they hold, and the hooks on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# What calibration keeps in a module's __dict__, where neither state_dict nor named_modules looks.
OURS = "_amct_"
HELD = ("_modules", "_parameters", "_buffers")


def structure_of(model: torch.nn.Module) -> dict[str, Any]:
    """All of it by name, in order; see `changes`."""
    found: dict[str, Any] = {"state_dict": " ".join(model.state_dict())}
    for path, module in model.named_modules():
        found[f"{path}: itself"] = module
        found[f"{path}: class"] = type(module)
        found[f"{path}: forward"] = type(module).forward
        for name, value in vars(module).items():
            if name in HELD:
                found |= {f"{path}.{name}[{key}]": item for key, item in value.items()}
            elif name == "_non_persistent_buffers_set":
                found[f"{path}.{name}"] = " ".join(sorted(value))
            elif not name.startswith(OURS):
                found[f"{path}.{name}"] = value
    found |= {f"{name}: requires_grad": p.requires_grad for name, p in model.named_parameters()}
    return found


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the very same object any more; texts may be equal ones."""
    gone = object()
    names = [name for name in {**before, **now} if not _same(before.get(name, gone), now.get(name, gone))]
    return names or [name for name, other in zip(before, now, strict=True) if name != other]


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and one == other)


Hooks = dict[str, list[tuple[Any, Any]]]


def hooks_of(model: torch.nn.Module) -> Hooks:
    """The hooks of every kind on all modules, and what is known of them, in the order in which they run."""
    return {
        f"{path}.{name}": list(value.items())
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if "_hooks" in name and isinstance(value, dict)
    }


def those_of(hooks: Hooks, others: Hooks) -> Hooks:
    """The hooks that are among others, too."""
    return {place: [hook for hook in here if hook in others[place]] for place, here in hooks.items()}


def register_all(module: torch.nn.Module, name: str, note: Callable[[str], None], backward: bool) -> None:
    """Hooks of every kind that a module takes, which note what they are; of `backward` where it can run."""

    def hook(kind: str) -> Callable[..., None]:
        return lambda *args, **kwargs: note(f"{name}: {kind}")

    module.register_forward_pre_hook(hook("before"))
    module.register_forward_pre_hook(hook("before, with words"), with_kwargs=True)
    module.register_forward_hook(hook("after"))
    module.register_forward_hook(hook("after, with words"), with_kwargs=True, always_call=True)
    module.register_state_dict_pre_hook(hook("before saving"))
    module.register_state_dict_post_hook(hook("after saving"))
    module.register_load_state_dict_pre_hook(hook("before loading"))
    module.register_load_state_dict_post_hook(hook("after loading"))
    if backward:
        module.register_full_backward_pre_hook(hook("before going back"))
        module.register_full_backward_hook(hook("after going back"))
