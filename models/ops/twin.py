"""Switch from the fast operators to their step-by-step twins.

Every operator in this folder has two implementations: a fast one (chunked, or a fused kernel) and a
twin that follows the recurrence one token at a time using matrix products only. Inside
`step_by_step()` all operators run as their twins, so that a whole mixer or backbone can be compared
with the plain form, and its FLOPs counted on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_STEP_BY_STEP: ContextVar[bool] = ContextVar("step_by_step", default=False)


def runs_step_by_step() -> bool:
    """Return whether operators currently run as their step-by-step twins (never when compiled)."""
    # torch.compile can't look into a context variable: it would break the graph at each operator.
    return not torch.compiler.is_compiling() and _STEP_BY_STEP.get()


@contextmanager
def step_by_step() -> Iterator[None]:
    """Run every operator as its step-by-step twin within this context."""
    token = _STEP_BY_STEP.set(True)
    try:
        yield
    finally:
        _STEP_BY_STEP.reset(token)
