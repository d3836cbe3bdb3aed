"""What each token of a document is for: the loss, the ledger and latent schemes read it."""

from enum import IntEnum


class Role(IntEnum):
    """The role of one token; stored as one byte a token in every shard, so values never change."""

    PAD = 0
    QUESTION = 1
    TRACE = 2
    THOUGHT = 3
    ANSWER = 4
    TEXT = 5
