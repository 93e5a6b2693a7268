"""Settings of a cache as words: ``int8:per_channel:mse``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amct_pytorch import _core
from amct_pytorch._core import LayerResult
from amct_pytorch.discovery import KVLayer

_GRANULARITIES = {"per_tensor": 0, "per_channel": 1, "per_head": 2}
# The setting and its value that each word stands for.
_WORDS: dict[str, tuple[str, Any]] = {
    **{word: ("quant_granularity", number) for word, number in _GRANULARITIES.items()},
    **{word: ("act_algo", word) for word in _core.algorithm_names()},
    "symmetric": ("asymmetric", False),
    "asymmetric": ("asymmetric", True),
    "query_weighted": ("query_weighted", True),
}
# What a cache is called that stores keys or values as they are.
UNQUANTIZED = "full"


@dataclass(frozen=True)
class Candidate:
    """One way of storing keys and values.

    Attributes
    ----------
    name : str
        ``FORMAT[:GRANULARITY][:SEARCH][:symmetric][:query_weighted]``; the format may be two, of keys and of
        values: ``int8+int4``. ``full`` is no format: what is stored stays as it is.
    keys, values : dict or None
        Settings for `solve_counts`; None where they stay as they are.
    """

    name: str
    keys: Mapping[str, Any] | None
    values: Mapping[str, Any] | None

    @property
    def query_weighted(self) -> bool:
        """Whether it needs the weights of channels."""
        return any(
            settings is not None and settings["query_weighted"] for settings in (self.keys, self.values)
        )

    def solve(
        self,
        counts_file: str,
        layers: Sequence[KVLayer],
        sink_tokens: int | None = None,
    ) -> list[LayerResult]:
        """The factors of the layers that are quantized, from what a calibration saw per channel.

        Parameters
        ----------
        counts_file : str
            A counts file.
        layers : sequence of KVLayer
            The model's, in order; the heads of the first are those of factors per head.
        sink_tokens : int, optional
            What the factors are to say of first tokens; without it what the counts say.

        Raises
        ------
        ValueError
            The counts are of another model, or the settings do not fit them.
        """
        roles = {layer.name: layer.role for layer in layers}
        heads = next((layer.heads for layer in layers), None)
        found: dict[str, LayerResult] = {}
        for settings, role in ((self.keys, "key"), (self.values, "value")):
            if settings is None or (role == "value" and settings == self.keys):
                continue
            given = dict(settings)
            if given.get("quant_granularity") == _GRANULARITIES["per_head"] and heads is not None:
                given["head_num"] = heads
            if sink_tokens is not None:
                given["sink_tokens"] = sink_tokens
            both = self.keys == self.values
            for result in _core.solve_counts(counts_file, given):
                if result.name not in roles:
                    raise ValueError(
                        f"{counts_file}: the counts are of another model; this one has no layer "
                        f"'{result.name}'"
                    )
                if both or roles.get(result.name) == role:
                    found[result.name] = result
        return [found[name] for name in roles if name in found]


def parse_candidate(text: str) -> Candidate:
    """Read a candidate; ValueError says what is wrong with it."""
    formats, *words = text.strip().split(":")
    names = formats.split("+")
    if len(names) not in (1, 2):
        raise ValueError(f"'{text}': one format is wanted, or two as KEYS+VALUES")
    settings: dict[str, Any] = {
        "quant_granularity": _GRANULARITIES["per_channel"],
        "act_algo": "minmax",
        "query_weighted": False,
    }
    said: dict[str, str] = {}
    for word in words:
        if word not in _WORDS:
            raise ValueError(f"'{text}': '{word}' is none of {', '.join(_WORDS)}")
        setting, value = _WORDS[word]
        if setting in said:
            raise ValueError(f"'{text}': '{said[setting]}' and '{word}' do not go together; leave one out")
        settings[setting], said[setting] = value, word
    of_each = [_with_format(name, settings, text) for name in names]
    return Candidate(text.strip(), of_each[0], of_each[-1])


def _with_format(name: str, settings: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    if name == UNQUANTIZED:
        return None
    grid = name.upper()
    if grid not in _core.grid_names():
        known = ", ".join([*map(str.lower, _core.grid_names()), UNQUANTIZED])
        raise ValueError(f"'{text}': '{name}' is no format of a cache; there are {known}")
    found = {**settings, "dst_type": grid}
    if not _core.find_grid(grid).is_float:
        found.setdefault("asymmetric", True)
    elif found.get("asymmetric"):
        raise ValueError(f"'{text}': {name} has no offsets")
    else:
        found["asymmetric"] = False
    return found
