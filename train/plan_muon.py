"""What Muon's orthogonalisation of momenta runs, sends and holds beside a step's own passes.

Five rounds of Newton-Schulz for every matrix, three products each. On whole matrices every GPU runs
all of them. On sharded ones (`train.muon`) each matrix is put together on one GPU, the largest
first, one for each GPU in a round. The first GPU has the largest of every round, and the others
wait for it, so its figures are the step's:

    FLOPs   its matrices': about those of all, divided by the GPUs
    bytes   its rows of all others' matrices, in float32, and its own matrices' rows of the others,
            made orthogonal, in bfloat16
    memory  its rows of all matrices, before (float32) and after (bfloat16); and what one round
            needs: the matrix, its copies, and two squares of its shorter side
"""

from typing import NamedTuple

import torch

from models.backbone import Backbone
from models.config import BackboneConfig

from .muon import STEPS
from .optim import OptimConfig, hidden_matrices
from .plan_cache import remembered
from .plan_shards import FLOAT
from .stage import set_trainable

HALF = 2
"""Bytes of an element that was made orthogonal: bfloat16."""


class MuonWork(NamedTuple):
    """What the GPU that has most to do does for the matrices of a step.

    Attributes:
        flops: of products, in bf16.
        sent: bytes that it sends.
        collectives: calls.
        held: bytes that sharded matrices take for the time of the optimiser's step.
    """

    flops: float = 0.0
    sent: float = 0.0
    collectives: int = 0
    held: float = 0.0


@remembered
def muon_work(
    backbone: BackboneConfig, optim: OptimConfig, shards: int, trainable: tuple[str, ...] = ()
) -> MuonWork:
    """Return what a GPU does in a step for Muon; nothing without it."""
    if optim.kind != "muon":
        return MuonWork()
    with torch.device("meta"):
        built = Backbone(backbone)
    set_trainable(built, list(trainable))
    shapes = [tuple(p.shape) for _, p in hidden_matrices(built) if p.requires_grad]
    return work_of_shapes(shapes, shards)


def work_of_shapes(shapes: list[tuple[int, ...]], shards: int) -> MuonWork:
    """Return what the first GPU does for matrices of these shapes."""
    if shards == 1:
        return MuonWork(sum(_flops(shape) for shape in shapes))
    order = sorted(shapes, key=lambda shape: -shape[0] * shape[1])
    rounds = [order[start : start + shards] for start in range(0, len(order), shards)]
    return MuonWork(
        sum(_flops(matrices[0]) for matrices in rounds),
        sum(_sent(matrices, shards) for matrices in rounds),
        2 * len(rounds),
        (FLOAT + HALF) * sum(_own(shape, shards) for shape in shapes)
        + max((_round(matrices, shards) for matrices in rounds), default=0),
    )


def _flops(shape: tuple[int, ...]) -> float:
    short, long = sorted(shape)
    return STEPS * (4.0 * short * short * long + 2.0 * short**3)


def _own(shape: tuple[int, ...], shards: int) -> int:
    """Elements of the first GPU: as many rows as torch.chunk gives it."""
    return -(-shape[0] // shards) * shape[1]


def _sent(matrices: list[tuple[int, ...]], shards: int) -> float:
    """Bytes of a round: parts to the owners of the others, and the own matrix back."""
    rows, columns = matrices[0]
    others = sum(_own(shape, shards) for shape in matrices[1:])
    return FLOAT * others + HALF * (rows * columns - _own(matrices[0], shards))


def _round(matrices: list[tuple[int, ...]], shards: int) -> float:
    """Bytes that a round holds while the first GPU makes its matrix orthogonal."""
    short, long = sorted(matrices[0])
    parts = sum(_own(shape, shards) for shape in matrices)
    # Parts on their way and the whole; its bfloat16 copy, the iterate, and the next one.
    return FLOAT * (parts + short * long) + HALF * (3 * short * long + 2 * short * short)
