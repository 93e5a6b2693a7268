"""Where the layers of a configuration are observed."""

from __future__ import annotations

from dataclasses import dataclass

from amct_pytorch._core import CalibrationConfig
from amct_pytorch._projection import ChannelSlice, InAttention


@dataclass(frozen=True)
class Place(InAttention):
    """Where one layer of a configuration is observed.

    Attributes
    ----------
    name : str
        The layer.
    tap : {'linear', 'cache'}
        At what its projection puts out, or at what goes into the cache.
    role : {'key', 'value'} or None
        What it is, where the configuration says so.
    slice : ChannelSlice or None
        Which channels of a fused projection it is.
    max_position : int or None
        See the settings of the configuration.
    sink_tokens : int
        First tokens of each sequence that are left out.
    query_weighted : bool
        Whether channels of keys are weighed by queries.
    """

    name: str
    tap: str
    role: str | None
    slice: ChannelSlice | None
    max_position: int | None
    sink_tokens: int = 0
    query_weighted: bool = False


def places_of(config: CalibrationConfig) -> list[Place]:
    """Where the layers of a configuration are observed, in its order."""
    return [
        Place(name, tap, role, None if part is None else ChannelSlice(*part), reach, sinks, weighted)
        for name, tap, role, part, reach, sinks, weighted in config.places()
    ]
