"""How weights begin: what the papers say, and what training rests on."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from models.backbone import Backbone
from models.block import Block
from models.config import BackboneConfig
from models.depth.depth import DepthConfig
from models.depth.fixed import FixedDepthConfig
from models.depth.looped import LoopedDepthConfig
from models.gates import DecayGate, DecayRate
from models.layers import init_linear
from models.mixer import Mixer
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNet, GatedDeltaNetConfig
from models.mixers.mamba2 import Mamba2, Mamba2Config
from models.mlps.swiglu import SwiGLU
from tests.models.cases import BACKBONE_CASES, LENGTH, MIXER_CASES, SITE, VOCABULARY

MANY = 4096


def parameters_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    """Names of parameters that differ."""
    return [name for name in one if not torch.equal(one[name], two[name])]


def reset(mixer: Mixer, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    mixer.reset_parameters()
    return parameters_of(mixer)


@pytest.mark.parametrize("case", MIXER_CASES)
def test_resetting_again_draws_the_same_weights(case: str) -> None:
    mixer = MIXER_CASES[case].build(SITE)
    first = reset(mixer, 5)
    assert same(reset(mixer, 5), first) == [], "a reset depends on what was there before"
    assert same(reset(mixer, 6), first), "a reset draws nothing"


@pytest.mark.parametrize("case", MIXER_CASES)
def test_resetting_leaves_nothing_undefined(case: str) -> None:
    """Sharded models are made without storage, filled with whatever, then reset."""
    with torch.device("meta"):
        mixer = MIXER_CASES[case].build(SITE)
    mixer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.fill_(math.nan)
    weights = reset(mixer, 5)
    assert [name for name, value in weights.items() if not value.isfinite().all()] == []
    assert same(reset(MIXER_CASES[case].build(SITE), 5), weights) == []


@pytest.mark.parametrize("case", MIXER_CASES)
def test_a_new_block_is_the_identity(case: str) -> None:
    mixer = MIXER_CASES[case].build(SITE)
    x = torch.randn(2, LENGTH, SITE.dim)
    assert mixer(x)[0].count_nonzero() == 0
    assert torch.equal(Block(mixer, SITE.dim, SwiGLU(SITE.dim, 24))(x)[0], x)


@pytest.mark.parametrize("case", BACKBONE_CASES)
def test_a_new_backbone_has_no_opinion(case: str) -> None:
    """The loss starts at the logarithm of the vocabulary, unless the embedding reads out."""
    torch.manual_seed(3)
    backbone = Backbone(BACKBONE_CASES[case])
    out = backbone(torch.randint(VOCABULARY, (2, LENGTH)))
    logits = out.readout(out.hidden_BTD)
    if backbone.config.tie_embeddings:
        assert logits.std() < 0.2
    else:
        assert logits.count_nonzero() == 0
    assert backbone.embedding.weight.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("case", BACKBONE_CASES)
def test_a_seed_decides_all_weights(case: str) -> None:
    weights: list[dict[str, Any]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(parameters_of(Backbone(BACKBONE_CASES[case])))
    assert same(weights[0], weights[1]) == []
    assert same(weights[0], weights[2])


@pytest.mark.parametrize("case", BACKBONE_CASES)
def test_weights_are_float32(case: str) -> None:
    dtypes = {p.dtype for p in Backbone(BACKBONE_CASES[case]).parameters()}
    assert dtypes == {torch.float32}


def test_inner_weights_keep_the_scale_of_their_inputs() -> None:
    linear = nn.Linear(256, 512, bias=False)
    init_linear(linear)
    assert linear.weight.var().item() == pytest.approx(1 / 256, rel=0.03)
    assert linear(torch.randn(64, 256)).std().item() == pytest.approx(1, rel=0.05)


def rates(layer: DecayRate) -> tuple[torch.Tensor, torch.Tensor]:
    """The decay rates A and the time steps at a zero input."""
    time_step, _ = layer(torch.zeros(1, 1, len(layer.log_rate)))
    return layer.log_rate.exp(), time_step.flatten()


@pytest.mark.parametrize("decay_range", [(1.0, 16.0), (0.01, 16.0)])
def test_decay_rates_are_uniform(decay_range: tuple[float, float]) -> None:
    low, high = decay_range
    rate, _ = rates(DecayRate(MANY, decay_range))
    assert rate.min() >= low - 1e-4 and rate.max() <= high + 1e-4
    assert rate.mean().item() == pytest.approx((low + high) / 2, rel=0.03)
    assert rate.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.03)


def test_time_steps_are_log_uniform() -> None:
    _, step = rates(DecayRate(MANY, (1.0, 16.0)))
    low, high = math.log(1e-3), math.log(0.1)
    assert step.min() >= 1e-3 * 0.999 and step.max() <= 0.1 * 1.001
    assert step.log().mean().item() == pytest.approx((low + high) / 2, rel=0.02)
    assert step.log().std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.03)


def test_rates_survive_half_precision() -> None:
    """A rate of zero would be stored as -inf, and its head would be dead."""
    layer = DecayRate(MANY, (0.0, 0.1))
    assert layer.log_rate.min().item() >= math.log(0.01) - 1e-6
    half = layer.bfloat16()
    assert half.log_rate.isfinite().all()
    time_step, log_decay = half(torch.zeros(1, 1, MANY, dtype=torch.bfloat16))
    assert time_step.dtype == log_decay.dtype == torch.float32
    assert (log_decay < 0).all()


def test_a_decay_gate_never_grows() -> None:
    gate = DecayGate(16, 8, (0.01, 16.0))
    log_decay = gate(50 * torch.randn(4, LENGTH, 16))
    assert log_decay.shape == (4, LENGTH, 8)
    assert (log_decay <= 0).all() and log_decay.isfinite().all()


def test_mamba2_begins_as_published() -> None:
    mixer = Mamba2Config(head_dim=1, expand=float(MANY // 16)).build(SITE)
    assert isinstance(mixer, Mamba2)
    rate, _ = rates(mixer.rate)
    assert 1 <= rate.min() < 1.1 and 15.9 < rate.max() <= 16.001
    assert (mixer.skip == 1).all()


def test_gated_deltanet_begins_with_long_memory() -> None:
    """Mean log decay about -0.17 a token (fla, OLMo-Hybrid), not Qwen3-Next's -10."""
    mixer = GatedDeltaNetConfig(num_heads=MANY, head_dim=1).build(SITE)
    assert isinstance(mixer, GatedDeltaNet)
    log_decay = mixer.decay(torch.zeros(1, 1, SITE.dim))
    assert log_decay.mean().item() == pytest.approx(-0.17, abs=0.02)


