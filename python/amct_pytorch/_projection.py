"""Modules that project hidden states: what can be calibrated, and how their outputs lie."""

from __future__ import annotations

from typing import NamedTuple

import torch

from amct_pytorch._shards import own_features

# What modules call the number of channels they put out: nn.Linear and all that follow it (torchao,
# bitsandbytes, AWQ, LoRA wrappers), Conv1D of transformers, nn.Conv1d, GPTQ.
_OUT_FEATURES = ("out_features", "nf", "out_channels", "outfeatures")
# Beside it they have the number of channels they take; layers that only change values in place have neither.
_IN_FEATURES = ("in_features", "nx", "in_channels", "infeatures")


def is_projection(module: torch.nn.Module) -> bool:
    """Whether a module maps each token's channels to channels of its own, by whatever storage of weights.

    nn.Linear and its subclasses, modules that have its `in_features` and `out_features` (quantized or wrapped
    ones), Conv1D of transformers, and nn.Conv1d with a kernel of 1.
    """
    if isinstance(module, torch.nn.Linear):
        return True
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return isinstance(module, torch.nn.Conv1d) and module.kernel_size == (1,) and module.groups == 1
    return out_features(module) is not None and _first_int(module, _IN_FEATURES) is not None


def out_features(module: torch.nn.Module) -> int | None:
    """The number of channels a projection puts out in this process, or None where it does not say."""
    return own_features(module, total_features(module))


def total_features(module: torch.nn.Module) -> int | None:
    """The number of channels a projection says it has, those of other processes included."""
    return _first_int(module, _OUT_FEATURES)


def channels_last(module: torch.nn.Module, output: torch.Tensor) -> torch.Tensor:
    """A view of a projection's output in which the last dimension is the channel."""
    if isinstance(module, torch.nn.Conv1d):  # [batch, channels, tokens], or without a batch
        return output.transpose(-1, -2)
    return output


class ChannelSlice(NamedTuple):
    """The part of a fused projection's output that is one layer.

    Of `groups` equal groups of neighbouring channels, channels ``begin`` to ``end`` (exclusive) of each: one
    group for query, key and value in blocks; one a head, or group of heads, where they take turns.
    """

    begin: int
    end: int
    groups: int = 1

    @property
    def channels(self) -> int:
        """Channels it has."""
        return (self.end - self.begin) * self.groups

    def fits(self, channels: int) -> bool:
        """Whether a projection of so many channels has this part."""
        return channels % self.groups == 0 and self.end <= channels // self.groups

    def of(self, output: torch.Tensor) -> torch.Tensor:
        """The layer's channels, ``[..., channels]``: a view where there is one group."""
        return self._cut(output).flatten(-2)

    def replaced(self, output: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """A copy of `output` that has `part` for the layer's channels."""
        result = output.clone()
        here = self._cut(result)
        here.copy_(part.view(here.shape))
        return result

    def _cut(self, output: torch.Tensor) -> torch.Tensor:
        if not self.fits(output.shape[-1]):
            raise RuntimeError(
                f"channels {self.begin} to {self.end} of {self.groups} groups do not fit an output of "
                f"{output.shape[-1]} channels"
            )
        grouped = output.view(*output.shape[:-1], self.groups, -1)
        return grouped.narrow(-1, self.begin, self.end - self.begin)


class InAttention:
    """A layer that an attention module holds: a projection, or the part `slice` of one."""

    name: str
    slice: ChannelSlice | None

    @property
    def module(self) -> str:
        """Path of its module in the model."""
        return self.name if self.slice is None else self.name.rpartition(".")[0]

    @property
    def attention(self) -> str:
        """Path of the attention module in the model."""
        return self.module.rpartition(".")[0]


def _first_int(module: torch.nn.Module, names: tuple[str, ...]) -> int | None:
    for name in names:
        # Not by getattr alone: a wrapper may look its attributes up in what it wraps, and find a parameter.
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
