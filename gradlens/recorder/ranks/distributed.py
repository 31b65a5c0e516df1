"""Record a model that several processes train together: one file, and one small collective for each row."""

from __future__ import annotations

import datetime
import math
import os
import pickle
import re
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradlens.errors import ConfigError, GradlensError, GradlensWarning, RecorderError, RunFileError
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.notes import line
from gradlens.recorder.ranks.tensor_layouts import (
    count_batch_parts,
    count_output_parts,
    count_parts,
    is_distributed,
    is_partial,
    largest_mesh,
)
from gradlens.recorder.ratios import BRANCH_NORM, PATH_PRODUCT, SHORTCUT_NORM, addends, adds
from gradlens.storage.lock import check_unlocked

T = TypeVar("T")
_c10d: Any = dist.distributed_c10d if dist.is_available() else None
TIMEOUT = "GRADLENS_RANK_TIMEOUT"
"""The environment variable with the number of seconds that a rank waits for the others."""
PATIENCE_S = 60.0
"""That number of seconds where the variable is not set. Ranks come to a row within milliseconds of each other, because
the reduction of the gradients right before it waits for all of them."""
ROLL_CALL_S = 2.0
"""Seconds in which ranks that gave up tell rank 0, which then knows who is missing."""
OF_ACTIVATIONS = {ACTIVATION_GRAD_NORM: 1, SHORTCUT_NORM: 1, BRANCH_NORM: 1, PATH_PRODUCT: 2}
"""Addends that are measured on a rank's own loss, and the power of the gradient in them."""


