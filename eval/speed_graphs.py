"""How many graphs the blocks of a looped backbone compile to, as its loop count varies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo import config as compiler
from torch._dynamo.utils import counters

MOST = 256
"""Graphs after which the compiler would give up; its own limit would hide a storm behind it."""


@dataclass(frozen=True)
class GraphCount:
    """What one backbone compiled to.

    Attributes:
        counts: loop counts of the training steps, rising.
        graphs: graphs that there are after each of them.
        settled: the count by which every kind of loop was seen: the first, a later one, one before
            the gradient's window.
        breaks: why a block is more than one graph: reasons, and how often each was met.
    """

    counts: Sequence[int]
    graphs: Sequence[int]
    settled: int
    breaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def added(self) -> int:
        """Graphs that counts above `settled` added: none, unless each count compiles anew."""
        at = max(place for place, count in enumerate(self.counts) if count <= self.settled)
        return self.graphs[-1] - self.graphs[at]


def count_graphs(step: Callable[[int], Any], counts: Sequence[int], settled: int) -> GraphCount:
    """Run a training step at each loop count, rising, and count the graphs that it needed.

    Everything compiled before is forgotten first. Counted are the graphs that `torch.compile`
    captures; each has its own backward graph, which is not counted again.
    """
    torch.compiler.reset()
    counters.clear()
    graphs = []
    with compiler.patch(recompile_limit=MOST, accumulated_recompile_limit=MOST):
        for count in counts:
            step(count)
            graphs.append(int(counters["stats"]["unique_graphs"]))
    breaks = {reason.splitlines()[0]: times for reason, times in counters["graph_break"].items()}
    return GraphCount(list(counts), graphs, settled, breaks)
