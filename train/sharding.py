"""Shard what is trained over processes (FSDP2): which modules gather their weights as one.

A unit gathers its weights when it is called, drops them after, and gathers them again for its
backward pass. So the largest unit is what a process holds beside its shards; and a unit that is
called again and again gathers again and again. Therefore:

    a block that runs once in a pass                  is a unit
    blocks that are looped                            are one unit with the depth that loops them
    a latent scheme that runs the depth repeatedly    leaves the depth in the root: all of it is
                                                      gathered once
    everything else (embedding, head, norms, loss)    is the root's

Weights are drawn before they are sharded: drawing into shards gives each process the same numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from models.backbone import Backbone
from models.depth.depth import Depth


def shard_units(backbone: Backbone) -> list[nn.Module]:
    """Return the modules that gather their weights as one, inner ones first; the root is left out.

    Each parameter belongs to the innermost of them that it stands in; what stands in none is the
    root's.
    """
    latent = backbone.latent
    if latent.repeats_depth:
        return []
    own = [part for part in latent.modules() if isinstance(part, Depth)]
    return [unit for depth in (*own, backbone.depth) for unit in _units_of(depth)]


def _units_of(depth: Depth) -> list[nn.Module]:
    looped = {depth.order[layer] for layer in depth.looped}
    once = [block for place, block in enumerate(depth.blocks) if place not in looped]
    return [*once, depth] if looped else once


def shard(
    root: nn.Module,
    backbone: Backbone,
    mesh: DeviceMesh,
    offload: bool = False,
    hold: bool = False,
) -> None:
    """Shard a module's weights, which are drawn already, in place.

    Args:
        root: what is called in a training step.
        backbone: the part of it that has units.
        mesh: processes to shard over; of two dimensions, the first one holds replicas.
        offload: keep shards in the CPU's memory.
        hold: keep what a depth has gathered until its backward pass, for who runs a loop again
            after it.
    """
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    for unit in shard_units(backbone):
        drop = not (hold and isinstance(unit, Depth))
        fully_shard(unit, mesh=mesh, reshard_after_forward=drop, offload_policy=policy)
    fully_shard(root, mesh=mesh, offload_policy=policy)


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Hold the whole weights of these units while inside; all processes must come here."""
    units = [module for module in modules if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


def whole(x: Tensor) -> Tensor:
    """Return a tensor that may be in shards as a whole one; all processes must come here."""
    return x.full_tensor() if isinstance(x, DTensor) else x
