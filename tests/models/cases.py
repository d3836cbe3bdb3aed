"""What the conformance tests run over: every registered mixer, declared variants, whole backbones.

A mixer, depth or latent scheme joins by being registered; a packing, variant or layout by a line
here.
"""

import copy
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.injection import INJECTIONS
from models.depth.listing import DEPTHS
from models.depth.looped import LoopedDepthConfig
from models.depth.nested import NestedDepthConfig
from models.depth.relaxation import RELAXATIONS
from models.depth.routing import ROUTES
from models.depth.start import STARTS
from models.latent.concept import ConceptConfig
from models.latent.listing import LATENTS
from models.latent.ponder2 import Ponder2Config
from models.layout import parse_layout
from models.mixer import Mixer, MixerConfig, Site
from models.mixers.attention import AttentionConfig
from models.mixers.delta_product import GatedDeltaProductConfig
from models.mixers.deltanet import DeltaNetConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.gated_delta2 import GatedDeltaNet2Config
from models.mixers.gla import GatedLinearAttentionConfig
from models.mixers.hgrn2 import HGRN2Config
from models.mixers.kda import KimiDeltaConfig
from models.mixers.listing import MIXERS
from models.mixers.mamba2 import Mamba2Config
from models.mixers.mamba3 import Mamba3Config
from models.mixers.mla import LatentAttentionConfig
from models.mixers.moba import MixtureOfBlocksConfig
from models.mixers.mom import MixtureOfMemoriesConfig
from models.mixers.nsa import NativeSparseConfig
from models.mixers.retnet import RetNetConfig
from models.mixers.rwkv7 import RWKV7Config
from models.mlps.listing import MLPS
from models.mlps.moe import MoEConfig
from models.mlps.relu2 import ReLU2Config
from models.residual import NORM_PLACES
from tests.models.chunk_cases import CHUNKED
from tests.models.published_cases import PUBLISHED, VOCABULARY, published, small_chunks

SITE = Site(dim=16, head_dim=4, layer=1, num_layers=3)
LENGTH = 21
ROUNDING = {"atol": 1e-10, "rtol": 1e-10}
"""How closely two float64 computations of the same mathematics agree."""

VARIANTS: dict[str, MixerConfig] = {
    "attn window": AttentionConfig(window=5),
    "attn window grouped conv": AttentionConfig(window=3, num_kv_heads=1, conv_width=4),
    "attn grouped": AttentionConfig(num_heads=4, num_kv_heads=2),
    "attn nope": AttentionConfig(rope_base=None),
    "attn unnormalised": AttentionConfig(qk_norm=False, head_dim=6, num_heads=2),
    "attn conv": AttentionConfig(conv_width=4),
    "attn gate": AttentionConfig(gate=True, num_kv_heads=2, rope_fraction=0.5),
    "attn window sinks": AttentionConfig(window=3, sinks=2),
    "attn window many sinks": AttentionConfig(window=1, sinks=7, num_kv_heads=1, conv_width=2),
    "attn whole": AttentionConfig(causal=False),
    "attn whole grouped conv": AttentionConfig(causal=False, num_kv_heads=2, conv_width=3),
    "mla low-rank queries": LatentAttentionConfig(q_rank=6, kv_rank=5, rope_dim=4),
    "mla nope": LatentAttentionConfig(rope_dim=0, num_heads=2, head_dim=3),
    "mla unrotated": LatentAttentionConfig(rope_dim=3, rope_base=None),
    "nsa small blocks": NativeSparseConfig(block_size=3, num_selected=3, window=4),
    "nsa grouped": NativeSparseConfig(num_kv_heads=2, block_size=2, num_selected=2, window=1),
    "moba small blocks": MixtureOfBlocksConfig(block_size=3, num_selected=3),
    "moba grouped": MixtureOfBlocksConfig(num_kv_heads=1, block_size=2, num_selected=2),
    "moba own block": MixtureOfBlocksConfig(block_size=4, num_selected=1, rope_base=None),
    "gdn positive eigenvalues": GatedDeltaNetConfig(negative_eigenvalues=False),
    "gdn no conv": GatedDeltaNetConfig(conv_width=0, expand_v=1.0),
    "gdn grouped": GatedDeltaNetConfig(num_heads=4, num_key_heads=2, expand_v=1.0),
    "deltanet gate": DeltaNetConfig(use_gate=True, negative_eigenvalues=True, expand_v=2.0),
    "delta_product three": GatedDeltaProductConfig(num_householder=3, conv_width=0),
    "kda bounded": KimiDeltaConfig(lower_bound=-5.0, negative_eigenvalues=True, gate_rank=3),
    "gdn2 bounded": GatedDeltaNet2Config(lower_bound=-5.0, negative_eigenvalues=True, expand_v=2.0),
    "rwkv7 heads": RWKV7Config(num_heads=3, head_dim=4, decay_rank=3, rate_rank=4, gate_rank=5),
    "mom no shared": MixtureOfMemoriesConfig(shared_memory=False, top_k=1, expand_v=2.0),
    "mamba2 groups": Mamba2Config(num_groups=2, state_dim=6),
    "mamba2 no conv": Mamba2Config(conv_width=0, expand=1.0),
    "mamba2 biased": Mamba2Config(conv_bias=True, norm=False),
    "retnet nope": RetNetConfig(rope_base=None, expand_v=1.0),
    "gla conv": GatedLinearAttentionConfig(conv_width=3, expand_k=1.0),
    "hgrn2 unbounded": HGRN2Config(state_dim=6, lower_bound=0.0),
    "mamba3 groups": Mamba3Config(num_groups=2, state_dim=6, rope_fraction=1.0),
}

