"""How good a model is with its cache quantized. Needs transformers where a cache is quantized."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from amct_pytorch._coded_states import CodedStates
from amct_pytorch._json import plain
from amct_pytorch._layer_quality import LayerProbe, LayerQuality
from amct_pytorch.fake_quant import load_factors
from amct_pytorch.record import KVFactors


def windows(token_ids: torch.Tensor, length: int) -> list[torch.Tensor]:
    """Cut a text into windows for the model.

    Parameters
    ----------
    token_ids : torch.Tensor
        int64, shape ``[tokens]``.
    length : int
        Tokens a window, > 1.

    Returns
    -------
    list of torch.Tensor
        int64, shape ``[1, length]`` each, without overlap; a shorter rest is left out.

    Raises
    ------
    ValueError
        The text is shorter than one window.
    """
    count = len(token_ids) // length
    if count == 0:
        raise ValueError(f"the text has {len(token_ids)} tokens, fewer than one window of {length}")
    return list(token_ids[: count * length].view(count, 1, length))


def perplexity(
    model: torch.nn.Module,
    batches: Iterable[torch.Tensor],
    make_cache: Callable[[], Any] | None = None,
) -> float:
    """Perplexity of a causal language model: exp of the mean negative log-likelihood of a token.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers causal language model.
    batches : iterable of torch.Tensor
        Token ids, int64, shape ``[batch, tokens]``; every token but the first of a row is predicted.
    make_cache : callable, optional
        Makes the cache of a batch, `FakeQuantizedCache` for instance. Without it the model uses none.

    Returns
    -------
    float
        At least 1.
    """
    total, count = 0.0, 0
    with torch.inference_mode():
        for tokens in batches:
            logits = _logits(model, tokens, None if make_cache is None else make_cache())
            losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
            total += losses.item()
            count += tokens[:, 1:].numel()
    return math.exp(total / count)


@dataclass(frozen=True)
class Quality:
    """What quantizing a cache costs a model.

    Attributes
    ----------
    name : str
        The candidate.
    perplexity : float
        With the cache quantized.
    loss : float
        Perplexity less that in full precision, as a share of it: 0.01 is one percent.
    loss_error : float
        Standard error of `loss`, from the differences between windows; NaN for a single window.
    kl : float
        Mean Kullback-Leibler divergence of the next-token distribution from that in full precision, in nats.
        Its noise is far smaller than that of `loss`.
    kl_error : float
        Its standard error; NaN for a single window.
    top1_agreement : float
        Share of positions where the most likely token is that of full precision.
    bytes_per_token : float
        What keys and values of one token take over all layers.
    layers : list of LayerQuality
        By layer and head, where they were asked for.
    """

    name: str
    perplexity: float
    loss: float
    loss_error: float
    kl: float
    kl_error: float
    top1_agreement: float
    bytes_per_token: float
    layers: list[LayerQuality]


@dataclass(frozen=True)
class Evaluation:
    """Candidates beside full precision, on the same text.

    Attributes
    ----------
    perplexity : float
        In full precision.
    bytes_per_token : float
        What keys and values of one token take in full precision.
    tokens : int
        Tokens predicted.
    candidates : list of Quality
        In the order given.
    """

    perplexity: float
    bytes_per_token: float
    tokens: int
    candidates: list[Quality]

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; numbers that are not finite are None."""
        content: dict[str, Any] = plain(dataclasses.asdict(self))
        return content


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[torch.Tensor],
    candidates: Mapping[str, Any],
    *,
    sink_tokens: int | None = None,
    recent_tokens: int = 0,
    missing: Literal["error", "keep"] = "error",
    layers: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run a text with the cache in full precision and quantized by each candidate.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers causal language model.
    batches : iterable of torch.Tensor
        Token ids, int64, shape ``[1, tokens]``: windows of the text (see `windows`). Standard errors are
        those of their means, so a few windows tell little.
    candidates : mapping of str to record
        Record files, or what `read_record` gave, by the names they are to have.
    sink_tokens : int, optional
        First tokens of each window that stay unquantized; without it those of each record.
    recent_tokens : int
        How many tokens before each one attention sees unquantized (see `StaticQuantizedCache`). A window then
        goes through the model in pieces of a quarter of as many, in full precision as well, so that each
        token sees no more of them than when it is decoded, and no less than three quarters.
    missing : {'error', 'keep'}
        What layers are that a record does not name: an error, or unquantized.
    layers : bool
        Whether layers and heads are looked at, too: SQNR and clipped values of all but the first tokens that
        stay unquantized (recent ones are codes later), and the error of attention.
    progress : callable
        Called after each window of each candidate.

    Returns
    -------
    Evaluation
        Perplexity, divergence and agreement of each candidate.

    Raises
    ------
    ValueError
        There is no window, a record does not fit the model, or a number of tokens is negative (see
        `StaticQuantizedCache`).
    """
    from transformers import DynamicCache

    from amct_pytorch.static_cache import StaticQuantizedCache

    factors: dict[str, Mapping[str, KVFactors]] = {
        name: load_factors(record) for name, record in candidates.items()
    }
    sums = {name: _Sums() for name in factors}
    probes = {}
    if layers:
        probes = {name: LayerProbe(model, of_one, sink_tokens) for name, of_one in factors.items()}
    full = _Sums()
    full_bytes = 0.0
    piece = max(recent_tokens // 4, 1) if recent_tokens > 0 else None
    # The first token of a piece sees these and itself, the last one all others of the piece, too.
    recent = 0 if piece is None else recent_tokens + 1 - piece
    with torch.inference_mode():
        for tokens in batches:
            cache = DynamicCache(config=getattr(model, "config", None))
            probe = next(iter(probes.values()), None)
            with contextlib.nullcontext() if probe is None else probe.full_precision() as seen:
                log_probs = torch.log_softmax(_logits(model, tokens, cache, piece), dim=-1)
            full.add(log_probs, log_probs, tokens)
            full_bytes = _stored_bytes(cache) / tokens.numel()
            for name, of_one in factors.items():
                quantized = StaticQuantizedCache(
                    of_one, model, sink_tokens=sink_tokens, recent_tokens=recent, missing=missing
                )
                with contextlib.nullcontext() if seen is None else probes[name].quantized(seen):
                    found = torch.log_softmax(_logits(model, tokens, quantized, piece), dim=-1)
                sums[name].add(found, log_probs, tokens)
                stored = quantized.memory().stored + _bytes_of_more(quantized, recent_tokens - recent)
                sums[name].bytes_per_token = stored / tokens.numel()
                progress()
    if not full.losses:
        raise ValueError("there is no window to evaluate on")
    return Evaluation(
        perplexity=math.exp(full.mean(full.losses)),
        bytes_per_token=full_bytes,
        tokens=sum(full.counts),
        candidates=[
            of_one.quality(name, full, probes[name].result() if probes else [])
            for name, of_one in sums.items()
        ],
    )


class _Sums:
    """What is summed over windows; lists have a number for each."""

    def __init__(self) -> None:
        self.losses: list[float] = []  # negative log-likelihood a token
        self.divergences: list[float] = []
        self.counts: list[int] = []
        self.agreeing = 0
        self.bytes_per_token = 0.0

    def add(self, found: torch.Tensor, full: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add a window by its log-probabilities ``[batch, tokens - 1, vocabulary]``."""
        wanted = tokens[:, 1:].flatten()
        flat, flat_full = found.flatten(0, 1), full.flatten(0, 1)
        self.losses.append(F.nll_loss(flat, wanted).item())
        self.divergences.append(F.kl_div(flat, flat_full, reduction="batchmean", log_target=True).item())
        self.agreeing += int((flat.argmax(-1) == flat_full.argmax(-1)).sum())
        self.counts.append(wanted.numel())

    def mean(self, numbers: list[float]) -> float:
        """The mean over all tokens of means over windows."""
        return math.fsum(n * c for n, c in zip(numbers, self.counts, strict=True)) / sum(self.counts)

    def quality(self, name: str, full: _Sums, layers: list[LayerQuality]) -> Quality:
        differences = [a - b for a, b in zip(self.losses, full.losses, strict=True)]
        ratio = math.exp(self.mean(differences))
        return Quality(
            name=name,
            perplexity=math.exp(self.mean(self.losses)),
            loss=ratio - 1,
            loss_error=ratio * _standard_error(differences),
            kl=self.mean(self.divergences),
            kl_error=_standard_error(self.divergences),
            top1_agreement=self.agreeing / sum(self.counts),
            bytes_per_token=self.bytes_per_token,
            layers=layers,
        )