def test_a_residual_convolution_begins_as_the_identity() -> None:
    mixer = MIXER_CASES["attn conv"].build(SITE)
    plain = MIXER_CASES["attn"].build(SITE)
    plain.load_state_dict({k: v for k, v in mixer.state_dict().items() if "conv" not in k})
    with torch.no_grad():
        for each in (mixer, plain):
            each.output.weight.copy_(torch.eye(SITE.dim))
    x = torch.randn(2, LENGTH, SITE.dim)
    torch.testing.assert_close(mixer(x)[0], plain(x)[0])


@pytest.mark.parametrize("depth", [FixedDepthConfig(), LoopedDepthConfig()])
def test_initialising_after_to_empty_equals_a_new_backbone(depth: DepthConfig) -> None:
    mixers = {"gdn": GatedDeltaNetConfig(), "attn": AttentionConfig(), "mamba2": Mamba2Config()}
    config = BackboneConfig(
        dim=32, layout="gdn attn mamba2", mixers=mixers, depth=depth, vocab_size=10, mlp_hidden=8
    )
    torch.manual_seed(0)
    new = Backbone(config)
    with torch.device("meta"):
        empty = Backbone(config).to_empty(device="cpu")
    for parameter in empty.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    torch.manual_seed(0)
    empty.reset_parameters()
    torch.manual_seed(0)
    new.reset_parameters()
    for (name, ours), theirs in zip(empty.named_parameters(), new.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
