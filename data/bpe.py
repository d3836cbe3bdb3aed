"""A byte-level BPE trained on a sample of the corpus itself, each digit a token of its own."""

from collections.abc import Iterable
from typing import Any

from .vocabulary import SPECIALS

# Of a source, or of each level of a task: enough for the merges of a few thousand tokens.
SAMPLED_DOCUMENTS = 500


def trained_bpe(texts: Iterable[str], vocab_size: int, tasks: Iterable[str] = ()) -> Any:
    """Train a tokenizer of the `tokenizers` package (BPE: Sennrich et al., arXiv 1508.07909).

    The bytes are its alphabet, so any text can be written and comes back exactly. Digits are never
    merged, since numbers are then written alike wherever they stand (arXiv 2305.14201).

    Args:
        texts: what merges are learned from; the same texts give the same tokenizer.
        vocab_size: tokens at most, special tokens and bytes among them; fewer where the texts have
            no more pairs.
        tasks: each gets the token that announces it.
    """
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    fast.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIALS, *(f"<{task}>" for task in tasks)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    return fast
