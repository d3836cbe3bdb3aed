"""Backbones that chunk, beyond one level of the default: cases of the conformance tests."""

from typing import Any

from models.depth.looped import LoopedDepthConfig
from models.latent.chunk import ChunkConfig

CHUNKED: dict[str, dict[str, Any]] = {
    "two levels": {
        "layout": "gdn attn",
        "latent": ChunkConfig(levels=2, ratio=2, decoder="attn", decoder_layers=2),
    },
    "stride looped": {
        "layout": "mamba2 attn",
        "canon": "AC",
        "latent": ChunkConfig(router="stride", ratio=2),
        "depth": LoopedDepthConfig(loops=2),
    },
}
