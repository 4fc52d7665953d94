# SPDX-License-Identifier: BSD-3-Clause
"""Several processes as one run: what torchrun starts, and what they tell each other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import MethodType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

__all__ = ["World", "alone", "process_group"]

_PATIENCE = 600.0  # seconds that processes wait for each other at the start

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        device: where this process computes.
        rank: its number, from 0; process 0 alone writes files.
        size: how many there are.
        launch: the id of the torchrun that started them, the same when it starts them again after
            one has died; "" for a process that nobody started.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    launch: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of `count` things in a row; the parts differ by at most one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def batches(self, count: int, batch_size: int) -> list[int]:
        """This process's part of `count` things, in turns of whole batches.

        Each batch is one that a single process would make, so that its results are the same.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        starts = range(self.rank * batch_size, count, self.size * batch_size)
        return [i for start in starts for i in range(start, min(start + batch_size, count))]

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes; the model itself if it is alone.

        On GPUs batch norm takes its statistics from all processes; PyTorch has no such layer for
        the CPU, where each process normalises by its own images and process 0's running
        statistics count.
        """
        if self.size == 1:
            return model
        cuda = self.device.type == "cuda"
        if cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(
            model, device_ids=[self.device] if cuda else None, gradient_as_bucket_view=True
        )

    def mean(self, values: Tensor) -> Tensor:
        """The mean of every process's values, which are changed in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32, device=self.device)
        dist.all_reduce(flags)
        return bool(flags.item())

    def gather(self, items: Sequence[Item]) -> list[list[Item]]:
        """Every process's list, in process 0; nothing in the others."""
        if self.size == 1:
            return [list(items)]
        lists: list[list[Item] | None] | None = [None] * self.size if self.is_main else None
        dist.gather_object(list(items), lists)
        return [found for found in lists or [] if found is not None]

    def share_out(self, items: Sequence[Item]) -> list[Item]:
        """Every process's items in one list, in all of them."""
        if self.size == 1:
            return list(items)
        lists: list[list[Item]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, list(items))
        return [item for part in lists for item in part]

    def copy_buffers(self, model: nn.Module) -> None:
        """Gives process 0's running statistics to all."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Lets batch norm take its statistics from this process's images while the block runs.

    The processes may then run the model on different numbers of images, or one of them at all,
    where SyncBatchNorm would wait for the others.

    Args:
        model: after `World.parallel`.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    for norm in norms:
        vars(norm)["forward"] = MethodType(nn.BatchNorm2d.forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


@contextmanager
def process_group() -> Iterator[World]:
    """Joins the processes that torchrun started; a process that nobody started is a world alone.

    Yields:
        The world. Its device is the GPU of the process's number on its machine, or the CPU.

    Raises:
        ValueError: torchrun started more processes on this machine than it has GPUs.
    """
    cuda = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        yield World(torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", dist.get_node_local_rank()) if cuda else torch.device("cpu")
    if cuda and device.index >= torch.cuda.device_count():
        raise ValueError(
            f"nproc-per-node: process {device.index} on this machine has no GPU of its own, for"
            f" there are {torch.cuda.device_count()}; start as many processes as GPUs, or hide them"
            " with CUDA_VISIBLE_DEVICES="
        )
    if cuda:
        torch.cuda.set_device(device)
    # torchrun's variables say who and where.
    store, rank, size = next(rendezvous("env://"))
    launch = _launch(store)
    # Objects go through gloo on the CPU.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=_unused(store, rank, size), rank=rank, world_size=size)
    try:
        yield World(device, rank, size, launch)
    finally:
        dist.destroy_process_group()


def _unused(store: Store, rank: int, size: int) -> Store:
    """A part of the store where no process of an earlier start has left its address.

    torchrun serves one store for all of a run's starts (github.com/pytorch/pytorch/issues/135712),
    and its count of restarts may differ between machines. So process 0 names a new part, and the
    others believe a name once it has answered them under it.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("ssd_fast", me)
        for other in range(1, size):
            token = store.get(f"{me}/{other}").decode()
            store.set(f"{me}/{token}", "")
        return PrefixStore(me, store)
    deadline = time.monotonic() + _PATIENCE
    while True:
        name = store.get("ssd_fast").decode()
        store.set(f"{name}/{rank}", me)
        try:
            store.wait([f"{name}/{me}"], timedelta(seconds=1))
        except RuntimeError:  # nobody answered: a name of an earlier start, or process 0 is busy
            if time.monotonic() > deadline:
                raise
        else:
            return PrefixStore(name, store)


def _launch(store: Store) -> str:
    """An id that the first process to ask leaves in torchrun's store, for all of its starts."""
    while isinstance(store, PrefixStore):  # as a torch may make one for each start
        store = store.underlying_store
    # It sets what is not there yet, and returns what is there then.
    return store.compare_set("ssd_fast launch", "", uuid.uuid4().hex).decode()
