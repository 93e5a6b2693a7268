"""The calls of the interface: make a configuration, put calibration into a model, take it off."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from amct_pytorch import _core
from amct_pytorch._cache_tap import CacheTap
from amct_pytorch._checks import (
    DEFAULT_MEMORY_BUDGET,
    require_memory_budget,
    require_other_files,
    require_path,
    require_type,
    require_utf8,
)
from amct_pytorch._log import logger
from amct_pytorch._observe import Recorder, kept_back
from amct_pytorch._padding import Padding
from amct_pytorch._place import Place, places_of
from amct_pytorch._projection import ChannelSlice, is_projection, out_features
from amct_pytorch._rotary import RotaryCalls
from amct_pytorch._snapshots import Forwards, Snapshots, snapshots_of
from amct_pytorch._tap import ForwardHooks, LinearTap, taps_of
from amct_pytorch.discovery import KVLayer, find_kv_layers, find_state_layers
from amct_pytorch.nn.module.quantization.quant_calibration_op import QuantCalibrationOp

# Writing the record takes no more of the time than this, beside the first and the last write of a forward.
_WRITING_SHARE = 1 / 1000
_LAYERS_KEY = "kv_cache_quant_layers"


def create_quant_cali_config(
    config_file: str,
    model: torch.nn.Module,
    quant_layers: dict[str, list[str]] | None = None,
    config_defination: str | None = None,
    *,
    split_fused: bool = True,
    tap: str | None = None,
    max_position: int | None = None,
    sink_tokens: int | None = None,
    query_weighted: bool | None = None,
) -> None:
    """Write the configuration file of a calibration.

    Parameters
    ----------
    config_file : str
        File to write (JSON, mode 640); replaced where it exists. Missing folders are created (mode 750).
    model : torch.nn.Module
        The model to calibrate; not changed.
    quant_layers : dict, optional
        ``{'kv_cache_quant_layers': [names]}``; a name may be a glob pattern for several layers:
        ``"model.layers.*.self_attn.[kv]_proj"``. Without it, and where the definition names no layers
        either, the key and value projections are found in the model (see `find_kv_layers`).
    config_defination : str, optional
        File with the simplified definition (protobuf text of ``AMCTQuantCaliConfig``). Where it names
        layers, they win over `quant_layers`.
    split_fused : bool
        Whether the keys and values of fused projections that are found get factors of their own, as layers
        ``<projection>.key`` and ``<projection>.value``. If not, one factor is that of queries, keys and
        values together. A fused projection that is named by itself always has one.
    tap : {'linear', 'cache'}, optional
        Where all layers are observed: at what their projections put out, or at what goes into the cache,
        after normalization of keys and rotary embedding, which is what most runtimes quantize. Without it
        the definition decides, and without that it is 'linear'.
    max_position : int, optional
        Keys per channel at tap 'cache': the position up to which (exclusive) their factors hold. Each key is
        also counted as it would be at positions up to there. 0: the positions of the calibration alone.
        Without it: the definition's, else the model's ``max_position_embeddings``. A shorter reach gives
        tighter factors.
    sink_tokens : int, optional
        First tokens of each sequence that are left out of the calibration of all layers, for a cache that
        keeps them as they are (`StaticQuantizedCache` does): what models store of them is unlike the rest.
        Padding is not counted. Without it the definition decides, and without that it is 0.
    query_weighted : bool, optional
        Whether each value of a key counts as much as the mean square of the queries on its channel, where
        channels share factors: attention needs the product of the two. Needs tap 'cache', and attention that
        is computed by transformers' attention functions (or `observe_cache`). Keys are then observed per
        channel whatever the granularity, which takes the time and memory of that. Without it the definition
        decides, and without that it is False.

    Raises
    ------
    TypeError
        An argument has a wrong type.
    ValueError
        A bad file name; a wrong key in `quant_layers`; a layer that is not in the model, cannot be
        calibrated or is named twice; a pattern that matches no layer; an error in the definition; an unknown
        `tap`, or tap 'cache' for a layer of which it is not known whether it is key or value; a negative
        `max_position` or `sink_tokens`.
    RuntimeError
        There is no layer to calibrate.
    OSError
        A file cannot be read or written.

    Examples
    --------
    >>> amct.create_quant_cali_config("config.json", model)  # doctest: +SKIP
    >>> amct.create_quant_cali_config(  # doctest: +SKIP
    ...     "config.json", model, {"kv_cache_quant_layers": ["layers.0.k_proj", "layers.0.v_proj"]}
    ... )
    """
    config_path = require_path("config_file", config_file)
    require_type("model", model, torch.nn.Module)
    named = _layers_in(quant_layers)
    definition_path = (
        None if config_defination is None else require_path("config_defination", config_defination)
    )
    _core.check_output_path(config_path)
    require_other_files({"config_file": config_path}, {"config_defination": definition_path})
    if tap not in (None, "linear", "cache"):
        raise ValueError(f"tap must be 'linear' or 'cache', not {tap!r}")
    for name, number in (("max_position", max_position), ("sink_tokens", sink_tokens)):
        if number is None:
            continue
        if isinstance(require_type(name, number, int), bool):
            raise TypeError(f"{name} must be an int, not bool")
        if not 0 <= number <= 2**31:
            raise ValueError(f"{name} must be from 0 to 2^31, not {number}")

    definition = None if definition_path is None else _core.Definition.read(definition_path)
    source = "quant_layers"
    if definition is not None and definition.layers():
        names, source = definition.layers(), str(definition_path)
    elif named is not None:
        names = named
    else:
        names = _discover(model, split_fused)
    if not names:
        raise RuntimeError(f"{source}: no layer is named, so there is nothing to quantize")
    known = {layer.name: layer for layer in find_kv_layers(model)}
    layers = _layers_of(model, known.values())
    names = _core.expand_layers(names, layers, source)
    _core.check_layers(names, layers, source)
    config = _core.default_config(names) if definition is None else definition.configure(names)
    for place in places_of(config):
        layer = known.get(place.name)
        is_cached = (tap or place.tap) == "cache"
        if is_cached and layer is None:
            raise ValueError(
                f"{source}: layer '{place.name}' has tap 'cache', but is not among the key and value layers "
                "that are found in the model; give it a role ('key' or 'value') in the configuration file"
            )
        if layer is not None and (is_cached or layer.slice is not None):
            reach = max_position if is_cached and layer.role == "key" else None
            config.place(place.name, layer.role, layer.slice, tap, reach)
    if sink_tokens is not None:
        config.set_sink_tokens(sink_tokens)
    if query_weighted is not None:
        config.set_query_weighted(require_type("query_weighted", query_weighted, bool))
    for place in places_of(config):
        if place.query_weighted and place.tap != "cache":
            raise ValueError(
                f"layer '{place.name}' is to be query_weighted, which needs tap 'cache', where queries meet "
                "keys"
            )
    for name in config.layers_without_heads():
        heads = known[name].heads if name in known else None
        if heads is None:
            raise ValueError(
                f"{source}: layer '{name}' is to have factors per head, and its heads are not known; "
                "give head_num"
            )
        config.set_heads(name, heads)
    config.write(config_path)


def create_quant_cali_model(
    config_file: str,
    record_file: str,
    model: torch.nn.Module,
    *,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    counts_file: str | None = None,
    snapshot_file: str | None = None,
    snapshot_batches: int | None = None,
    snapshot_minutes: float | None = None,
    snapshot_data: str | None = None,
    resume: bool = False,
) -> torch.nn.Module:
    """Put calibration into a model.

    Every layer that the configuration names gets an operator that passes the layer's output on
    unchanged and observes it. Run ``batch_num`` batches through the returned model: as a layer has seen
    them, its factors are merged into the record file, in the order of the configuration, and its
    operator is taken off. Layers that were not reached are named in a warning when the model is
    released or the program ends.

    Parameters
    ----------
    config_file : str
        Configuration as `create_quant_cali_config` writes it.
    record_file : str
        File for the factors (protobuf text of ``ScaleOffsetRecord``, mode 640). Replaced by an empty
        record now; missing folders are created (mode 750).
    model : torch.nn.Module
        The model, changed in place. Classes, attributes, hooks and state_dict keys stay.
    memory_budget : int
        Bytes that float32 values may take over all layers, 1 GiB unless given. A layer with more values
        than its share is calibrated from counts in log-linear bins, which adds less than 0.1% to the INT8
        error per tensor and 1% per channel; `LayerResult.is_sketch` tells. bfloat16 and float16 values are
        always counted exactly, in memory that does not grow.
    counts_file : str, optional
        File for what the layers were seen to hold, from which `solve_counts` searches other factors without
        the model. It is there once all layers are finished, or with `CalibrationRun.finish`.
    snapshot_file : str, optional
        File for what the run has seen so far, from which another process goes on with `resume`. It is
        replaced between two forwards of the model, and removed when the calibration is finished. It takes
        what the counts of all layers take, up to 256 KiB a tensor or channel of 16 bits, and `memory_budget`.
    snapshot_batches, snapshot_minutes : int and float, optional
        How often it is saved: after so many forwards, or minutes, whichever comes first. Without either it
        is every 10 minutes.
    snapshot_data : str, optional
        What names the batches, a digest of the data set and of how it is cut for instance: a snapshot that
        was made with another one is refused.
    resume : bool
        Whether to go on from `snapshot_file`, if it is there: the record then has the same bits as that of
        a run that was not broken. `CalibrationRun.batches_done` of `calibration_run` is how many batches,
        each a forward of `model` that did not fail, are to be left out now.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        An argument has a wrong type.
    ValueError
        A bad file name, or one for two of the files; an error in the configuration, or a layer in it that is
        not in the model or cannot be calibrated; a negative `memory_budget`. A snapshot that was damaged, or
        is of another calibration: of other settings, another memory budget or `snapshot_data`, or with a
        counts file where there is none now.
    RuntimeError
        The model already holds calibration operators, or is in a DataParallel; another process calibrates
        into `record_file`. Later, from the model's
        forward: NaN or infinite values (`NonFiniteError`; on a device with the layer's last batch), an empty
        batch, another number of channels than before; at tap 'cache' a forward without a cache.
    OSError
        A file cannot be read or written.

    Examples
    --------
    >>> model = amct.create_quant_cali_model("config.json", "record.txt", model)  # doctest: +SKIP
    >>> for batch in batches:
    ...     model(batch)  # doctest: +SKIP
    """
    snapshots = snapshots_of(snapshot_file, snapshot_batches, snapshot_minutes, snapshot_data, resume)
    _begin(config_file, record_file, model, memory_budget, counts_file, snapshots, resume)
    return model


def _check_files(config: str, record: str, counts: str | None, snapshots: Snapshots | None) -> None:
    """Raise ValueError where an output is no file's name, or one file of a run stands for two of them."""
    _core.check_output_path(record)
    if counts is not None:
        _core.check_output_path(counts)
    snapshot = None if snapshots is None else snapshots.path
    written = {"record_file": record, "counts_file": counts, "snapshot_file": snapshot}
    require_other_files(written, {"config_file": config})


def _begin(
    config_file: str,
    record_file: str,
    model: torch.nn.Module,
    memory_budget: int,
    counts_file: str | None,
    snapshots: Snapshots | None,
    resume: bool,
) -> None:
    """As `create_quant_cali_model`."""
    config_path = require_path("config_file", config_file)
    record_path = require_path("record_file", record_file)
    require_type("model", model, torch.nn.Module)
    budget = require_memory_budget(memory_budget)
    counts_path = None if counts_file is None else require_path("counts_file", counts_file)
    _check_files(config_path, record_path, counts_path, snapshots)
    _refuse_calibrated(model)
    if any(isinstance(module, torch.nn.DataParallel) for module in model.modules()):
        raise RuntimeError(
            "DataParallel copies the model in every forward, so its copies cannot be calibrated; calibrate "
            "model.module, or one process for each device"
        )
    config = _core.read_config(config_path)
    places = places_of(config)
    found = find_kv_layers(model)
    for place in places:
        _check_place(place, model, config_path)
    parts = [place for place in places if place.slice]
    layers = _layers_of(model, [*found, *parts])
    _core.check_layers(config.layer_names, layers, config_path)
    modules = _distinct_modules(model, places, config_path)
    # The session is made first: where one of its files cannot be, nothing is replaced.
    session = _core.Session(
        config, record_path, budget, _WRITING_SHARE, search_in_background=True, counts_file=counts_path or ""
    )

    done = snapshots.restore(session) if snapshots is not None and resume else 0
    _empty_record(record_path, done > 0)
    run = CalibrationRun(session, model, list(zip(places, modules, strict=True)), snapshots, done)
    run.write_record()  # of layers that were finished before
    _retrace_compiled_models()


def _empty_record(record: str, goes_on: bool) -> None:
    """Put an empty record where one will be, so that an old one is not taken for it."""
    if Path(record).exists() and not goes_on:
        logger.warning("record_file '%s' exists and will be overwritten", record)
    _core.write_empty_record(record)


@contextlib.contextmanager
def calibrate(
    model: torch.nn.Module,
    config_file: str,
    record_file: str,
    *,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    counts_file: str | None = None,
    snapshot_file: str | None = None,
    snapshot_batches: int | None = None,
    snapshot_minutes: float | None = None,
    snapshot_data: str | None = None,
    resume: bool = False,
    process_group: Any = None,
    tensor_parallel_group: Any = None,
) -> Iterator[CalibrationRun]:
    """Calibrate a model while a context lasts, and leave it as it was.

    At the end layers that saw some of their batches are finished with what they saw (see
    `CalibrationRun.finish`), layers that were not reached are named in a warning, and the operators are taken
    off. Where the context ends by an error, factors that are there are written, and nothing else is finished.

    Parameters
    ----------
    model, config_file, record_file, memory_budget, counts_file : optional
        As of `create_quant_cali_model`, which says what is raised, too.
    snapshot_file, snapshot_batches, snapshot_minutes, snapshot_data, resume : optional
        As there. `CalibrationRun.batches_done` tells how many batches are to be left out. With a
        `process_group` each rank has a snapshot of its own, ``NAME.rankN``.
    process_group : torch.distributed.ProcessGroup, optional
        Processes that calibrate together: ``torch.distributed.group.WORLD``, of gloo, nccl or hccl. Each
        enters the context, shows its model what batches it has, as many as it likes whatever ``batch_num``
        says, and leaves it; there what they saw is added up, and rank 0 writes `record_file` and
        `counts_file`. Data may be spread over them (each has all layers), and layers (pipeline parallelism).
        The record has the same bits as that of one process that saw all batches. Where one of them fails,
        all raise.
    tensor_parallel_group : torch.distributed.ProcessGroup, optional
        The processes of `process_group`, this one among them, that share the layers of this one: they were
        shown the same batches, and each has some heads of every layer, in the order of their ranks. What they
        saw is put side by side, as one process with the whole model would have seen it. Heads that several of
        them have count once; which ones these are follows from the model's numbers (`KVLayer.total_heads`),
        and of layers without such numbers each process is taken to have channels of its own. Without a
        `process_group` it is that, too.

    Yields
    ------
    CalibrationRun
        Its results, and what is missing.

    Examples
    --------
    >>> with amct.calibrate(model, "config.json", "record.txt") as run:  # doctest: +SKIP
    ...     for batch in batches:
    ...         model(batch)
    >>> run.results()  # doctest: +SKIP
    """
    saving: dict[str, Any] = {
        "snapshot_file": snapshot_file,
        "snapshot_batches": snapshot_batches,
        "snapshot_minutes": snapshot_minutes,
        "snapshot_data": snapshot_data,
        "resume": resume,
    }
    if process_group is not None or tensor_parallel_group is not None:
        groups = tensor_parallel_group if process_group is None else process_group, tensor_parallel_group
        files = config_file, record_file, counts_file
        with _together(model, files, memory_budget, groups, saving) as run:
            yield run
        return
    create_quant_cali_model(
        config_file, record_file, model, memory_budget=memory_budget, counts_file=counts_file, **saving
    )
    run = calibration_run(model)
    try:
        yield run
        run.finish()
        run._at_release.detach()  # all is said and written
    except BaseException:
        with contextlib.suppress(OSError, RuntimeError):  # the error of the context counts
            run.write_record()
        if run.is_saved:
            run._at_release.detach()  # nothing is lost
        raise
    finally:
        remove_quant_cali(model)


@contextlib.contextmanager
def _together(
    model: torch.nn.Module,
    files: tuple[str, str, str | None],
    memory_budget: int,
    groups: tuple[Any, Any],
    saving: dict[str, Any],
) -> Iterator[CalibrationRun]:
    """Calibrate with the other processes of a group, some of which may share layers with this one."""
    from amct_pytorch import _distributed
    from amct_pytorch._snapshots_together import RankSnapshots

    config_file, record_file, counts_file = files
    with contextlib.ExitStack() as stack:
        processes = _distributed.Processes(groups[0])
        processes.share_layers(groups[1])
        folder = ""
        own: list[str] = []
        settings: dict[str, Any] = {}
        found: dict[str, Any] = {"batches": [], "had": False}
        snapshots: RankSnapshots | None = None
        with processes.together():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            config_path = require_path("config_file", config_file)
            record_path = require_path("record_file", record_file)
            counts_path = None if counts_file is None else require_path("counts_file", counts_file)
            one = snapshots_of(**saving)
            snapshots = None if one is None else RankSnapshots(one, processes)
            budget = require_memory_budget(memory_budget)
            _check_files(config_path, record_path, counts_path, snapshots)
            if processes.rank == 0:
                stack.callback(_core.FileLock(record_path).release)
            if snapshots is not None and saving["resume"]:
                found = snapshots.find()
            own = _core.read_config(config_path).layer_names
            settings = _distributed.settings_of(config_path, Path(folder))
            endless = _distributed.endless_config(config_path, Path(folder))
        processes.check_settings(settings | {"memory_budget": budget})
        names = [name for names in processes.tell_all(own) for name in names]
        # A layer's share is what it would be in a process that has all layers.
        share = budget // max(1, len(set(names))) * len(own)
        # So that values are kept where the search needs their range alone.
        own_counts = None if counts_path is None else str(Path(folder) / "own.counts")
        told = processes.tell_all(found)
        with processes.together():
            if snapshots is not None:
                snapshots.choose(told)
            record = str(Path(folder) / "record.txt")
            if processes.rank == 0:
                _empty_record(record_path, saving["resume"])
            _begin(endless, record, model, share, own_counts, snapshots, saving["resume"])
            stack.callback(remove_quant_cali, model)
            run = calibration_run(model)
            run._at_release.detach()  # what it does not see others may
            whole = _distributed.whole_layers(model)
        run._keeps_errors = shares_layers = len(processes.team) > 1
        # Processes that share layers may meet within the model, where one that stays away holds all others.
        run._before_forward = None if shares_layers else processes.look_at_others
        try:
            # Processes that share layers may wait for each other within the model: one of them that fails
            # there may not wait for the others here, who learn of it by its end.
            with contextlib.nullcontext() if shares_layers else processes.together():
                yield run
            with processes.together():
                run._layers.hand_over()
                run._raise_kept()
        finally:
            remove_quant_cali(model)
        run._conclude(
            _distributed.add_up(processes, run._session, names, whole, record_path, counts_path, Path(folder))
        )


def remove_quant_cali(model: torch.nn.Module) -> None:
    """Take calibration off a model; layers that are not finished are then never recorded.

    Parameters
    ----------
    model : torch.nn.Module
        A model that `create_quant_cali_model` returned; others are left as they are.
    """
    require_type("model", model, torch.nn.Module)
    for module in model.modules():
        for tap in taps_of(module):
            tap.remove(module)
            tap.owner.release()
    _retrace_compiled_models()


def calibration_run(model: torch.nn.Module) -> CalibrationRun:
    """The calibration that a model holds: its results so far, and what is missing.

    Parameters
    ----------
    model : torch.nn.Module
        A model that `create_quant_cali_model` returned.

    Raises
    ------
    RuntimeError
        The model holds no calibration.
    """
    require_type("model", model, torch.nn.Module)
    for module in model.modules():
        for tap in taps_of(module):
            if isinstance(tap.owner, CalibrationRun):
                return tap.owner
    raise RuntimeError("the model holds no calibration; create_quant_cali_model puts it in")


class CalibrationRun(Recorder):
    """A calibration in progress. Made by `create_quant_cali_model`; see `calibration_run`."""

    def __init__(
        self,
        session: _core.Session,
        model: torch.nn.Module,
        layers: list[tuple[Place, torch.nn.Module]],
        snapshots: Snapshots | None,
        batches_done: int,
    ) -> None:
        self._attach(session)
        self._snapshots = snapshots
        self._forwards = Forwards(batches_done)
        layers = [(place, module) for place, module in layers if not session.finished(place.name)]
        self._open = {place.name for place, _ in layers}  # layers whose taps observe
        self._taps: list[weakref.ref[CacheTap]] = []
        self._results: list[_core.LayerResult] | None = None  # of all processes
        self._keeps_errors = False
        self._before_forward: Callable[[], None] | None = None
        self._kept: Exception | None = None
        # Taps hold the run, so it is released, and reports, when the last of them goes.
        self._padding = Padding(model)
        self._rotary: RotaryCalls | None = None
        at_cache: dict[str, list[tuple[Place, torch.nn.Module]]] = {}
        for place, module in layers:
            if place.tap == "cache":
                at_cache.setdefault(place.attention, []).append((place, module))
            else:
                LinearTap(module, place, self._layers, self, self._padding)
        self.observes_cache = bool(at_cache)  # whether some layers have tap 'cache'
        if at_cache:
            self._rotary = RotaryCalls(model)
            for name, projections in at_cache.items():
                self._tap_cache(model, model.get_submodule(name), projections)
        self._forward_hooks = ForwardHooks(model, self)

    def _tap_cache(
        self,
        model: torch.nn.Module,
        attention: torch.nn.Module,
        projections: list[tuple[Place, torch.nn.Module]],
    ) -> None:
        assert self._rotary is not None
        turned = {}
        for place, _ in projections:
            reach = _max_position(model) if place.max_position is None else place.max_position
            if place.role == "key" and self._session.plan(place.name).channel_factors and reach:
                turned[place.name] = reach
        tap = CacheTap(
            attention,
            dict(projections),
            turned,
            self._layers,
            self,
            self._padding,
            self._rotary,
        )
        self._taps.append(weakref.ref(tap))

    def layer_finished(self, name: str) -> None:
        """Told by a tap whose layer is finished."""
        self._open.discard(name)
        if not self._open:
            self.release()
            self._remove_snapshots_if_complete()

    def _remove_snapshots_if_complete(self) -> None:
        """Take the snapshots away as soon as the files that were asked for have all there is to know."""
        if self._snapshots is not None and self._session.is_complete():
            self._snapshots.remove()

    def write_record(self) -> None:
        """As of `Recorder`; a snapshot that is of no use any more is removed."""
        super().write_record()
        self._remove_snapshots_if_complete()

    def keeps(self, error: Exception) -> bool:
        """Told by a tap of an error: whether it is kept until the end, so that the forward goes on.

        As it must where other processes wait for what it computes.
        """
        if self._keeps_errors and self._kept is None:
            self._kept = error
        return self._keeps_errors

    def _raise_kept(self) -> None:
        if self._kept is not None:
            raise self._kept

    def release(self) -> None:
        """Leave the model alone from now on; taps are taken off one by one."""
        self._forward_hooks.remove()
        self._forwards.end_all()
        self._padding.remove()
        if self._rotary is not None:
            self._rotary.remove()

    def results(self) -> list[_core.LayerResult]:
        """The finished layers, in the order of the configuration.

        Of several processes rank 0 has them when the context ends, and the others have none.
        """
        return super().results() if self._results is None else self._results

    def _conclude(self, results: list[_core.LayerResult]) -> None:
        """Take over what came out of what all processes saw."""
        self._results = results
        if self._snapshots is not None:
            self._snapshots.remove()

    @property
    def batches_done(self) -> int:
        """Forwards of the model that were observed and did not fail, those before a snapshot included."""
        return self._forwards.done

    @property
    def is_saved(self) -> bool:
        """Whether the snapshot has all that was seen."""
        return self._snapshots is not None and self._snapshots.saved_batch == self.batches_done > 0

    @property
    def snapshot_file(self) -> str | None:
        """The file of this process for snapshots."""
        return None if self._snapshots is None else self._snapshots.path

    def save_snapshot(self) -> None:
        """Save the snapshot now, whatever its interval; between two forwards.

        Of processes that share layers all must call it, after the same forward.

        Raises
        ------
        RuntimeError
            The run has no `snapshot_file`, or all layers are finished; a forward runs, or failed or was
            interrupted, so that some layers have seen its batch and others have not; keys wait for a batch
            that tells how they are turned; or only parts of the model were called, whose forwards are not
            counted. The file is as it was.
        OSError
            The file cannot be written; the one that was there is as it was.
        """
        if self._snapshots is None:
            raise RuntimeError("the run has no snapshot_file")
        obstacle = None
        if self._forwards.is_torn:
            obstacle = (
                "the last forward did not end as it should, or one still runs, so some layers may have seen "
                "a batch that others have not; the snapshot before it stays"
            )
        elif self._keys_wait():
            obstacle = (
                "keys at the first position wait for a longer batch, which tells how they are turned, and "
                "would be lost; the snapshot before them stays"
            )
        elif self.batches_done == 0 and any(seen for seen, _ in self.unfinished().values()):
            obstacle = (
                "layers have seen batches, but the model itself was not called, so nothing counted them; "
                "call the model that was given to be calibrated, not a part of it"
            )
        self._snapshots.save(
            self._layers, self.batches_done, None if obstacle is None else RuntimeError(obstacle)
        )

    def begin_forward(self) -> None:
        """Told by a hook of the model.

        Raises
        ------
        RuntimeError
            Another process that calibrates with this one has failed.
        """
        if self._before_forward is not None:
            self._before_forward()
        self._forwards.begin()

    def end_forward(self, completed: bool) -> None:
        """Told by a hook of the model; writes what its forward finished.

        Raises
        ------
        OSError
            The record or the snapshot cannot be written.
        """
        try:
            if completed:
                self.write_record()
        except OSError as error:
            raise kept_back(error, "the factors of this forward are", self._session) from error
        finally:
            self._forwards.end(completed, self._is_time_for_snapshot, self._between_forwards)

    def _keys_wait(self) -> bool:
        """Whether keys wait to be turned, which are not in the session yet."""
        return any(tap.is_waiting for ref in self._taps if (tap := ref()) is not None)

    def _is_time_for_snapshot(self, batches_done: int) -> bool:
        return self._snapshots is not None and bool(self._open) and self._snapshots.is_time(batches_done)

    def _between_forwards(self, batches_done: int) -> None:
        if self._snapshots is None or not self._open:
            return
        try:
            if self._snapshots.is_due(batches_done, not self._keys_wait()):
                self._snapshots.save(self._layers, batches_done)
        except (OSError, RuntimeError) as error:
            if not self.keeps(error):
                raise

    def finish(self) -> None:
        """As of `Recorder`; a snapshot is removed then."""
        super().finish()
        if self._snapshots is not None:
            self._snapshots.remove()

    def __repr__(self) -> str:
        return (
            f"<CalibrationRun record_file={self.record_file!r} finished={len(self.results())} "
            f"unfinished={len(self.unfinished())}>"
        )


def _max_position(model: torch.nn.Module) -> int:
    """The positions that a model is made for, or 0 where its configuration does not say."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    reach = getattr(text, "max_position_embeddings", 0)
    return reach if isinstance(reach, int) else 0


def _layers_in(quant_layers: Any) -> list[str] | None:
    """The names in the argument `quant_layers`, or None where it is None."""
    if quant_layers is None:
        return None
    require_type("quant_layers", quant_layers, dict)
    if set(quant_layers) != {_LAYERS_KEY}:
        keys = ", ".join(repr(key) for key in quant_layers) or "none"
        raise ValueError(f"quant_layers must have the one key '{_LAYERS_KEY}', not {keys}")
    names = quant_layers[_LAYERS_KEY]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"quant_layers['{_LAYERS_KEY}'] must be a list of str")
    return [require_utf8("a name in quant_layers", name) for name in names]


def _discover(model: torch.nn.Module, split_fused: bool) -> list[str]:
    layers = find_kv_layers(model, split_fused=split_fused)
    if not layers:
        raise RuntimeError(
            f"no key or value projection was found in {type(model).__name__}; "
            f"name the layers: quant_layers={{'{_LAYERS_KEY}': [...]}}"
        )
    logger.info(
        "%d key and value layers found: %s",
        len(layers),
        ", ".join(f"{layer.name} ({_described(layer)})" for layer in layers),
    )
    if state_layers := find_state_layers(model):
        logger.info(
            "%d layers keep a state instead of keys and values and are left alone: %s",
            len(state_layers),
            ", ".join(state_layers),
        )
    return [layer.name for layer in layers]


def _described(layer: KVLayer) -> str:
    heads = "" if layer.heads is None else f"{layer.heads} heads of {layer.head_dim}, "
    return f"{layer.role}, {heads}of {layer.source}"


def _layers_of(model: torch.nn.Module, known: Iterable[KVLayer | Place]) -> list[tuple[str, str, bool]]:
    """(name, type, whether it can be calibrated) of every module; a shared one by all its names.

    With the parts of fused projections among `known`, and other modules there that are no projections.
    """
    module_of = {layer.name: layer.module for layer in known}
    layers = [
        (
            require_utf8("the name of a layer", name),
            type(module).__name__,
            is_projection(module) or name in module_of,
        )
        for name, module in model.named_modules(remove_duplicate=False)
        if name
    ]
    parts = {name: module for name, module in module_of.items() if name != module}
    types = {name: (kind, supported) for name, kind, supported in layers if name in parts.values()}
    return layers + [(name, *types[module]) for name, module in parts.items() if module in types]


def _check_place(place: Place, model: torch.nn.Module, source: str) -> None:
    """Raise ValueError for a part of a fused projection that cannot be one."""
    if place.slice is None:
        return
    if not place.name.endswith(f".{place.role}"):
        raise ValueError(
            f"{source}: layer '{place.name}' is a slice, of role '{place.role}', so its name must be "
            f"'<module>.{place.role}'"
        )
    try:
        channels = out_features(model.get_submodule(place.module))
    except AttributeError:
        return  # check_layers says so
    if channels is not None and not place.slice.fits(channels):
        begin, end, groups = place.slice
        raise ValueError(
            f"{source}: layer '{place.name}': slice [{begin}, {end}] of {groups} groups does not fit the "
            f"{channels} channels of '{place.module}'"
        )


def _distinct_modules(model: torch.nn.Module, places: Iterable[Place], source: str) -> list[torch.nn.Module]:
    """The modules of the layers. Two layers that are the same channels would count them twice."""
    modules = []
    name_of: dict[tuple[torch.nn.Module, ChannelSlice | None], str] = {}
    for place in places:
        module = model.get_submodule(place.module)
        other = name_of.setdefault((module, place.slice), place.name)
        if other != place.name:
            raise ValueError(
                f"{source}: layers '{other}' and '{place.name}' are one module under two names; keep one"
            )
        modules.append(module)
    return modules


def _retrace_compiled_models() -> None:
    """Make torch.compile see the hooks: its code does not look whether they changed since it was traced."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _refuse_calibrated(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if taps_of(module) or isinstance(module, QuantCalibrationOp):
            raise RuntimeError(
                f"the model already holds a calibration operator at '{name}'; "
                "take calibration off first: amct_pytorch.remove_quant_cali(model)"
            )