class Ranks:
    """The processes that train one model.

    Rank 0 reads parameters that are equal on all ranks. Each rank reads its part of sharded parameters, and the
    gradients of outputs for its part of the batch. The common loss is the mean over the parts of the batch, so
    activation gradients are divided by their number. Ranks that share a part of the batch (tensor parallelism) each
    have a shard of a gradient or the same gradient; what is the same is counted once.

    Args:
        ranks: The processes, by their ranks in the default group; None is all of them.
        batch_parts: Among how many ranks the batch is shared; None is all of them.
        wrapper: The DistributedDataParallel module, if there is one.
    """

    def __init__(
        self, ranks: Sequence[int] | None = None, batch_parts: int | None = None, wrapper: nn.Module | None = None
    ) -> None:
        self._wrapper = wrapper
        self.patience = find_patience()
        """Seconds that a rank waits for the others."""
        self._ranks = tuple(range(dist.get_world_size()) if ranks is None else ranks)
        self.first = self._ranks[0]
        """Rank 0 of the group, in the default group."""
        self.rank = self._ranks.index(dist.get_rank())
        self.world = len(self._ranks)
        self.group: Any = None
        """The recorder's own group, after ``connect``."""
        self.batch_parts = self.world if batch_parts is None else batch_parts
        self.partial_outputs: set[int] = set()
        """Layers whose output has a gradient that is a partial sum on each rank."""
        self._output_parts: dict[int, int] = {}
        """Layer to the number of different shards of its output's gradient, for one part of the batch."""
        self.silent: list[int] = []
        """Ranks that did not bring a row in time."""
        self._collectives = 0

    def connect(self) -> None:
        """Make a group for the recorder alone; every rank must call this.

        In the group of the training, a rank that skips a step would give its row where another gives gradients. This
        group works on the host, gives up after ``patience``, and is unknown to ``torch.distributed``, whose names of
        later groups it would change.

        Raises:
            RecorderError: Not every rank came.
        """
        limit = datetime.timedelta(seconds=self.patience)
        try:
            store = _c10d.PrefixStore(f"gradlens/{self._ranks}", _c10d._get_default_store())
            self._store = _c10d.PrefixStore(self._choose_name(store, limit), store)
            self.group = _c10d.ProcessGroupGloo(self._store, self.rank, self.world, limit)
        except (RuntimeError, AttributeError) as error:  # torch may be built without gloo
            raise RecorderError(
                f"the {self.world} processes that train the model could not connect within {self.patience:g} s "
                f"({_cause(error)})",
                tip="every process makes a recorder; GLOO_SOCKET_IFNAME names the network interface",
            ) from error

    def _choose_name(self, store: Any, limit: datetime.timedelta) -> str:
        """Return a new name, chosen by rank 0, once every rank knows it."""
        if self.rank:
            store.wait(["open"], limit)
            name = str(store.get("open").decode())
            store.set(f"{name}/{self.rank}", "here")
            store.wait([f"{name}/all"], limit)
            return name
        name = uuid.uuid4().hex
        store.set("open", name)
        try:
            store.wait([f"{name}/{rank}" for rank in range(1, self.world)], limit)
        finally:
            store.delete_key("open")
        store.set(f"{name}/all", "here")
        return name

    def disconnect(self) -> None:
        """Release the group, after the last row."""
        self.group = None

    def share(self, found: Any) -> Any:
        """Return what rank 0 gives, on all ranks; every rank must call this.

        Args:
            found: Anything that can be pickled.

        Raises:
            RecorderError: Rank 0 did not answer within ``patience``.
        """
        self.connect()
        try:
            if self.rank == 0:
                self._store.set("found", pickle.dumps(found).hex())
            self._store.wait(["found"], datetime.timedelta(seconds=self.patience))
            return pickle.loads(bytes.fromhex(self._store.get("found").decode()))
        except RuntimeError as error:
            raise RecorderError(f"rank 0 did not say where the recording goes on ({_cause(error)})") from error
        finally:
            self.disconnect()

    def reads(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank reads a parameter, or its part of it."""
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is None:
            return self.rank == 0
        place = mesh.get_coordinate()
        copies = [i for i, placement in enumerate(parameter.placements) if placement.is_replicate()]  # type: ignore[attr-defined]
        on_first = mesh.size() == self.world or self.first in mesh.mesh.flatten().tolist()  # else another mesh has it
        return on_first and place is not None and all(place[i] == 0 for i in copies)

    def reads_gradient(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank reads the gradient of a parameter, or its part of it (see ``ShardedGradients``)."""
        return self.rank == 0 or is_distributed(parameter)

    def find_refusal(self) -> RecorderError | None:
        """Return why no row can be combined.

        All ranks with a row find it, so that none waits for the others; in ``join()`` some may have no row at all.
        """
        if getattr(getattr(self._wrapper, "_join_config", None), "enable", False):
            return RecorderError(
                "DistributedDataParallel.join() lets the ranks take different numbers of steps, so no row has all of "
                "them"
            )
        return None

    # --- gradients of outputs -------------------------------------------------------------------------------

    def note_output(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Note how the outputs of a layer are sharded; called in the first row."""
        if self.batch_parts < self.world:
            found = [count_output_parts(tensor) for tensor in tensors]
            known = [parts for parts in found if parts is not None]
            if known:
                self._output_parts[layer] = max(known)

    def takes(self, layer: int, grad: Tensor) -> bool:
        """Note how the gradient of an output is sharded.

        Args:
            layer: The layer's index.
            grad: A distributed tensor, or any other.

        Returns:
            Whether it can be counted.
        """
        if not is_distributed(grad):
            return True
        self._output_parts[layer] = count_parts(grad.device_mesh, grad.placements)  # type: ignore[attr-defined]
        if is_partial(grad):
            self.partial_outputs.add(layer)
        return layer not in self.partial_outputs

    def copies(self, n_layers: int) -> HostNorms:
        """Return (L,) how many ranks have the same gradient of a layer's output."""
        each = self.world / self.batch_parts
        parts = np.ones(n_layers)
        for layer, count in self._output_parts.items():
            parts[layer] = count
        return np.maximum(each / parts, 1)

    # --- rows -----------------------------------------------------------------------------------------------

    def combine(
        self, metrics: Sequence[str], columns: Mapping[str, HostNorms], n_layers: int, extra: HostNorms
    ) -> tuple[dict[str, HostNorms], HostNorms]:
        """Combine one row over all ranks; every rank must call this.

        Args:
            metrics: All metrics of the run, the same on all ranks, including a rank with an error.
            columns: Addend to this rank's values (L,).
            n_layers: L.
            extra: (n,) numbers that are summed over ranks.

        Returns:
            Addend to (L,) over all ranks, and the sums (n,) of ``extra``.

        Raises:
            RecorderError: Another rank has ended, or did not come within ``patience``.
        """
        names = addends(metrics)
        packed = np.zeros((len(names), 2, n_layers))
        for (values, there), name in zip(packed, names, strict=True):
            column = columns.get(name)
            if column is None:
                continue
            there[:] = ~np.isnan(column)
            values[:] = np.where(np.isnan(column), 0, column)
            if name in OF_ACTIVATIONS:
                copies = self.copies(n_layers) if name == ACTIVATION_GRAD_NORM else self.world / self.batch_parts
                values /= (self.batch_parts * np.sqrt(copies)) ** OF_ACTIVATIONS[name]
            if not adds(name):
                np.square(values, out=values)
        total = self._add_up(np.concatenate([packed.ravel(), extra]))
        packed = total[: packed.size].reshape(packed.shape)
        found: dict[str, HostNorms] = {}
        for (values, there), name in zip(packed, names, strict=True):
            value = values if adds(name) else np.sqrt(values)
            if there.any() or name in columns:
                found[name] = np.where(there > 0, np.where(np.isnan(value), np.inf, value), np.nan)
        return found, total[packed.size :]

    def _add_up(self, numbers: HostNorms) -> HostNorms:
        """Return the sums over all ranks, by one collective."""
        sums, started = torch.from_numpy(numbers), time.monotonic()
        self._collectives += 1
        try:
            self.group.allreduce([sums]).wait()
        except RuntimeError as error:
            if time.monotonic() - started < 0.9 * self.patience:
                raise RecorderError(f"another rank has ended, or has ended its recording ({_cause(error)})") from error
            self._call_roll()
            raise RecorderError(_say_silent(self.silent, self.patience)) from error
        return sums.numpy()

    def _call_roll(self) -> None:
        """Find which ranks did not come; in a thread, because the store may have ended with another rank."""
        thread = threading.Thread(target=self._find_silent, daemon=True)
        thread.start()
        thread.join(2 * ROLL_CALL_S)

    def _find_silent(self) -> None:
        try:
            store = self._store
            keys = [f"{self._collectives}/{rank}" for rank in range(self.world)]
            store.set(keys[self.rank], "here")
            ends = time.monotonic() + ROLL_CALL_S
            missing = list(range(self.world))
            while self.rank == 0 and missing and time.monotonic() < ends:
                time.sleep(0.1)
                missing = [rank for rank in missing if not store.check([keys[rank]])]
            if self.rank == 0:
                self.silent = missing
        except Exception:
            return  # then nobody is named


def _cause(error: Exception) -> str:
    """Return the first sentence of an error of torch, without the place in its source."""
    return re.sub(r"\[/\S+\]\s*", "", line(error)).split(". ")[0]


def _say_silent(silent: Sequence[int], patience: float) -> str:
    who = f"rank {', '.join(map(str, silent))}" if silent else "another rank"
    return (
        f"{who} did not bring this row within {patience:g} s ({TIMEOUT}): it skipped optimizer.step(), is slow, or has "
        "ended"
    )


def find_patience() -> float:
    """Return how many seconds a rank waits for the others (``GRADLENS_RANK_TIMEOUT``).

    Raises:
        ConfigError: It is not a positive number.
    """
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text or PATIENCE_S)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigError(f"{TIMEOUT} must be a number of seconds above 0, got {text!r}")
    return seconds


def find_on_first_rank(ranks: Ranks | None, find: Callable[[], T]) -> T:
    """Return what rank 0 finds, on all ranks; every rank must call this.

    Args:
        ranks: The processes; None is a single one.
        find: Called on rank 0.

    Raises:
        GradlensError: Finding failed on rank 0.
        RecorderError: Rank 0 did not answer within ``patience``.
    """
    if ranks is None:
        return find()
    found: Any = [None, None]
    if ranks.rank == 0:
        try:
            found[0] = find()
        except GradlensError as error:
            found[1] = error
    found = ranks.share(found)
    if found[1] is not None:
        raise found[1]
    return cast("T", found[0])


def warn_of_rank(error: Exception, rank: str) -> None:
    """Warn that another process records into the file, so that this one does not.

    Args:
        error: Why this process cannot write the file.
        rank: See ``bare_rank``.
    """
    text = (
        f"gradlens: this is {rank}, and another one records into the same file, so this one records nothing "
        f"({line(error)}); pass the DistributedDataParallel model itself, so that the ranks are combined, or give each "
        "process a path of its own"
    )
    warnings.warn(text, GradlensWarning, stacklevel=3)


def bare_rank(path: str | os.PathLike[str]) -> str:
    """Return "process 2 of 4" in processes that train together; "" in a process on its own.

    The first process has a name only if another one was faster and is writing its file.

    Args:
        path: The run file.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    if dist.get_rank() == 0 and (dist.get_world_size() == 1 or not _is_written_elsewhere(Path(path))):
        return ""
    return f"process {dist.get_rank() + 1} of {dist.get_world_size()}"


def _is_written_elsewhere(path: Path) -> bool:
    """Return whether another process is writing a run file."""
    try:
        check_unlocked(path)
    except RunFileError as error:
        return "in this process" not in error.message
    return False


def is_engine(module: Any) -> bool:
    """Return whether a module is DeepSpeed's engine, which averages gradients over its ranks before it steps."""
    engine = any(kind.__name__ == "DeepSpeedEngine" for kind in type(module).__mro__)
    return engine and getattr(module, "data_parallel_group", None) is not None


def _takes_shards_for_weights(module: nn.Module) -> bool:
    """Return whether a module makes plain parameters of its shards, as DistributedDataParallel needs them.

    Torch does so by a hook of a file that serves nothing else, where DistributedDataParallel gets a part of a mesh.
    """
    return any(
        getattr(hook, "__module__", "") == "torch.distributed.tensor.parallel.ddp"
        for hook in module._forward_pre_hooks.values()
    )


def find_ranks(model: nn.Module, *, warn: bool = True) -> Ranks | None:
    """Return the ranks that train a model together with DistributedDataParallel or ``fully_shard``; else None.

    Args:
        model: The model.
        warn: Whether to warn of a model that each of several processes records on its own.

    Raises:
        RecorderError: The model is wrapped in FullyShardedDataParallel, whose flat parameters belong to no layer; or
            in DistributedDataParallel over tensor parallelism, whose parameters are shards that look whole.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if any(map(_takes_shards_for_weights, model.modules())):
        raise RecorderError(
            "DistributedDataParallel over tensor parallelism turns each shard into a parameter of its own, so no norm "
            "is that of the whole weight",
            tip="use torch.distributed.fsdp.fully_shard over the same mesh, whose parameters know their shards",
        )
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise RecorderError(
                "FullyShardedDataParallel flattens the parameters of many layers into one, so no layer has a gradient",
                tip="use torch.distributed.fsdp.fully_shard, which keeps the parameters of each layer",
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return Ranks(dist.get_process_group_ranks(module.process_group), wrapper=module)
        if is_engine(module):
            group: Any = module.data_parallel_group
            return Ranks(dist.get_process_group_ranks(group))
    mesh = largest_mesh(model.parameters())
    if mesh:
        return Ranks(mesh, count_batch_parts(model))
    if warn and dist.get_world_size() > 1:
        warnings.warn(
            f"gradlens: this is one of {dist.get_world_size()} processes, and the model is not wrapped for distributed "
            "training, so each process records its own model, as the stages of a pipeline should, each in its own "
            "file; if they train one model together, pass the DistributedDataParallel model (DeepSpeed: the engine) "
            "itself",
            GradlensWarning,
            stacklevel=4,
        )
    return None
