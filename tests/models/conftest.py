"""Seeded, and parametrised over mixers, backbones and packings (see `cases`)."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.mixer import Mixer
from tests.models.cases import (
    BACKBONE_CASES,
    CAUSAL_BACKBONES,
    CAUSAL_MIXERS,
    MIXER_CASES,
    PACKINGS,
    build_backbone,
    build_mixer,
)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=MIXER_CASES, ids=lambda case: case.replace(" ", "_"))
def mixer(request: pytest.FixtureRequest) -> Mixer:
    """Each mixer in turn, in float64, with random weights everywhere."""
    return build_mixer(MIXER_CASES[request.param])


@pytest.fixture(params=CAUSAL_MIXERS, ids=lambda case: case.replace(" ", "_"))
def causal_mixer(request: pytest.FixtureRequest) -> Mixer:
    """Each mixer that has a past and a state."""
    return build_mixer(MIXER_CASES[request.param])


@pytest.fixture(params=BACKBONE_CASES, ids=lambda case: case.replace(" ", "_"))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Each backbone in turn, in float64, with random weights everywhere."""
    return build_backbone(BACKBONE_CASES[request.param])


@pytest.fixture(params=CAUSAL_BACKBONES, ids=lambda case: case.replace(" ", "_"))
def causal_backbone(request: pytest.FixtureRequest) -> Backbone:
    """Each backbone that has a past and a state."""
    return build_backbone(BACKBONE_CASES[request.param])


@pytest.fixture(params=PACKINGS, ids=lambda packing: packing.replace(" ", "_"))
def segments(request: pytest.FixtureRequest) -> Tensor:
    """Each packing in turn: document ids of two rows."""
    return PACKINGS[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both precisions in which isolation and causality hold bit for bit."""
    return request.param
