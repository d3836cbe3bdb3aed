"""The backbones of experiment=chunking: as many training FLOPs as the flat one."""

from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from models.backbone import Backbone
from models.sizing import resolve
from models.twins import training_flops
from train.schema import register_schemas, to_config

VOCABULARY = 320
LENGTH = 119
"""Bytes of the document that a byte of its corpus stands in, on the mean."""


@cache
def flops(arm: str) -> float:
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config: Any = to_config(compose("train", ["experiment=chunking", f"backbone={arm}"]))[0]
    with torch.device("meta"):
        return training_flops(Backbone(resolve(config.backbone, VOCABULARY)), LENGTH)


@pytest.mark.parametrize("cut", ["cosine", "stride", "space", "two_levels"])
def test_training_flops_match(cut: str) -> None:
    assert flops(f"bytes_{cut}") == pytest.approx(flops("bytes_flat"), rel=0.05)