def _standard_error(numbers: list[float]) -> float:
    """Of the mean of independent numbers."""
    if len(numbers) < 2:
        return math.nan
    mean = math.fsum(numbers) / len(numbers)
    variance = math.fsum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1)
    return math.sqrt(variance / len(numbers))


def _logits(
    model: torch.nn.Module, tokens: torch.Tensor, cache: Any, piece: int | None = None
) -> torch.Tensor:
    """float32 logits for every token but the first, ``[batch, tokens - 1, vocabulary]``.

    The cache is fed so many tokens at once as a piece has; all, without it.
    """
    # Newer transformers call it cache and warn of the old name.
    renamed = "cache" in inspect.signature(model.forward).parameters
    argument = "cache" if renamed else "past_key_values"
    given = {"use_cache": False} if cache is None else {argument: cache}
    pieces = (tokens,) if piece is None else torch.split(tokens, piece, dim=1)
    logits = torch.cat([model(part, **given).logits for part in pieces], dim=1)
    return logits[:, :-1].float()


def _bytes_of_more(cache: Any, recent_tokens: int) -> int:
    """What it takes to store so many more of the last tokens as they are."""
    more = 0
    for states in (getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")):
        if isinstance(states, CodedStates):
            batch, heads, coded, row_bytes = states.codes.shape
            saved = states.shape[3] * states.dtype.itemsize - row_bytes
            more += min(recent_tokens, coded) * batch * heads * saved
    return more


def _stored_bytes(cache: Any) -> int:
    """Bytes of a cache's keys and values."""
    states = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
    return sum(tensor.nbytes for tensor in states if isinstance(tensor, torch.Tensor))
