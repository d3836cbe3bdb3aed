"""What the tests of looped depths share: small looped backbones, and what runs in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.backbone import Backbone
from models.block import Block
from models.depth.draws import Draws
from models.depth.fixed import FixedDepthConfig
from models.depth.looped import LoopedDepth, LoopedDepthConfig
from tests.models.cases import LENGTH, VOCABULARY, backbone_config, build_backbone

MIXERS = ("attn", "gdn", "mamba2")
"""One of each family: softmax, delta rule, decay."""
DRAWS = Draws(seed=3, stage=0, step=5, steps=10, rows=2)


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(VOCABULARY, (batch, LENGTH))


def looped(layout: str = "gdn attn", num_layers: int = 2, **settings: Any) -> Backbone:
    return build_backbone(backbone_config(layout, num_layers, depth=LoopedDepthConfig(**settings)))


def depth_of(backbone: Backbone) -> LoopedDepth:
    assert isinstance(backbone.depth, LoopedDepth)
    return backbone.depth


def stack_with_blocks_of(backbone: Backbone, indices: list[int]) -> Backbone:
    """Return a plain stack whose blocks are copies of these, and all else is the same."""
    layout = backbone.config.layout.split()
    names = [layout[index % len(layout)] for index in indices]
    plain = build_backbone(backbone_config(" ".join(names), len(names), depth=FixedDepthConfig()))
    weights = {k: v for k, v in backbone.state_dict().items() if not k.startswith("depth.")}
    for place, index in enumerate(indices):
        for name, value in backbone.depth.blocks[index].state_dict().items():
            weights[f"depth.blocks.{place}.{name}"] = value
    plain.load_state_dict(weights)
    return plain


@contextmanager
def positions_run(backbone: Backbone) -> Iterator[list[int]]:
    """Count the positions of every block that is called."""
    positions: list[int] = []
    blocks = [block for block in backbone.depth.blocks if isinstance(block, Block)]
    hooks = [
        block.register_forward_hook(lambda _, x, y: positions.append(x[0].shape[:2].numel()))
        for block in blocks
    ]
    yield positions
    for hook in hooks:
        hook.remove()
