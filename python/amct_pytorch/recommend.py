"""The cheapest cache within a stated loss, mixed over layers by measured sensitivity. Needs transformers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from amct_pytorch import _core
from amct_pytorch._candidates import UNQUANTIZED, Candidate, parse_candidate
from amct_pytorch._checks import require_path
from amct_pytorch._core import LayerResult
from amct_pytorch.discovery import find_kv_layers
from amct_pytorch.evaluation import Quality, evaluate
from amct_pytorch.record import KVFactors, factors_of

# From the cheapest on.
DEFAULT_CANDIDATES = ("int4:per_channel:minmax", "int8:per_channel:minmax")


@dataclass(frozen=True)
class Recommendation:
    """What to store each layer as.

    Attributes
    ----------
    quality : Quality or None
        Of the whole, measured; None where no layer is quantized.
    settings : dict of str to str
        The candidate of each layer, by name, in the model's order; 'full' where it stays as it is.
    sensitivity : dict of str to float
        The divergence (see `Quality.kl`) that quantizing one layer alone by the cheaper candidate costs,
        where it had to be measured.
    results : list of LayerResult
        The factors, of the layers that are quantized.
    tried : list of Quality
        All that was measured, in order.
    """

    quality: Quality | None
    settings: dict[str, str]
    sensitivity: dict[str, float]
    results: list[LayerResult]
    tried: list[Quality]

    def write(self, record_file: str | os.PathLike[str]) -> None:
        """Write the factors as a record; layers that stay as they are are not in it."""
        _core.write_record(require_path("record_file", record_file), self.results)


def recommend(
    model: torch.nn.Module,
    batches: Sequence[torch.Tensor],
    counts_file: str | os.PathLike[str],
    *,
    max_loss: float = 0.001,
    candidates: Iterable[str] = DEFAULT_CANDIDATES,
    sink_tokens: int | None = None,
    recent_tokens: int = 0,
    sensitivity_windows: int = 2,
    progress: Callable[[str], None] = lambda _: None,
) -> Recommendation:
    """Find the cheapest setting within a loss of perplexity.

    The cheapest candidate that keeps the loss on all layers is the ground. If there is a cheaper one, each
    layer is quantized by it alone and the divergence measured; then as many layers as can be, the least
    sensitive first, go to the cheaper candidate, by bisection with the loss of the whole measured at each
    step.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers causal language model.
    batches : sequence of torch.Tensor
        Token ids, int64, shape ``[1, tokens]``: windows of a text that was not calibrated on.
    counts_file : str
        What a calibration of the model per channel saw (see `create_quant_cali_model`).
    max_loss : float
        Loss of perplexity that is allowed, as a share. It is kept where the measured loss and its standard
        error together are not above it, so that few windows, which tell little, allow little.
    candidates : iterable of str
        From the cheapest to the dearest (see `Candidate`); last of all layers stay as they are.
    sink_tokens, recent_tokens : int
        See `evaluate`.
    sensitivity_windows : int
        Windows that each layer is measured on.
    progress : callable
        Told what is measured.

    Returns
    -------
    Recommendation
        The settings by layer, and their factors.

    Raises
    ------
    ValueError
        A candidate is wrong, there are fewer than two windows, `max_loss` is negative or not finite, or the
        counts are not those of the model.
    """
    if not 0 <= max_loss < math.inf:
        raise ValueError(f"max_loss must be a share of perplexity, 0 or more, not {max_loss}")
    if len(batches) < 2:
        raise ValueError("a loss has no standard error on one window; give two or more")
    search = _Search(model, batches, max_loss, progress, sink_tokens, recent_tokens)
    counts = require_path("counts_file", counts_file)
    layers = find_kv_layers(model)
    parsed = [parse_candidate(text) for text in candidates]
    solved = {c.name: {r.name: r for r in c.solve(counts, layers, sink_tokens)} for c in parsed}
    cheaper: Candidate | None = None
    ground: Candidate | None = None
    for candidate in parsed:
        if search.keeps(candidate.name, solved[candidate.name]):
            ground = candidate
            break
        cheaper = candidate
    base = {} if ground is None else solved[ground.name]
    base_name = UNQUANTIZED if ground is None else ground.name
    chosen = dict.fromkeys((layer.name for layer in layers), base_name)
    sensitivity: dict[str, float] = {}
    if cheaper is not None:
        low = solved[cheaper.name]
        sensitivity = search.sensitivity(low, sensitivity_windows)
        order = sorted(sensitivity, key=lambda name: sensitivity[name])
        # The most that keep the loss: all do not.
        fewest, most = 0, len(order) - 1
        while fewest < most:
            count = (fewest + most + 1) // 2
            mixed = {**base, **{name: low[name] for name in order[:count]}}
            if search.keeps(f"{count} of {len(order)} {cheaper.name}, else {base_name}", mixed):
                fewest = count
            else:
                most = count - 1
        chosen.update(dict.fromkeys(order[:fewest], cheaper.name))
    results = [
        solved[candidate][name]
        for name, candidate in chosen.items()
        if candidate != UNQUANTIZED and name in solved[candidate]
    ]
    kept = {
        name: candidate
        for name, candidate in chosen.items()
        if candidate == UNQUANTIZED or name in solved[candidate]
    }
    return Recommendation(search.last_kept, kept, sensitivity, results, search.tried)


class _Search:
    """Measures mixtures of factors."""

    def __init__(
        self,
        model: torch.nn.Module,
        batches: Sequence[torch.Tensor],
        max_loss: float,
        progress: Callable[[str], None],
        sink_tokens: int | None,
        recent_tokens: int,
    ) -> None:
        self._model = model
        self._batches = batches
        self._max_loss = max_loss
        self._progress = progress
        self._kept_tokens: Any = {"sink_tokens": sink_tokens, "recent_tokens": recent_tokens}
        self.tried: list[Quality] = []
        self.last_kept: Quality | None = None

    def keeps(self, name: str, results: Mapping[str, LayerResult]) -> bool:
        """Whether quantizing these layers keeps the loss."""
        quality = self._measure(name, results, self._batches)
        self.tried.append(quality)
        kept = quality.loss + quality.loss_error <= self._max_loss
        if kept:
            self.last_kept = quality
        return kept

    def sensitivity(self, results: Mapping[str, LayerResult], count: int) -> dict[str, float]:
        """The divergence of quantizing one layer alone."""
        return {
            name: self._measure(name, {name: result}, self._batches[:count]).kl
            for name, result in results.items()
        }

    def _measure(
        self, name: str, results: Mapping[str, LayerResult], batches: Sequence[torch.Tensor]
    ) -> Quality:
        self._progress(name)
        factors: dict[str, KVFactors] = {layer: factors_of(result) for layer, result in results.items()}
        found = evaluate(self._model, batches, {name: factors}, missing="keep", **self._kept_tokens)
        return found.candidates[0]
