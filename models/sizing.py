"""Derive the sizes that make backbones comparable: nothing is tuned by hand."""

from dataclasses import replace

import torch

from .backbone import Backbone
from .config import BackboneConfig
from .twins import twin_of

TOLERANCE = 0.03
"""Largest relative distance from the asked number of parameters."""


def resolve(config: BackboneConfig, vocab_size: int) -> BackboneConfig:
    """Fill in the vocabulary and the feed-forward width; put a twin in the backbone's place.

    Raises:
        ValueError: where the corpus's vocabulary differs from a set one, or no width comes within
            3% of `target_parameters`.
    """
    if config.vocab_size not in (0, vocab_size):
        raise ValueError(
            f"backbone.vocab_size={config.vocab_size}, but the corpus's tokenizer has {vocab_size}:"
            " set 0 to take the corpus's"
        )
    config = _with_width(replace(config, vocab_size=vocab_size))
    return config if config.twin == "none" else twin_of(config, config.twin)


def _with_width(config: BackboneConfig) -> BackboneConfig:
    if config.mlp_hidden is not None:
        return config
    if config.target_parameters is not None:
        return replace(config, mlp_hidden=matched_mlp_hidden(config, config.target_parameters))
    return replace(config, mlp_hidden=8 * -(-config.dim // 3))


def count_parameters(config: BackboneConfig) -> int:
    """Unique parameters of a resolved config; nothing is allocated."""
    with torch.device("meta"):
        return Backbone(config).num_parameters


def matched_mlp_hidden(config: BackboneConfig, target: int) -> int:
    """Return the feed-forward width whose backbone comes nearest to `target` parameters.

    The count is affine in the width, so two sizes determine it.
    """
    one, two = (count_parameters(replace(config, mlp_hidden=width)) for width in (1, 2))
    if two == one:
        raise ValueError(
            f"backbone.target_parameters={target} can't be met: no feed-forward network of the "
            f"{config.name} backbone takes its width from mlp_hidden; leave the target out"
        )
    width = round((target - one) / (two - one)) + 1
    if width < 1 or abs(one + (width - 1) * (two - one) - target) > TOLERANCE * target:
        raise ValueError(
            f"backbone.target_parameters={target} can't be met within {TOLERANCE:.0%}: the "
            f"{config.name} backbone has {one} parameters with the smallest feed-forward network; "
            "raise the target, or lower dim or num_layers"
        )
    return width
