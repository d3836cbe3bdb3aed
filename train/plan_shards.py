"""What each process holds of a sharded backbone: PyTorch's own sharding, without other processes.

A fake process group of any size lets `fully_shard` cut a backbone on the meta device as it would on
a cluster: along the first axis of every parameter, so small ones don't divide evenly.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from models.backbone import Backbone
from models.config import BackboneConfig

from .optim import hidden_matrices
from .plan_cache import remembered
from .sharding import shard_units

FLOAT = 4
"""Bytes of a parameter: float32 whatever the autocast."""


@dataclass(frozen=True)
class UnitSize:
    """Parameters of one unit of sharding.

    Attributes:
        name: of the module.
        whole: all of them.
        own: those that the first process holds; none holds more.
        whole_matrices: those of all that Muon trains.
        own_matrices: those among them that the first process holds.
        is_root: it stays gathered from the forward pass to the end of the backward pass.
    """

    name: str
    whole: int
    own: int
    whole_matrices: int
    own_matrices: int
    is_root: bool = False


@remembered
def unit_sizes(config: BackboneConfig, shards: int) -> list[UnitSize]:
    """Return each unit's size, the root last; one shard is the whole backbone."""
    with torch.device("meta"):
        backbone = Backbone(config)
    units = [*shard_units(backbone), backbone]
    names = {id(module): name for name, module in backbone.named_modules()}
    matrices = {name for name, _ in hidden_matrices(backbone)}
    before = _counts(units, names), _counts(units, names, matrices)
    with fake_mesh(shards) as mesh:
        for unit in units if mesh is not None else ():
            fully_shard(unit, mesh=mesh)
        after = _counts(units, names), _counts(units, names, matrices)
    return [
        UnitSize(names[id(unit)] or "root", whole, own, big, own_big, unit is backbone)
        for unit, whole, big, own, own_big in zip(units, *before, *after, strict=True)
    ]


def _counts(
    units: list[nn.Module], names: dict[int, str], among: set[str] | None = None
) -> list[int]:
    """Parameters of each unit but those of units before it, as this process holds them."""
    seen: set[int] = set()
    found = []
    for unit in units:
        count = 0
        for name, parameter in unit.named_parameters():
            full = f"{names[id(unit)]}.{name}".removeprefix(".")
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if among is None or full in among:
                count += _local(parameter).numel()
        found.append(count)
    return found


def _local(parameter: nn.Parameter) -> Any:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@contextmanager
def fake_mesh(shards: int) -> Iterator[DeviceMesh | None]:
    """A mesh of processes that aren't there; none for a single one."""
    if shards == 1:
        yield None
        return
    # Importing it registers the backend.
    from torch.testing._internal.distributed import fake_pg

    assert not dist.is_initialized(), "a plan needs no processes"
    # Its start-up asks for neither address nor port; a launcher's must not be met.
    kept = {name: os.environ.pop(name, None) for name in ("RANK", "WORLD_SIZE")}
    dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=0, world_size=shards)
    try:
        yield init_device_mesh("cpu", (shards,))
    finally:
        dist.destroy_process_group()
        os.environ.update({name: value for name, value in kept.items() if value is not None})
