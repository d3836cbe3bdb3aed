"""From written tokens to an answer, and from several answers to one."""

from collections import Counter
from collections.abc import Iterable, Sequence

from data.tokenizer import Tokenizer


def answer_text(tokens: Sequence[int], tokenizer: Tokenizer, thinks: bool) -> str | None:
    """Return what stands between the end of the thought and the end of the text.

    None where the model never ended its thought or its text: an unfinished text has no answer.

    Args:
        tokens: what was written after the prompt.
        tokenizer: knows the two ends.
        thinks: whether the prompt opened a thought.
    """
    written = list(tokens)
    if not written or written[-1] != tokenizer.eos_id:
        return None
    start = 0
    if thinks:
        if tokenizer.end_think_id not in written:
            return None
        start = written.index(tokenizer.end_think_id) + 1
    return " ".join(tokenizer.decode(written[start:-1]).split())


def majority(answers: Iterable[str | None]) -> str | None:
    """Return the most frequent answer, on a tie the one given first; None where nobody answered."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__) if votes else None
