"""Muon (https://kellerjordan.github.io/posts/muon/) on matrices in shards.

A matrix must be seen whole to be made orthogonal. Each is put together in one process only, and
made orthogonal there; the processes share the matrices out, the largest first, so that those of one
round are about as large. A round is two exchanges: parts to the owners, and results back.

Legend: R rows, C columns of a matrix.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPSILON = 1e-7


class ShardedMuon(torch.optim.Muon):
    """torch's Muon; matrices in shards are made orthogonal each in one process."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step; whole matrices as torch does."""
        sharded = any(isinstance(p, DTensor) for g in self.param_groups for p in g["params"])
        if not sharded:
            return super().step(closure)
        assert closure is None, "the optimiser around this one calls closures"
        for group in self.param_groups:
            chosen = [p for p in group["params"] if p.grad is not None]
            parts = [self._update(p, group["momentum"]) for p in chosen]
            for parameter, part in zip(chosen, orthogonal_parts(chosen, parts), strict=True):
                rows, columns = parameter.shape
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                local = parameter.to_local()
                local.mul_(1 - group["lr"] * group["weight_decay"])
                local.add_(part, alpha=-rate)
        return None

    def _update(self, parameter: Tensor, momentum: float) -> Tensor:
        """Bring the average on; return this process's part of what is to be made orthogonal."""
        assert isinstance(parameter.grad, DTensor)
        gradient, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].to_local()
        average.lerp_(gradient.to_local(), 1 - momentum)
        return gradient.to_local().lerp(average, momentum)


def orthogonal_parts(parameters: list[DTensor], parts: list[Tensor]) -> list[Tensor]:
    """Return this process's parts of the matrices, made orthogonal.

    Args:
        parameters: how each matrix is cut: by rows, over the same processes.
        parts: this process's rows of each.
    """
    found: dict[int, Tensor] = {}
    if not parameters:
        return []
    for places in _rounds(parameters):
        chosen = [parameters[place] for place in places]
        made = _one_round(chosen, [parts[place] for place in places])
        found |= dict(zip(places, made, strict=True))
    return [found[place] for place in range(len(parts))]


def _rounds(parameters: list[DTensor]) -> Iterator[list[int]]:
    """Cut the matrices, the largest first, into rounds of one for each process."""
    _, size = _group_of(parameters[0])
    order = sorted(range(len(parameters)), key=lambda place: -parameters[place].numel())
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _group_of(parameter: DTensor) -> tuple[dist.ProcessGroup, int]:
    """Return the processes that hold a matrix together, and how many they are."""
    mesh = parameter.device_mesh
    assert parameter.placements[-1] == Shard(0), "matrices are cut by rows"
    group = mesh.get_group(mesh.ndim - 1)
    return group, dist.get_world_size(group)


def _one_round(parameters: list[DTensor], parts: list[Tensor]) -> list[Tensor]:
    """Make one matrix orthogonal in each process; the last round may have fewer."""
    group, size = _group_of(parameters[0])
    rank = dist.get_rank(group)
    device = torch.device(parameters[0].device_mesh.device_type)
    sent = [part.numel() for part in parts] + [0] * (size - len(parts))
    mine = parameters[rank] if rank < len(parameters) else None
    received = [0] * size if mine is None else _elements(mine, size)
    flat = torch.cat([part.flatten() for part in parts]).to(device)
    whole = flat.new_empty(sum(received))
    dist.all_to_all_single(whole, flat, received, sent, group=group)
    made = whole.bfloat16()
    if mine is not None:
        made = orthogonalise(whole.view(mine.shape)).flatten().contiguous()
    back = made.new_empty(sum(sent))
    dist.all_to_all_single(back, made, sent, received, group=group)
    pieces = back.split(sent)[: len(parts)]
    return [piece.view_as(part).to(part.device) for piece, part in zip(pieces, parts, strict=True)]


def _elements(parameter: DTensor, size: int) -> list[int]:
    """How many elements of a matrix each process holds: its rows are cut as torch.chunk cuts."""
    rows, columns = parameter.shape
    each = -(-rows // size)
    return [columns * max(0, min(each, rows - number * each)) for number in range(size)]


def orthogonalise(x_RC: Tensor) -> Tensor:
    """Return about U V^T of `x = U S V^T`, in bfloat16, by Newton-Schulz iterations.

    Each takes `x <- a x + (b x x^T + c (x x^T)^2) x`. The same numbers as in `torch.optim.Muon`.
    """
    first, second, third = COEFFICIENTS
    tall = x_RC.shape[0] > x_RC.shape[1]
    made = x_RC.bfloat16()
    made = made.T if tall else made
    made = made / made.norm().clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = made @ made.T
        made = torch.addmm(
            made, torch.addmm(gram, gram, gram, beta=second, alpha=third), made, beta=first
        )
    return made.T if tall else made
