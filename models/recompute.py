"""Run a block again in the backward pass, rather than keep what it computed.

The second run computes the very numbers of the first: it sees the same inputs, what earlier layers
had handed on by then, and the same random numbers. What a block counts on the way (`is_again`) is
counted once.

Legend: B batch, T time, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .shared import Shared

_again = False  # of the module and not of a context: torch.compile guards on it


def is_again() -> bool:
    """Whether what runs now ran before, and is run again for its gradient."""
    return _again


def recomputed(run: Callable[[Tensor, Shared], Tensor], x_BTD: Tensor, shared: Shared) -> Tensor:
    """Return `run(x_BTD, shared)`, whose activations are made again in the backward pass.

    Args:
        run: what runs; it may put tensors into `shared`, for later layers.
        x_BTD: inputs.
        shared: what layers hand on; both runs see what was there before the first.
    """
    before = Shared(shared)

    def once(x_BTD: Tensor) -> tuple[Tensor, Shared]:
        own = Shared(before)
        return run(x_BTD, own), own

    made = checkpoint(once, x_BTD, use_reentrant=False, context_fn=_contexts)
    assert isinstance(made, tuple)
    y_BTD, handed_on = made
    shared.update(handed_on)
    return y_BTD


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _running_again()


@contextmanager
def _running_again() -> Iterator[None]:
    global _again
    before, _again = _again, True
    try:
        yield
    finally:
        _again = before
