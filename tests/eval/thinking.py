"""Backbones that think before an answer: with drawn weights, and trained for a few steps."""

from pathlib import Path

import torch
from torch import nn

from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.depth import DepthConfig
from models.depth.fixed import FixedDepthConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.feedback import FeedbackConfig
from models.latent.latent import LatentConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from tests.eval.scripted import TOKENIZER
from tests.train.runs import small_backbone, small_run, train, with_trainer
from train.stage import StageConfig
from train.thinking import ThinkingConfig


def thinking_backbone(latent: LatentConfig, depth: DepthConfig | None = None) -> Backbone:
    """A small backbone in float64 that writes varied texts."""
    config = BackboneConfig(
        dim=16,
        num_layers=2,
        layout="gdn attn",
        mixers={
            "attn": AttentionConfig(num_heads=2, conv_width=3),
            "gdn": GatedDeltaNetConfig(num_heads=2, chunk_size=8),
        },
        depth=depth or FixedDepthConfig(),
        latent=latent,
        mlp_hidden=24,
        vocab_size=TOKENIZER.vocab_size,
    )
    torch.manual_seed(0)
    backbone = Backbone(config).double().eval()
    for weight in backbone.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.5)
    return backbone


def train_run(folder: Path, thinks: bool) -> Path:
    """Train a run for a few steps: with two thoughts and two loops, or with neither."""
    latent = {"latent": FeedbackConfig(thoughts=2), "depth": LoopedDepthConfig(loops=2)}
    stages = [StageConfig(thinking=ThinkingConfig(steps=2 if thinks else 0))]
    config = small_run(
        folder, folder, backbone=small_backbone(**(latent if thinks else {})), stages=stages
    )
    return train(with_trainer(config, max_steps=2, checkpoint_every=2, validate_every=0))
