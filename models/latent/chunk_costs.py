"""What a document cost that was cut into chunks, counted from where they began.

Legend: none; this file counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..cost import Cost
from ..depth.depth import Depth
from .chunk import Chunk


@dataclass(frozen=True)
class ChunkedSpent:
    """What the bytes of a document cost.

    Attributes:
        flops: model FLOPs, without the last readout.
        block_calls: passes through blocks, times positions that were run.
        serial_calls: passes that had to wait for one another; the prompt's positions don't.
        state_bytes: bytes held at the end.
        chunks: positions that the depth ran.
    """

    flops: float
    block_calls: int
    serial_calls: int
    state_bytes: float
    chunks: int


class ChunkCosts:
    """Counts, byte by byte: each level, and the depth, sees as many positions as it has read.

    What a position costs that sees so many is computed once.

    Args:
        latent: who cuts.
        depth: what runs over chunks.
        loops: loops that it runs.
    """

    def __init__(self, latent: Chunk, depth: Depth, loops: int) -> None:
        self.levels = latent.each()
        self.calls = [level.own_calls for level in self.levels] + [len(depth.calls(loops))]
        self._costs = [cache(level.cost) for level in self.levels]
        self._costs.append(cache(lambda context: depth.cost(context, loops)))

    def spent(self, begins: Sequence[int], prompt: int) -> ChunkedSpent:
        """Return what positions cost that began chunks at so many levels, in order.

        The first `prompt` of them were read at once.
        """
        flops, ran = 0.0, [0] * len(self._costs)
        for count in begins:
            for stage in range(count + 1):
                ran[stage] += 1
                flops += self._costs[stage](ran[stage]).flops
        calls = sum(n * own for n, own in zip(ran, self.calls, strict=True))
        return ChunkedSpent(flops, calls, self._serial(begins, prompt), self._held(ran), ran[-1])

    def _serial(self, begins: Sequence[int], prompt: int) -> int:
        """The prompt once, as deep as any of it; then byte by byte."""
        one_by_one = [max(begins[:prompt], default=0), *begins[prompt:]]
        return sum(sum(self.calls[: count + 1]) for count in one_by_one)

    def _held(self, ran: Sequence[int]) -> float:
        seen: list[Cost] = [cost(n) for cost, n in zip(self._costs, ran, strict=True) if n]
        return sum(cost.state_bytes for cost in seen)
