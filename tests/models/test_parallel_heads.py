"""Parallel heads: the sum of their parts, and a whole layer of Falcon-H1."""

import pytest
import torch
from torch import Tensor

from models.block import Block
from models.mixers.attention import Attention
from models.mixers.mamba2 import Mamba2
from models.mlps.swiglu import SwiGLU
from models.parallel import Parallel
from tests.models.cases import (
    BACKBONE_CASES,
    LENGTH,
    PACKINGS,
    ROUNDING,
    backbone_config,
    build_backbone,
    randomise,
)

pytest.importorskip("transformers")

from transformers import FalconH1Config
from transformers.models.falcon_h1.modeling_falcon_h1 import (
    FalconH1DecoderLayer,
    FalconH1RotaryEmbedding,
    compute_mup_vector,
)

DIM, HEAD_DIM, HIDDEN, STATE = 32, 8, 40, 6
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def test_the_parts_are_added_up_by_their_weights() -> None:
    mixer = build_backbone(BACKBONE_CASES["parallel"]).depth.block(0).mixer
    assert isinstance(mixer, Parallel)
    x, segments = torch.randn(2, LENGTH, 16, dtype=torch.float64), PACKINGS["several"]
    said = [part(x, segments)[0] for part in mixer.parts()]
    expected = sum(weight * part for weight, part in zip(mixer.mix, said, strict=True))
    torch.testing.assert_close(mixer(x, segments)[0], expected, **ROUNDING)


def test_costs_are_those_of_the_parts() -> None:
    mixer = build_backbone(BACKBONE_CASES["parallel"]).depth.block(0).mixer
    assert isinstance(mixer, Parallel)
    whole, parts = mixer.cost(9), [part.cost(9) for part in mixer.parts()]
    assert whole.flops == sum(part.flops for part in parts)
    assert whole.state_bytes == sum(part.state_bytes for part in parts)


def theirs(norm: bool) -> FalconH1DecoderLayer:
    config = FalconH1Config(
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_d_ssm=2 * DIM,
        mamba_n_heads=2 * DIM // HEAD_DIM,
        mamba_d_head=HEAD_DIM,
        mamba_d_state=STATE,
        mamba_n_groups=2,
        mamba_chunk_size=16,
        mamba_rms_norm=norm,
        mamba_norm_before_gate=False,
        rms_norm_eps=1e-6,
        attention_out_multiplier=0.7,
        ssm_out_multiplier=1.3,
    )
    config._attn_implementation = "sdpa"
    layer = FalconH1DecoderLayer(config, 0).eval()
    randomise(layer)
    layer.mamba.register_buffer("mup_vector", compute_mup_vector(config), persistent=False)
    layer.rotary = FalconH1RotaryEmbedding(config)
    return layer


def ours(norm: bool) -> Block:
    config = backbone_config("attn+mamba2", 1, dim=DIM, head_dim=HEAD_DIM, mlp_hidden=HIDDEN)
    attention, mamba = config.mixers["attn"], config.mixers["mamba2"]
    for mixer, settings in (
        (attention, {"num_kv_heads": 2, "qk_norm": False, "conv_width": 0, "rope_base": 10000.0}),
        (mamba, {"num_groups": 2, "state_dim": STATE, "conv_bias": True, "norm": norm}),
    ):
        for name, value in settings.items():
            assert hasattr(mixer, name)
            setattr(mixer, name, value)
    return build_backbone(config, torch.float32).depth.block(0)


@torch.no_grad()
def copy(block: Block, layer: FalconH1DecoderLayer) -> None:
    """Their weights into ours; their fixed multipliers are where our learned weights start."""
    mixer, mlp = block.mixer, block.mlp
    assert isinstance(mixer, Parallel) and isinstance(mlp, SwiGLU)
    attention, mamba = mixer.parts()
    assert isinstance(attention, Attention) and isinstance(mamba, Mamba2)
    other, heads = layer.self_attn, layer.mamba
    gate, xbc, time = heads.in_proj.weight.split([2 * DIM, heads.conv_dim, heads.num_heads])
    qkv = [projection.weight for projection in (other.q_proj, other.k_proj, other.v_proj)]
    pairs: list[tuple[Tensor | None, Tensor]] = [
        (block.mixer_norm.weight, layer.input_layernorm.weight),
        (block.mlp_norm.weight if block.mlp_norm else None, layer.pre_ff_layernorm.weight),
        (attention.qkv.weight, torch.cat(qkv)),
        (attention.output.weight, other.o_proj.weight),
        (mamba.gate.weight, gate),
        (mamba.xbc.weight, xbc),
        (mamba.time.weight, time),
        (mamba.conv.weight, heads.conv1d.weight.flip(-1)),
        (mamba.conv_bias, heads.conv1d.bias),
        (mamba.rate.log_rate, heads.A_log),
        (mamba.rate.time_bias, heads.dt_bias),
        (mamba.skip, heads.D),
        (mamba.output.weight, heads.out_proj.weight),
        (
            mlp.gate_up.weight,
            torch.cat([layer.feed_forward.gate_proj.weight, layer.feed_forward.up_proj.weight]),
        ),
        (mlp.output.weight, layer.feed_forward.down_proj.weight),
    ]
    if mamba.norm is not None:
        pairs.append((mamba.norm.weight, heads.norm.weight))
    for target, source in pairs:
        assert target is not None
        target.copy_(source.reshape(target.shape))
    for weight, value in zip(mixer.mix, (0.7, 1.3), strict=True):
        weight.fill_(value)


@pytest.mark.parametrize("norm", [False, True])
@torch.no_grad()
def test_a_layer_is_falcon_h1s(norm: bool) -> None:
    layer, block = theirs(norm), ours(norm)
    copy(block, layer)
    x = torch.randn(2, 75, DIM)
    positions = torch.arange(75)[None]
    turned = layer.rotary(x, positions)
    expected = layer(x, position_embeddings=turned, position_ids=positions)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(block(x)[0], expected, **CLOSE)
