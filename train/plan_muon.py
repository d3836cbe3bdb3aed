"""What Muon's orthogonalisation of momenta runs, and sends where matrices are sharded.

Five rounds of Newton-Schulz for every matrix: three products each. On whole matrices every GPU runs
all of them; on sharded ones PyTorch splits the products and moves matrices about, and how much that
is follows from running it: on the meta device, in a group of processes that aren't there.
"""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models.backbone import Backbone
from models.config import BackboneConfig

from .optim import OptimConfig, hidden_matrices
from .plan_shards import fake_mesh

ROUNDS = 5


class MuonWork(NamedTuple):
    """What one GPU does for the matrices of a step.

    Attributes:
        flops: of products, in bf16.
        sent: bytes that it sends.
        collectives: calls.
    """

    flops: float = 0.0
    sent: float = 0.0
    collectives: int = 0


def muon_work(backbone: BackboneConfig, optim: OptimConfig, shards: int) -> MuonWork:
    """Return what a GPU does in a step beside the backbone's own passes; nothing without Muon."""
    if optim.kind != "muon":
        return MuonWork()
    with torch.device("meta"):
        shapes = Counter(tuple(p.shape) for _, p in hidden_matrices(Backbone(backbone)))
    parts = [(_whole(shape) if shards == 1 else None, shape, n) for shape, n in shapes.items()]
    if shards > 1:
        with fake_mesh(shards) as mesh:
            parts = [(_sharded(shape, mesh, shards), shape, n) for _, shape, n in parts]
    sums = [[n * figure for figure in work] for work, _, n in parts if work is not None]
    flops, sent, collectives = (sum(column) for column in zip(*sums, strict=True))
    return MuonWork(flops, sent, round(collectives))


def _whole(shape: tuple[int, ...]) -> MuonWork:
    short, long = sorted(shape)
    return MuonWork(ROUNDS * (4.0 * short * short * long + 2.0 * short**3))


def _sharded(shape: tuple[int, ...], mesh: Any, shards: int) -> MuonWork:
    rows = min(-(-shape[0] // shards), shape[0])
    local = torch.empty(rows, shape[1], device="meta")
    stride = (shape[1], 1)
    whole = DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
    )
    weight = nn.Parameter(whole)
    weight.grad = torch.empty_like(weight)
    optimizer = torch.optim.Muon([weight], adjust_lr_fn="original")
    with _Counter(shards) as counter:
        optimizer.step()
    return MuonWork(counter.flops, counter.sent, counter.collectives)


class _Counter(TorchDispatchMode):
    """Counts what one process runs of operators on sharded tensors, and what it sends."""

    def __init__(self, shards: int) -> None:
        super().__init__()
        self.flops, self.sent, self.collectives = 0.0, 0.0, 0
        self._others = (shards - 1) / shards

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local operators come here afterwards
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet, name = func._overloadpacket, str(func)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        for kind, held, times in (
            ("all_gather_into", out, 1),
            ("reduce_scatter", args[0] if args else None, 1),
            ("all_reduce", out, 2),
            ("all_to_all", out, 1),
        ):
            if "c10d_functional" in name and kind in name and held is not None:
                self.sent += times * self._others * held.numel() * held.element_size()
                self.collectives += 1
        return out
