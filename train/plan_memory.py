"""Bytes that a GPU of the run holds at the worst moment of a step, by part.

One GPU's step is run without contents (`train.plan_step`), with what is sharded counted by the
share that the GPU holds (`train.plan_shards`); what only several GPUs need comes on top:

    gradient buckets    ddp: copies of all gradients, to add up over GPUs
    gathered weights    fsdp2: the root's, which stay; forward the largest unit's twice, as received
                        and as unpacked; backward two neighbouring units' (one runs, the next is on
                        its way)
    optimizer step      fsdp2 with Muon: see `train.plan_muon`

A unit's gradients are whole until all are there, and a copy of them is sent, in every micro-batch:
the step is run so. With parallel.offload, shards lie in the CPU's memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from .plan_cache import remembered
from .plan_muon import MuonWork
from .plan_settings import Layout
from .plan_shards import FLOAT, UnitSize
from .plan_step import FORWARD, StepAsked, held_by_phases, most_held
from .plan_tracker import BACKWARD, GRADIENTS, OPTIMIZER, STEP, WEIGHTS

BUCKETS, GATHERED = "gradient buckets", "gathered weights"
GUESSES = 6


@dataclass(frozen=True)
class Memory:
    """What a GPU holds at most.

    Attributes:
        parts: bytes by part.
        rows: rows of its micro-batch.
        offloaded: bytes of its shards in the CPU's memory.
    """

    parts: Mapping[str, float]
    rows: int
    offloaded: float = 0.0

    @property
    def total(self) -> float:
        """Bytes held."""
        return sum(self.parts.values())


def memory_of(
    asked: StepAsked,
    units: list[UnitSize],
    layout: Layout,
    muon: MuonWork | None = None,
    offload: bool = False,
) -> Memory:
    """Return what a GPU holds at most in a step.

    Args:
        asked: the step of one GPU.
        units: of sharding, as `layout.shards` cut them.
        layout: how GPUs share the work.
        muon: what its matrices take, where Muon trains them.
        offload: shards lie in the CPU's memory.

    Raises:
        NotPredicted: what the step runs depends on what is read.
    """
    sharded = layout.strategy == "fsdp2"
    shares = shares_of(units, asked.optim.kind) if sharded else {}
    phases = _held(replace(asked, shares=shares, reduced=sharded))
    if sharded and muon is not None and muon.held:
        phases = {**phases, STEP: {**phases[STEP], STEP: muon.held}}
    if sharded:
        gathered = _gathered(units)
        phases = {phase: {**held, GATHERED: gathered[phase]} for phase, held in phases.items()}
    held = most_held(phases, shares)
    parts = {part: size * shares.get(part, 1.0) for part, size in held.items()}
    if layout.strategy == "ddp":
        parts[BUCKETS] = FLOAT * sum(unit.whole for unit in units)
    away = sum(parts.pop(part, 0.0) for part in _OFFLOADED) if offload else 0.0
    return Memory(parts, asked.rows, away)


_OFFLOADED = (WEIGHTS, GRADIENTS, OPTIMIZER)
_held = remembered(held_by_phases)


def shares_of(units: list[UnitSize], optim: str) -> dict[str, float]:
    """Return which share of each sharded part the first process holds."""
    whole = sum(unit.whole for unit in units)
    own = sum(unit.own for unit in units)
    matrices = sum(unit.own_matrices for unit in units)
    all_matrices = sum(unit.whole_matrices for unit in units)
    moments = (2 * own, 2 * whole)
    if optim == "muon":  # one average of a matrix, two of the rest
        moments = (2 * own - matrices, 2 * whole - all_matrices)
    return {
        WEIGHTS: own / whole,
        GRADIENTS: own / whole,
        OPTIMIZER: moments[0] / moments[1],
        # What Muon holds for a whole matrix is counted for itself; AdamW works on its shards.
        STEP: 1.0 if optim == "muon" else own / whole,
    }


def _gathered(units: list[UnitSize]) -> dict[str, float]:
    """Return bytes of gathered weights by the step's phases.

    On the way forward FSDP2 keeps what it received of a unit, beside the weights that it unpacked
    of it, until the next unit's have come or the pass has ended.
    """
    inner = [unit.whole for unit in units if not unit.is_root]
    root = sum(unit.whole for unit in units if unit.is_root)
    pairs = [sum(pair) for pair in zip(inner, [*inner[1:], 0], strict=True)]
    forward = root + 2 * max(inner, default=root / 2)
    backward = root + max(pairs, default=0)
    return {FORWARD: FLOAT * forward, BACKWARD: FLOAT * backward, STEP: FLOAT * backward}


def largest_rows(memory: Callable[[int], Memory], limit: float, start: Memory, most: int) -> int:
    """Return how many rows of a micro-batch fit under a limit: 0 to `most`.

    Memory grows nearly in proportion to rows, so two sizes tell where to look; the answer itself is
    run, and above a hundred rows it is found to a percent.
    """
    known = lru_cache(None)(lambda rows: start if rows == start.rows else memory(rows))
    one = known(1).total
    if one > limit:
        return 0
    if most == 1:
        return 1
    each = known(2).total - one
    low, high = 1, 0
    for _ in range(GUESSES):
        guess = max(low + 1, 1 + int((limit - one) / max(1.0, each)))
        guess = min(guess, high - 1 if high else most)
        held = known(guess).total
        low, high = (guess, high) if held <= limit else (low, guess)
        if low == most or (high and high - low <= max(1, low // 100)):
            break
        each = (held - one) / (guess - 1)
    return low
