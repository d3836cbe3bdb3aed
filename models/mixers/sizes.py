"""Checks that linear-attention mixers share: what their heads and chunks may measure."""


def expanded_dim(setting: str, factor: float, head_dim: int) -> int:
    """Return `factor * head_dim`, a whole number; `setting` is the factor's name in the config.

    Raises:
        ValueError: where it isn't whole, or below one.
    """
    size = factor * head_dim
    if size < 1 or size != int(size):
        raise ValueError(f"{setting}={factor} times head_dim={head_dim} is not a whole number")
    return int(size)


def check_chunk_size(chunk_size: int) -> None:
    """Raise ValueError on chunks without tokens."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1 token")
