"""Which corpora can be chunked."""

from data.tokenizer import ByteTokenizer, Tokenizer
from models.latent.latent import LatentConfig


def check_bytes(latent: LatentConfig, tokenizer: Tokenizer, kind: str) -> None:
    """Refuse a vocabulary whose tokens are chunks already.

    Args:
        latent: the scheme.
        tokenizer: the corpus's.
        kind: what its config calls it.

    Raises:
        ValueError: naming the key, and the one that will do.
    """
    if latent.reads_bytes and not isinstance(tokenizer, ByteTokenizer):
        raise ValueError(
            f"latent={latent.kind} cuts bytes into chunks, and data.tokenizer.kind={kind} has "
            "tokens of several already: set data.tokenizer.kind=bytes, or choose latent=none"
        )
