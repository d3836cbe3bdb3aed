"""Where the written steps of a trace begin, in tokens."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from .roles import Role
from .tokenizer import Tokenizer


def step_borders(
    tokens: np.ndarray,
    roles: np.ndarray,
    texts: Sequence[str],
    ids: Sequence[list[int]],
    tokenizer: Tokenizer,
) -> np.ndarray:
    """Mark the first token of each piece of a trace.

    Args:
        tokens: of the whole document.
        roles: of the tokens.
        texts: the pieces of the trace as they are written: each step, then what ends the trace.
        ids: each piece encoded alone.
        tokenizer: decodes the trace, where pieces are not encoded as they are alone.

    Returns:
        `[T]` bool.
    """
    begins = np.zeros(len(tokens), dtype=bool)
    places = np.flatnonzero(roles == Role.TRACE)
    if not len(places):
        return begins
    trace = tokens[places].tolist()
    if [token for piece in ids for token in piece] == trace:
        starts = [0, *accumulate(map(len, ids))][:-1]
    else:
        starts = _by_length(trace, texts, tokenizer)
    begins[places[[start for start in starts if start < len(places)]]] = True
    return begins


def _by_length(trace: list[int], texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """The first token that ends behind each piece's beginning in the decoded text."""
    ends = [0, *accumulate(map(len, texts))][:-1]
    numbers = range(len(trace))
    return [
        bisect_left(numbers, start + 1, key=lambda n: len(tokenizer.decode(trace[: n + 1])))
        for start in ends
    ]
