"""The settings of a calibration, as options give them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from amct_pytorch import _core
from amct_pytorch._command import UsageError
from amct_pytorch._options import Algorithm, Format, Granularity, Tap
from amct_pytorch.calibration import create_quant_cali_config

DEFAULT_BATCHES = 16
_MOST_BATCHES = 2**32 - 1  # that a definition can say


@dataclass(frozen=True)
class Settings:
    """What is written into a configuration; None is left to the definition, or is the default."""

    definition: Path | None = None
    algorithm: Algorithm | None = None
    granularity: Granularity | None = None
    dst_type: Format | None = None
    symmetric: bool | None = None
    tap: Tap | None = None
    sink_tokens: int | None = None
    max_position: int | None = None
    query_weighted: bool | None = None

    def __post_init__(self) -> None:
        is_float = self.dst_type is not None and _core.find_grid(self.dst_type.value).is_float
        if is_float and self.symmetric is False:
            raise UsageError(f"{self.dst_type} has no offsets; leave out --asymmetric")
        if self.query_weighted and self.definition is None and self.tap is not Tap.cache:
            raise UsageError("--query-weighted needs --tap cache, where queries meet keys")
        if self.definition is not None:
            may_be_given = {"definition", "tap", "sink_tokens", "max_position", "query_weighted"}
            self.refuse_given("--definition has settings", may_be_given)

    def refuse_given(self, reason: str, but: Collection[str] = (), **others: object) -> None:
        """Raise UsageError where settings were given, or other options.

        Parameters
        ----------
        reason : str
            Why they may not be.
        but : collection of str
            Settings that may be given.
        others : object
            Values of options by name.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in but}
        given = [name for name, value in {**own, **others}.items() if value is not None]
        if given:
            flags = [
                "--asymmetric"
                if self.symmetric is False and name == "symmetric"
                else f"--{name.replace('_', '-')}"
                for name in given
            ]
            raise UsageError(f"{reason}; leave out {', '.join(flags)}")

    def write_config(self, config: Path, model: torch.nn.Module, batches: int | None) -> int:
        """Write the configuration of a model's calibration; return how many batches it asks for.

        Parameters
        ----------
        config : Path
            File to write.
        model : torch.nn.Module
            The model; without its weights is enough.
        batches : int or None
            Batches of the calibration; None where the definition says it, or for the default.
        """
        if self.definition is not None:
            if batches is not None:
                raise UsageError("--definition says how many batches; leave their number out here")
            self._write(config, model, self.definition)
        else:
            if batches is not None and batches > _MOST_BATCHES:
                raise UsageError(f"a calibration has at most {_MOST_BATCHES} batches, not {batches}")
            with tempfile.TemporaryDirectory() as folder:
                definition = Path(folder) / "definition.cfg"
                definition.write_text(
                    f"batch_num: {batches or DEFAULT_BATCHES} "
                    f"kv_cache_quant_config {{ calibration_config {{ {self._search or ''} }} }}",
                    encoding="utf-8",
                )
                self._write(config, model, definition)
        return _core.read_config(str(config)).batch_num

    def _write(self, config: Path, model: torch.nn.Module, definition: Path) -> None:
        create_quant_cali_config(
            str(config),
            model,
            None,
            str(definition),
            tap=None if self.tap is None else self.tap.value,
            max_position=self.max_position,
            sink_tokens=self.sink_tokens,
            query_weighted=self.query_weighted,
        )

    @property
    def _search(self) -> str | None:
        """The part of a definition, without what a call can say."""
        words = []
        if self.dst_type is not None:
            words.append(f"dst_type: {self.dst_type.value}")
        search = []
        if self.granularity is not None:
            search.append(f"quant_granularity: {self.granularity.value}")
        if self.symmetric is not None:
            search.append(f"asymmetric: {str(not self.symmetric).lower()}")
        if search or self.algorithm is not None:
            algorithm = self.algorithm or Algorithm.ifmr
            words.append(f"{algorithm.value}_quantize {{ {' '.join(search)} }}")
        return " ".join(words) or None
