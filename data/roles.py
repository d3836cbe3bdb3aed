"""What each token of a document is for: the loss, the ledger and latent schemes read it."""

from enum import IntEnum

import numpy as np


class Role(IntEnum):
    """The role of one token; stored as one byte a token in every shard, so values never change."""

    PAD = 0
    QUESTION = 1
    TRACE = 2
    THOUGHT = 3
    ANSWER = 4
    TEXT = 5


BEGINS_STEP = np.uint8(0x80)
"""Added to the role of a token that begins a written step, or what ends the trace."""
