"""transformers' models of the same shape, to measure against; only if it is installed."""

from importlib.util import find_spec
from typing import Any

import torch

PEERS = {
    "transformer": "transformers Llama",
    "gdn_hybrid": "transformers Qwen3-Next (3 GDN : 1 attention)",
    "mamba2": "transformers Mamba-2",
}
"""Which peer stands beside which of our backbones."""


def peers_installed() -> bool:
    """Whether transformers can be imported."""
    return find_spec("transformers") is not None


def build_peer(
    name: str, dim: int, layers: int, head_dim: int, vocab_size: int, mlp: int, chunk_size: int
) -> Any:
    """Build the peer of one of our backbones, with random weights.

    Args:
        name: a key of `PEERS`.
        dim: model width.
        layers: layers of our backbone; Mamba-2 has as many mixers.
        head_dim: width of a head.
        vocab_size: rows of the embedding.
        mlp: hidden width of the feed-forward networks (Mamba-2 has none).
        chunk_size: of Mamba-2, which transformers leaves to its caller (256 if it says nothing).
    """
    import transformers

    transformers.logging.set_verbosity_error()
    heads = dim // head_dim
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    attention = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": mlp,
        "attn_implementation": "sdpa",
    }
    if name == "transformer":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared, **attention))
    if name == "gdn_hybrid":
        config = transformers.Qwen3NextConfig(
            **shared,
            **attention,
            linear_num_key_heads=heads,
            linear_num_value_heads=heads,
            linear_key_head_dim=head_dim,
            linear_value_head_dim=2 * head_dim,
            mlp_only_layers=list(range(layers)),
        )
        return transformers.Qwen3NextForCausalLM(config)
    config = transformers.Mamba2Config(
        **shared,
        num_heads=2 * dim // head_dim,
        head_dim=head_dim,
        state_size=head_dim,
        n_groups=1,
        expand=2,
        chunk_size=chunk_size,
    )
    return transformers.Mamba2ForCausalLM(config)


def matched_mlp(
    name: str, shape: tuple[int, int, int, int], mlp: int, chunk_size: int, parameters: int
) -> int:
    """Return the hidden width that brings a peer nearest to a number of parameters.

    Qwen3-Next gates its attention's output, which ours does not; a narrower feed-forward network
    makes up for it. Nothing is allocated.
    """
    with torch.device("meta"):
        peer = build_peer(name, *shape, mlp, chunk_size)
    excess = sum(parameter.numel() for parameter in peer.parameters()) - parameters
    dim, layers = shape[:2]
    return max(1, mlp - round(excess / (3 * dim * layers)))
