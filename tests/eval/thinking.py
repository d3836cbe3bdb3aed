"""Backbones that think before an answer: with drawn weights, and trained for a few steps."""

from pathlib import Path

from models.backbone import Backbone
from models.depth.depth import DepthConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.feedback import FeedbackConfig
from models.latent.latent import LatentConfig
from tests.eval.scripted import real_backbone
from tests.train.runs import small_backbone, small_run, train, with_trainer
from train.stage import StageConfig
from train.thinking import ThinkingConfig


def thinking_backbone(latent: LatentConfig, depth: DepthConfig | None = None) -> Backbone:
    """A small backbone in float64 that writes varied texts."""
    return real_backbone("gdn attn", latent=latent, depth=depth)


def train_run(folder: Path, thinks: bool) -> Path:
    """Train a run for a few steps: with two thoughts and two loops, or with neither."""
    latent = {"latent": FeedbackConfig(thoughts=2), "depth": LoopedDepthConfig(loops=2)}
    stages = [StageConfig(thinking=ThinkingConfig(steps=2 if thinks else 0))]
    config = small_run(
        folder, folder, backbone=small_backbone(**(latent if thinks else {})), stages=stages
    )
    return train(with_trainer(config, max_steps=2, checkpoint_every=2, validate_every=0))