# Lengths of the documents of two rows; a negative one is padding.
DOCUMENTS = {
    "one": [[21], [21]],
    "several": [[5, 9, 7], [8, 8, 5]],
    "short": [[1, 1, 1, 10, 1, 1, 6], [20, 1]],
    "left padded": [[-6, 15], [-20, 1]],
    "right padded": [[12, -9], [7, 8, -6]],
}


def segments_of(rows: list[list[int]]) -> Tensor:
    """Document ids of rows given by the lengths of their documents; negative is padding."""
    flat = []
    for row in rows:
        names = itertools.count()
        for length in row:
            flat += [next(names) if length > 0 else -1] * abs(length)
    return torch.tensor(flat).view(len(rows), -1)


PACKINGS = {name: segments_of(rows) for name, rows in DOCUMENTS.items()}


def documents(segments_BT: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield each document's name and the mask `[B, T]` of its tokens, padding included."""
    for row, ids in enumerate(segments_BT):
        for document in ids.unique().tolist():
            mask = torch.zeros_like(segments_BT, dtype=torch.bool)
            mask[row] = ids == document
            yield f"document {document} of row {row}", mask


MIXER_CASES: dict[str, MixerConfig] = {
    name: small_chunks(config)
    for name, config in ({kind: made() for kind, made in MIXERS.items()} | VARIANTS).items()
}


CAUSAL_MIXERS = [name for name, config in MIXER_CASES.items() if getattr(config, "causal", True)]
"""Cases that have a past and a state; the others see whole documents."""


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Move every parameter off its initial value: outputs and residual filters start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(scale * noise.to(parameter))


def build_mixer(
    config: MixerConfig, site: Site = SITE, dtype: torch.dtype = torch.float64
) -> Mixer:
    """Return a randomised mixer; the same config gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixer = config.build(site).to(torch.float64)
    randomise(mixer)
    return mixer.to(dtype)


MIXER_SETTINGS: dict[str, MixerConfig] = {
    **{kind: MIXER_CASES[kind] for kind in MIXERS},
    "attn": AttentionConfig(conv_width=3),
    "window": AttentionConfig(window=4, num_kv_heads=1),
    "whole": AttentionConfig(causal=False),
    "nsa": NativeSparseConfig(block_size=3, num_selected=3, window=4),
    "moba": MixtureOfBlocksConfig(block_size=3, num_selected=3),
}


def backbone_config(layout: str = "attn", num_layers: int = 2, **changes: Any) -> BackboneConfig:
    """Return settings of a tiny backbone; only the mixers that the layout names are defined."""
    layers = parse_layout(layout, num_layers, list(MIXER_SETTINGS))
    names = {name for layer in layers for name, _ in layer.parts}
    settings: dict[str, Any] = {
        "dim": 16,
        "num_layers": num_layers,
        "head_dim": 4,
        "layout": layout,
        "mixers": {name: copy.copy(MIXER_SETTINGS[name]) for name in sorted(names)},
        "mlp_hidden": 24,
        "vocab_size": VOCABULARY,
    }
    return BackboneConfig(**{**settings, **changes})


def adaptive(**settings: Any) -> LoopedDepthConfig:
    """A prelude, four loops, a gate; as the settings say otherwise."""
    return LoopedDepthConfig(**{"prelude": 1, "loops": 4, "halting": "gate", **settings})


BACKBONE_CASES: dict[str, BackboneConfig] = {
    **{kind: backbone_config(kind) for kind in MIXERS},
    **{
        f"{kind} depth": backbone_config("gdn attn", depth=made())
        for kind, made in DEPTHS.items()
        if kind != "fixed"
    },
    **{
        f"{kind} latent": backbone_config("gdn attn", latent=made())
        for kind, made in LATENTS.items()
        if kind != "none" and not made.thinks  # thoughts before an answer: test_latent_conformance
    },
    "pause between latent": backbone_config("gdn attn", latent=Ponder2Config(content="pause")),
    **{f"chunk {name}": backbone_config(**made) for name, made in CHUNKED.items()},
    "concept canon": backbone_config("swa:3+gdn window", 4, canon="A", latent=ConceptConfig()),
    "concept shared": backbone_config("attn@a gdn attn@a", 3, latent=ConceptConfig(layer=2)),
    "3*gdn attn": backbone_config("3*gdn attn", 4),
    "gdn mamba2 attn": backbone_config("gdn mamba2 attn", 3),
    "window mamba2 tied": backbone_config("window mamba2", 2, tie_embeddings=True),
    **{
        f"{kind} mlp": backbone_config("gdn attn", mlp=made())
        for kind, made in MLPS.items()
        if kind != "swiglu"
    },
    "moe alone": backbone_config(
        "attn", mlp=MoEConfig(num_experts=3, top_k=1, shared_experts=0, expert_hidden=5)
    ),
    "canon": backbone_config("gdn attn", canon="ACD", canon_width=3),
    "canon looped": backbone_config(
        "attn@a mamba2! attn@a", 3, canon="AC", canon_width=2, depth=LoopedDepthConfig(loops=2)
    ),
    "parallel": backbone_config("attn+mamba2 swa:3+gdn!", 2, canon="A"),
    "shared": backbone_config("2*mamba2 attn@a", 6),
    "shared values": backbone_config("gdn 3*rwkv7 rwkv7+attn", 5, mlp=ReLU2Config(), canon="C"),
    "overridden": backbone_config(
        "attn gdn", 3, overrides={"0": {"window": 4, "mlp": "none"}, "2": {"mlp": "relu2"}}
    ),
    **{
        f"norm {place}": backbone_config("gdn attn", norm_place=place)
        for place in NORM_PLACES
        if place != "pre"
    },
    "norm post canon": backbone_config("gdn attn", canon="ACD", norm_place="post"),
    "norm post looped mixers": backbone_config(
        "gdn attn",
        norm_place="post",
        depth=LoopedDepthConfig(loops=2, part="mixer", order="sequence", injection="none"),
    ),
    "norm sandwich moe": backbone_config("attn+gdn", mlp=MoEConfig(), norm_place="sandwich"),
    "norm sandwich_res looped": backbone_config(
        "gdn attn",
        4,
        norm_place="sandwich_res",
        depth=LoopedDepthConfig(prelude=1, coda=1, loops=3, injection="concat", start="noise"),
    ),
    # One layout for each pair of families: softmax, decayed, delta rule, sparse, memory.
    **{
        layout: backbone_config(layout)
        for layout in (
            *("swa gla", "mla kda", "attn nsa", "attn mom", "hgrn2 rwkv7", "mamba3 moba"),
            *("retnet mom", "gdn2 nsa", "delta_product mom", "moba mom", "lightning deltanet"),
        )
    },
    **{f"published {name}": published(name) for name in PUBLISHED},
    "looped": backbone_config(
        "attn", 3, depth=LoopedDepthConfig(prelude=1, coda=1, loops=3, injection="add")
    ),
    "looped bare": backbone_config(
        "gdn attn", 2, depth=LoopedDepthConfig(loops=2, injection="none", norm=False)
    ),
    **{
        f"injection {name}": backbone_config(
            "gdn attn", 3, depth=LoopedDepthConfig(prelude=1, loops=3, injection=name)
        )
        for name in INJECTIONS
    },
    **{
        f"start {name}": backbone_config(
            "mamba2 attn", 2, depth=LoopedDepthConfig(loops=2, start=name, injection="concat")
        )
        for name in STARTS
    },
    **{
        f"relaxation {name}": backbone_config(
            "attn gdn mla", 3, depth=LoopedDepthConfig(loops=3, relaxation=name, rank=2)
        )
        for name in RELAXATIONS
    },
    "loops in sequence": backbone_config(
        "gdn attn",
        3,
        depth=LoopedDepthConfig(prelude=1, loops=2, order="sequence", injection="none"),
    ),
    "looped mixers": backbone_config(
        "gdn attn mamba2!",
        4,
        canon="AC",
        depth=LoopedDepthConfig(
            prelude=1, loops=3, part="mixer", order="sequence", injection="none"
        ),
    ),
    "nested groups": backbone_config(
        "gdn attn mamba2",
        4,
        depth=NestedDepthConfig(prelude=1, coda=1, high_layers=1, loops=2, start="input"),
    ),
    "whole nested": backbone_config("whole", depth=NestedDepthConfig(loops=2)),
    "whole nested groups": backbone_config("whole", 3, depth=NestedDepthConfig(high_layers=1)),
    "whole in part": backbone_config("whole gdn attn+whole", 3, canon="A"),
    "normed loops": backbone_config("attn", depth=LoopedDepthConfig(loops=2, norm_output=True)),
    "looped hybrid": backbone_config(
        "gdn mamba2 attn", 3, depth=LoopedDepthConfig(prelude=1, loops=2, injection="none")
    ),
    "halting act": backbone_config("gdn attn", depth=LoopedDepthConfig(loops=3, halting="act")),
    "memory carry": backbone_config(
        "gdn mamba2 attn", 3, depth=LoopedDepthConfig(loops=3, memory="carry")
    ),
    "memory carry deltas": backbone_config(
        "kda gdn2 deltanet delta_product",
        4,
        depth=LoopedDepthConfig(prelude=1, loops=2, memory="carry"),
    ),
    **{
        f"stops {stop.split(':')[0]}": backbone_config(layout, 3, depth=adaptive(stop=stop))
        for layout, stop in (
            ("gdn attn mamba2", "gate:0.6"),
            ("gdn", "fixed_point:0.9"),
            ("attn", "margin:0.03"),
            ("rwkv7 attn", "kl:0.02"),
        )
    },
    "stops act": backbone_config(
        "gdn attn",
        3,
        canon="AC",
        depth=adaptive(halting="act", stop="gate:0.99", injection="lanes", coda=1),
    ),
    "stops reuse": backbone_config(
        "attn window", 2, depth=adaptive(prelude=0, stop="entropy:2.8", holes="reuse")
    ),
    **{
        f"routed {route}": backbone_config(
            "gdn attn mamba2", 4, depth=LoopedDepthConfig(prelude=1, loops=3, route=route)
        )
        for route in ROUTES
    },
}
VARYING = [
    case
    for case, config in BACKBONE_CASES.items()
    if config.latent.by_content
    or (
        isinstance(config.depth, LoopedDepthConfig)
        and (config.depth.stop, config.depth.route) != ("none", "none")
    )
]
"""Cases whose tokens run different numbers of loops or chunks: it depends on what is read."""


CAUSAL_BACKBONES = [
    name
    for name, config in BACKBONE_CASES.items()
    if all(getattr(mixer, "causal", True) for mixer in config.mixers.values())
]

# Ways to read a row in pieces: the length of each.
PIECES = st.sets(st.integers(1, LENGTH - 1)).map(
    lambda cuts: [b - a for a, b in itertools.pairwise([0, *sorted(cuts), LENGTH])]
)


def build_backbone(config: BackboneConfig, dtype: torch.dtype = torch.float64) -> Backbone:
    """Return a randomised backbone; the same config gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(config).to(torch.float64)
    randomise(backbone)
    if config.latent.kind in CHAINS:
        soften(backbone)
    return backbone.to(dtype)


CHAINS = ("ponder2",)
"""Latent schemes in which a text is one chain of hidden states, each fed back into the next."""


def soften(backbone: Backbone) -> None:
    """Shrink what blocks add to the residual stream.

    A chain of random blocks is chaotic: over 42 positions it stretches a change of 1e-12 to 1e-4,
    and rounding as much, so nothing could be compared to ten digits. With small blocks it isn't.
    """
    for name, parameter in backbone.depth.named_parameters():
        if parameter.dim() > 1 and name.endswith("output.weight"):
            parameter.data.mul_(0.2)


@cache
def shared_mixer(case: str) -> Mixer:
    """Return one float64 mixer of a case, for tests that change nothing in it."""
    return build_mixer(MIXER_CASES[case])


@cache
def shared_backbone(case: str) -> Backbone:
    """Return one float64 backbone of a case, for tests that change nothing in it."""
    return build_backbone(BACKBONE_CASES[case])
