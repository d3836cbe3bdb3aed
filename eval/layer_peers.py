"""transformers' mixer layers alone, in the shape of ours, run by its own torch code.

Each is built from its model's config and gets what its model would give it. Weights that its model
draws are drawn here, for a layer alone leaves them uninitialised; speed does not depend on them,
but a NaN or a denormal number would be slow.

Legend: B batch, T time, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.mixer import MixerConfig, Site

LAYERS = 4
"""Layers of the models that ours and theirs stand in, for mixers that ask."""


@dataclass(frozen=True)
class LayerPeer:
    """A layer of transformers, ready to be called.

    Attributes:
        name: what the table calls it.
        module: the layer.
        run: `(x_BTD, cache or None, first position) -> y_BTD`.
        new_cache: makes an empty cache; None where the layer alone can't decode.
    """

    name: str
    module: nn.Module
    run: Callable[[Tensor, Any, int], Tensor]
    new_cache: Callable[[], Any] | None


@dataclass(frozen=True)
class PeerKind:
    """What stands beside one of our mixers.

    Attributes:
        name: what the table calls it.
        build: makes it in the shape of ours (its config) at a site, for a chunk size.
        matched: settings of ours that make the shapes equal, where it has such settings.
    """

    name: str
    build: Callable[[str, Any, Site, int], LayerPeer]
    matched: tuple[tuple[str, Any], ...] = ()


def matched_config(config: MixerConfig, kind: PeerKind | None) -> MixerConfig:
    """Return our settings with what makes the shape that of the peer."""
    known = {} if kind is None else {k: v for k, v in kind.matched if hasattr(config, k)}
    return replace(config, **known)


def _gated_delta_net(name: str, ours: Any, site: Site, chunk: int) -> LayerPeer:
    import transformers
    from transformers.models.qwen3_next import modeling_qwen3_next as source

    heads, key_dim = site.heads(ours.num_heads, ours.head_dim)
    config = transformers.Qwen3NextConfig(
        **_shared(site),
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=key_dim,
        linear_value_head_dim=int(ours.expand_v * key_dim),
        layer_types=["linear_attention"] * LAYERS,
    )
    return _recurrent(name, source.Qwen3NextGatedDeltaNet(config, layer_idx=0), config)


def _kimi_delta_attention(name: str, ours: Any, site: Site, chunk: int) -> LayerPeer:
    import transformers
    from transformers.models.kimi_linear import modeling_kimi_linear as source

    heads, head_dim = site.heads(ours.num_heads, ours.head_dim)
    config = transformers.KimiLinearConfig(
        **_shared(site),
        linear_num_heads=heads,
        linear_head_dim=head_dim,
        layer_types=["linear_attention"] * LAYERS,
    )
    return _recurrent(name, source.KimiLinearDeltaAttention(config, layer_idx=0), config)


def _mamba2(name: str, ours: Any, site: Site, chunk: int) -> LayerPeer:
    import transformers
    from transformers.models.mamba2 import modeling_mamba2 as source

    head_dim = ours.head_dim or site.head_dim
    config = transformers.Mamba2Config(
        **_shared(site),
        num_heads=int(ours.expand * site.dim) // head_dim,
        head_dim=head_dim,
        state_size=ours.state_dim or site.head_dim,
        n_groups=ours.num_groups,
        expand=int(ours.expand),
        chunk_size=chunk,
    )
    return _recurrent(name, source.Mamba2Mixer(config, layer_idx=0), config)


def _lightning(name: str, ours: Any, site: Site, chunk: int) -> LayerPeer:
    import transformers
    from transformers.models.minimax import modeling_minimax as source

    heads, head_dim = site.heads(ours.num_heads, ours.head_dim)
    config = transformers.MiniMaxConfig(
        **_shared(site),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        layer_types=["linear_attention"] * LAYERS,
    )
    module = source.MiniMaxLightningAttention(config, layer_idx=0)
    return LayerPeer(name, module, lambda x, cache, start: module(x, _nowhere(x), None)[0], None)


def _attention(name: str, ours: Any, site: Site, chunk: int) -> LayerPeer:
    import transformers
    from transformers.models.qwen3 import modeling_qwen3 as source

    heads, head_dim = site.heads(ours.num_heads, ours.head_dim)
    settings: dict[str, Any] = {**_shared(site), "attn_implementation": "sdpa"}
    config = transformers.Qwen3Config(
        **settings,
        num_attention_heads=heads,
        num_key_value_heads=ours.num_kv_heads or heads,
        head_dim=head_dim,
    )
    module = source.Qwen3Attention(config, layer_idx=0)
    rotary = source.Qwen3RotaryEmbedding(config)

    def run(x_BTD: Tensor, cache: Any, start: int) -> Tensor:
        places = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)[None]
        turns = rotary(x_BTD, places)  # ours has it inside, too
        return module(x_BTD, turns, attention_mask=None, past_key_values=cache)[0]

    return LayerPeer(name, module, run, lambda: transformers.DynamicCache(config=config))


def _shared(site: Site) -> dict[str, Any]:
    return {"hidden_size": site.dim, "num_hidden_layers": LAYERS, "vocab_size": 64}


def _nowhere(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    return x_BTD, x_BTD  # Lightning attention takes positions and does not look at them


def _recurrent(name: str, module: nn.Module, config: Any) -> LayerPeer:
    import transformers

    def run(x_BTD: Tensor, cache: Any, start: int) -> Tensor:
        return module(x_BTD, cache_params=cache)

    return LayerPeer(name, module, run, lambda: transformers.DynamicCache(config=config))


LAYER_PEERS: dict[str, PeerKind] = {
    "attn": PeerKind("transformers Qwen3 attention", _attention),
    "gdn": PeerKind("transformers Qwen3-Next GDN", _gated_delta_net),
    "kda": PeerKind("transformers Kimi Linear KDA", _kimi_delta_attention, (("expand_v", 1.0),)),
    "mamba2": PeerKind("transformers Mamba-2", _mamba2),
    "lightning": PeerKind("transformers MiniMax Lightning", _lightning),
}
"""Which layer stands beside which of our mixers."""


def build_layer_peer(kind: PeerKind, ours: MixerConfig, site: Site, chunk: int) -> LayerPeer:
    """Build a peer in the shape of `ours`, with decays and time steps drawn as Mamba-2's."""
    import transformers

    transformers.logging.set_verbosity_error()
    peer = kind.build(kind.name, ours, site, chunk)
    draw(peer.module)
    return peer


@torch.no_grad()
def draw(module: nn.Module) -> None:
    """Draw decays and time steps, and whatever is zero or no number: nothing may be skipped."""
    for name, weight in module.named_parameters():
        if name.endswith("A_log"):
            weight.uniform_(1, 16).log_()
        elif name.endswith("dt_bias"):
            step = weight.uniform_(math.log(1e-3), math.log(0.1)).exp()
            weight.copy_(step + torch.log(-torch.expm1(-step)))
        elif weight.dim() > 1 and (not weight.isfinite().all() or not weight.any()):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
