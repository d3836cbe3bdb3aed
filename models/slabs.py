"""Read long sequences a slab of time at a time, where that keeps a recurrent layer in cache.

A layer that reads a whole sequence at once makes dozens of tensors of its length. On a CPU each of
them passes through main memory, and above some size is taken from the system and given back, every
time. Read slab by slab, as a state is read, they stay in cache, and a token costs the same in a
sequence of any length. This is chunked prefill with gradients through the state: the same sums, cut
at the ends of chunks. On other devices, and where torch.compile looks on, a sequence stays whole.

Legend: B batch, T time, D width.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .ops.twin import runs_step_by_step

Outputs = tuple[Tensor, ...]
Read = Callable[[Outputs, Tensor | None, Any], tuple[Outputs, Any]]
"""`(inputs [B, T, ...], segments [B, T] or None, state) -> (outputs [B, T, ...], state)`."""

_FLOATS, _LEAST_TOKENS, _MULTIPLE = 2**18, 256, 64


def slab_length(x_BTD: Tensor) -> int:
    """Tokens of each row to read at once: so many that the inputs fill one MiB; or all."""
    batch, length, dim = x_BTD.shape
    if not x_BTD.is_cpu or torch.compiler.is_compiling() or runs_step_by_step():
        return length
    tokens = max(_FLOATS // dim, _LEAST_TOKENS) // batch
    return max(_MULTIPLE, tokens - tokens % _MULTIPLE)


def fits_one_slab(x_BTD: Tensor) -> bool:
    """Whether a sequence is to be read whole."""
    return slab_length(x_BTD) >= x_BTD.shape[1]


def read_in_slabs(
    mixer: Any, read: Read, inputs: Outputs, segments_BT: Tensor | None, state: Any
) -> tuple[Outputs, Any]:
    """Call `read` on slabs of the inputs in turn, each from the state that the last one left.

    A first state is made by `mixer`; the last one is returned if one was given.
    """
    x_BTD, size = inputs[0], slab_length(inputs[0])
    slabs = list(zip(*(x.split(size, dim=1) for x in inputs), strict=True))
    parts = [None] * len(slabs) if segments_BT is None else segments_BT.split(size, dim=1)
    outputs, last = [], state
    if state is None:
        last = mixer.init_state(*x_BTD.shape[:2], x_BTD.device, x_BTD.dtype)
    for slab, segments in zip(slabs, parts, strict=True):
        made, last = read(slab, segments, last)
        outputs.append(made)
    whole = tuple(torch.cat(made, dim=1) for made in zip(*outputs, strict=True))
    return whole, None if state is None else last


Forward = Callable[..., tuple[Tensor, Any]]


def in_slabs(forward: Forward) -> Forward:
    """Let a mixer's `forward` read long sequences in slabs.

    For mixers whose state does not grow; their `forward` must go on from a state of its own making.
    Where it shares with other calls of the pass, a sequence stays whole.
    """

    @wraps(forward)
    def run(
        self: Any,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: Any = None,
        *shared: Any,
    ) -> tuple[Tensor, Any]:
        if shared or fits_one_slab(x_BTD):
            return forward(self, x_BTD, segments_BT, state, *shared)

        def read(inputs: Outputs, segments: Tensor | None, before: Any) -> tuple[Outputs, Any]:
            y_BTD, after = forward(self, *inputs, segments, before)
            return (y_BTD,), after

        (y_BTD,), state = read_in_slabs(self, read, (x_BTD,), segments_BT, state)
        return y_BTD, state

    return run
