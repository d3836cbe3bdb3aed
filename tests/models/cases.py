"""What the conformance tests run over: every registered mixer, declared variants, whole backbones.

A mixer, depth or latent scheme joins by being registered; a packing, variant or layout by a line
here.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.listing import DEPTHS
from models.depth.looped import LoopedDepthConfig
from models.latent.listing import LATENTS
from models.mixer import Mixer, MixerConfig, Site
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.listing import MIXERS
from models.mixers.mamba2 import Mamba2Config

SITE = Site(dim=16, head_dim=4, layer=1, num_layers=3)
LENGTH = 21
CHUNK = 8
VOCABULARY = 24
ROUNDING = {"atol": 1e-10, "rtol": 1e-10}
"""How closely two float64 computations of the same mathematics agree."""

VARIANTS: dict[str, MixerConfig] = {
    "attn window": AttentionConfig(window=5),
    "attn window grouped conv": AttentionConfig(window=3, num_kv_heads=1, conv_width=4),
    "attn grouped": AttentionConfig(num_heads=4, num_kv_heads=2),
    "attn nope": AttentionConfig(rope_base=None),
    "attn unnormalised": AttentionConfig(qk_norm=False, head_dim=6, num_heads=2),
    "attn conv": AttentionConfig(conv_width=4),
    "gdn positive eigenvalues": GatedDeltaNetConfig(negative_eigenvalues=False),
    "gdn no conv": GatedDeltaNetConfig(conv_width=0, expand_v=1.0),
    "mamba2 groups": Mamba2Config(num_groups=2, state_dim=6),
    "mamba2 no conv": Mamba2Config(conv_width=0, expand=1.0),
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


def small_chunks(config: MixerConfig, chunk_size: int = CHUNK) -> MixerConfig:
    """Shrink the chunks, where there are any, so that short sequences cross their borders."""
    return replace(config, chunk_size=chunk_size) if hasattr(config, "chunk_size") else config


MIXER_CASES: dict[str, MixerConfig] = {
    name: small_chunks(config)
    for name, config in ({kind: made() for kind, made in MIXERS.items()} | VARIANTS).items()
}


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Move every parameter off its initial value: outputs and residual filters start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(scale * noise.to(parameter))


def build_mixer(config: MixerConfig, dtype: torch.dtype = torch.float64) -> Mixer:
    """Return a randomised mixer; the same config gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixer = config.build(SITE).to(torch.float64)
    randomise(mixer)
    return mixer.to(dtype)


MIXER_SETTINGS: dict[str, MixerConfig] = {
    **{kind: MIXER_CASES[kind] for kind in MIXERS},
    "attn": AttentionConfig(conv_width=3),
    "window": AttentionConfig(window=4, num_kv_heads=1),
}


def backbone_config(layout: str = "attn", num_layers: int = 2, **changes: Any) -> BackboneConfig:
    """Return settings of a tiny backbone; only the mixers that the layout names are defined."""
    names = {term.split("*")[-1] for term in layout.split()}
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
        if kind != "none"
    },
    "3*gdn attn": backbone_config("3*gdn attn", 4),
    "gdn mamba2 attn": backbone_config("gdn mamba2 attn", 3),
    "window mamba2 tied": backbone_config("window mamba2", 2, tie_embeddings=True),
    "looped": backbone_config(
        "attn", 3, depth=LoopedDepthConfig(prelude=1, coda=1, loops=3, injection="add")
    ),
    "looped bare": backbone_config(
        "gdn attn", 2, depth=LoopedDepthConfig(loops=2, injection="none", norm=False)
    ),
    "looped hybrid": backbone_config(
        "gdn mamba2 attn", 3, depth=LoopedDepthConfig(prelude=1, loops=2, injection="none")
    ),
}


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
    return backbone.to(dtype)


@cache
def shared_mixer(case: str) -> Mixer:
    """Return one float64 mixer of a case, for tests that change nothing in it."""
    return build_mixer(MIXER_CASES[case])


@cache
def shared_backbone(case: str) -> Backbone:
    """Return one float64 backbone of a case, for tests that change nothing in it."""
    return build_backbone(BACKBONE_CASES[case])
