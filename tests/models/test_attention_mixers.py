"""The options of softmax attention, and latent attention, against their papers and others' code."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.mixer import Mixer, MixerConfig, Site
from models.mixers.attention import Attention, AttentionConfig, SlidingWindowConfig
from models.mixers.mla import LatentAttention, LatentAttentionConfig
from models.ops.rotary import rotate
from tests.models.cases import LENGTH, PACKINGS, ROUNDING, SITE, build_mixer

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, SITE.dim, dtype=torch.float64)


def alone(segments: Tensor, mixer: Mixer, x: Tensor, read: Any) -> Tensor:
    """Run `read(mixer, tokens [T, D])` on each document alone."""
    out = torch.zeros_like(x)
    for row, ids in enumerate(segments):
        for document in ids.unique():
            own = ids == document
            out[row, own] = read(mixer, x[row, own])
    return out


def turned(x: Tensor, position: int, dims: int) -> Tensor:
    """Rotate the first `dims` of a vector at this position, pair by pair."""
    x, half = x.clone(), dims // 2
    for pair in range(half):
        angle = position * 10000.0 ** (-2 * pair / dims)
        a, b = x[pair].clone(), x[pair + half].clone()
        x[pair] = a * math.cos(angle) - b * math.sin(angle)
        x[pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return x


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-6).sqrt() * weight


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """`sum_s softmax_s(scale q . k_s) v_s`, written out."""
    weights = [torch.exp(scale * (q @ k)) for k in keys]
    total = sum(weights)
    return sum((w / total * v for w, v in zip(weights, values, strict=True)), 0 * values[0])


def attention_of_one(mixer: Attention, x_TD: Tensor) -> Tensor:
    """One document, position by position, straight from the settings' meaning."""
    config, size = mixer.config, mixer.head_dim
    dims = int(size * config.rope_fraction) if config.rope_base else 0
    group, outputs = mixer.heads // mixer.kv_heads, []
    split = mixer.qkv(x_TD).split(mixer.sizes, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, size)) for part in split)
    weights = [norm.weight for norm in mixer.norms]
    for t in range(len(x_TD)):
        seen = [
            s
            for s in range(t + 1)
            if config.window is None or t - s < config.window or s < config.sinks
        ]
        heads = []
        for head in range(mixer.heads):
            query = turned(normed(q[t, head], weights[0]), t, dims)
            keys = [turned(normed(k[s, head // group], weights[1]), s, dims) for s in seen]
            values = [v[s, head // group] for s in seen]
            heads.append(attend(query, keys, values, size**-0.5))
        read = torch.cat(heads)
        if mixer.gate is not None:
            read = read * torch.sigmoid(mixer.gate.weight @ x_TD[t])
        outputs.append(mixer.output(read))
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(gate=True),
        AttentionConfig(rope_fraction=0.5, num_kv_heads=2),
        AttentionConfig(window=3, sinks=2, num_kv_heads=1, gate=True),
        AttentionConfig(window=1, sinks=4),
        SlidingWindowConfig(window=4),
    ],
    ids=["gate", "partial rope", "sinks", "sinks alone", "swa"],
)
@torch.no_grad()
def test_attention_is_what_its_settings_say(config: AttentionConfig, segments: Tensor) -> None:
    mixer, x = build_mixer(config), inputs()
    expected = alone(segments, mixer, x, attention_of_one)
    torch.testing.assert_close(mixer(x, segments)[0], expected, **ROUNDING)


def latent_attention_of_one(mixer: LatentAttention, x_TD: Tensor) -> Tensor:
    """Equations 9 to 19 of DeepSeek-V2 (arXiv 2405.04434), nothing absorbed."""
    rank, size, rope = mixer.rank, mixer.head_dim, mixer.rope_dim
    dims, outputs = rope if mixer.config.rope_base else 0, []
    up_keys = mixer.keys.weight.view(mixer.heads, size, rank)
    up_values = mixer.values.weight.view(mixer.heads, size, rank)
    down = x_TD @ mixer.latent.weight.T
    latents = [normed(c[:rank], mixer.latent_norm.weight) for c in down]
    shared = [turned(c[rank:], s, dims) for s, c in enumerate(down)]
    for t, x in enumerate(x_TD):
        if mixer.query_down is not None and mixer.query_norm is not None:
            x = normed(mixer.query_down.weight @ x, mixer.query_norm.weight)
        queries = (mixer.query.weight @ x).view(mixer.heads, size + rope)
        heads = []
        for head, q in enumerate(queries):
            q = torch.cat([q[:size], turned(q[size:], t, dims)])
            keys = [torch.cat([up_keys[head] @ latents[s], shared[s]]) for s in range(t + 1)]
            values = [up_values[head] @ latents[s] for s in range(t + 1)]
            heads.append(attend(q, keys, values, (size + rope) ** -0.5))
        outputs.append(mixer.output(torch.cat(heads)))
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "config",
    [
        LatentAttentionConfig(),
        LatentAttentionConfig(q_rank=6, kv_rank=5, rope_dim=4),
        LatentAttentionConfig(rope_dim=0),
        LatentAttentionConfig(rope_base=None),
    ],
    ids=["default", "low rank", "no rotary part", "unrotated"],
)
@torch.no_grad()
def test_latent_attention_is_the_papers(config: LatentAttentionConfig, segments: Tensor) -> None:
    mixer, x = build_mixer(config), inputs()
    expected = alone(segments, mixer, x, latent_attention_of_one)
    torch.testing.assert_close(mixer(x, segments)[0], expected, **ROUNDING)


def test_only_latents_are_remembered() -> None:
    mixer = LatentAttentionConfig(kv_rank=32, rope_dim=8, num_heads=8).build(Site(64, 8))
    state = mixer.init_state(1, 100, "cpu", torch.float32)
    assert state.nbytes == 4 * (32 + 8) * 100 == mixer.cost(100).state_bytes
    plain = AttentionConfig(num_heads=8).build(Site(64, 8))
    assert plain.cost(100).state_bytes == 4 * (2 * 64) * 100


def test_sinks_and_window_bound_the_state_and_the_cost() -> None:
    mixer = AttentionConfig(window=16, sinks=4).build(SITE)
    assert mixer.init_state(1, 100, "cpu", torch.float32).keys_BSGK.shape[1] == 20
    assert mixer.cost(19).flops < mixer.cost(20).flops == mixer.cost(1000).flops
    assert mixer.cost(20).state_bytes == mixer.cost(1000).state_bytes


def test_sinks_stay_when_the_window_has_moved_on() -> None:
    """Decoding far beyond the window still reads the first tokens, and only them and the last."""
    mixer, x = build_mixer(AttentionConfig(window=3, sinks=2, rope_base=None)), inputs()
    outputs = []
    for changed in range(LENGTH):
        other = x.clone()
        other[:, changed] += 1
        state = mixer.init_state(2, LENGTH, "cpu", torch.float64)
        for t in range(LENGTH):
            y, state = mixer(other[:, t : t + 1], None, state)
        outputs.append(y)
    plain = mixer(x)[0][:, -1:]
    read = [t for t, y in enumerate(outputs) if not torch.allclose(y, plain, **ROUNDING)]
    assert read == [0, 1, LENGTH - 3, LENGTH - 2, LENGTH - 1]


def test_swa_is_attention_with_a_window() -> None:
    x, segments = inputs(), PACKINGS["several"]
    window = build_mixer(SlidingWindowConfig(window=5))
    plain = build_mixer(AttentionConfig(window=5))
    assert torch.equal(window(x, segments)[0], plain(x, segments)[0])
    assert SlidingWindowConfig.argument == AttentionConfig.argument == "window"


def test_a_fraction_of_one_turns_whole_heads() -> None:
    x = torch.randn(2, LENGTH, 3, 8)
    at = slice(LENGTH)
    assert torch.equal(rotate(x, at, 1e4, LENGTH, 8), rotate(x, at, 1e4, LENGTH))
    partly = rotate(x, at, 1e4, LENGTH, 4)
    assert torch.equal(partly[..., 4:], x[..., 4:])
    assert torch.equal(partly[..., :4], rotate(x[..., :4], at, 1e4, LENGTH))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AttentionConfig(sinks=2), "sinks=2 must be .* 0 where window is null"),
        (AttentionConfig(window=4, sinks=-1), "sinks=-1 must be at least 0 tokens"),
        (AttentionConfig(rope_fraction=0.0), "rope_fraction=0.0 must be above 0"),
        (AttentionConfig(rope_fraction=1.5), "rope_fraction=1.5 must be above 0 and at most 1"),
        (AttentionConfig(rope_fraction=0.25), "rope_fraction=0.25 of head_dim=4 is 1 dims"),
        (AttentionConfig(head_dim=3, num_heads=2), "head_dim=3 is odd"),
        (SlidingWindowConfig(window=None), "window=null sees all tokens: set a window"),
        (SlidingWindowConfig(window=0), "window=0 must be at least 1 token"),
        (LatentAttentionConfig(kv_rank=0), "kv_rank=0 must be at least 1"),
        (LatentAttentionConfig(q_rank=-1), "q_rank=-1 must be at least 1"),
        (LatentAttentionConfig(rope_dim=3), "rope_dim=3 must be even"),
    ],
)
def test_impossible_settings_are_named(config: MixerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build(SITE)


def causal_mask(length: int) -> Tensor:
    return torch.full((length, length), -torch.inf).triu(1)[None, None]


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


@torch.no_grad()
def test_gated_attention_is_qwen3_nexts() -> None:
    """Output gate, partial rotary positions, grouped keys, QK-norm: a whole layer."""
    pytest.importorskip("transformers")
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
        "attn_implementation": "eager",
    }
    config = qwen3_next.Qwen3NextConfig(**settings)
    theirs: Any = randomised(qwen3_next.Qwen3NextAttention(config, 0))
    mine: Any = AttentionConfig(
        num_heads=4, num_kv_heads=2, head_dim=16, rope_fraction=0.25, gate=True
    ).build(Site(32, 16))
    q, gate = theirs.q_proj.weight.view(4, 2, 16, 32).unbind(1)
    kv = [theirs.k_proj.weight, theirs.v_proj.weight]
    mine.qkv.weight.copy_(torch.cat([q.flatten(0, 1), *kv]))
    mine.gate.weight.copy_(gate.flatten(0, 1))
    mine.output.weight.copy_(theirs.o_proj.weight)
    for norm, other in zip(mine.norms, (theirs.q_norm, theirs.k_norm), strict=True):
        norm.weight.copy_(1 + other.weight)
    x = torch.randn(2, LENGTH, 32)
    angles = qwen3_next.Qwen3NextRotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    expected = theirs(x, angles, causal_mask(LENGTH))[0]
    torch.testing.assert_close(mine(x)[0], expected, **CLOSE)


LATENT_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 8,
    "attn_implementation": "eager",
}


def copy_latent_weights(mine: Any, theirs: Any) -> None:
    if mine.query_down is None:
        mine.query.weight.copy_(theirs.q_proj.weight)
    else:
        mine.query_down.weight.copy_(theirs.q_a_proj.weight)
        mine.query_norm.weight.copy_(theirs.q_a_layernorm.weight)
        mine.query.weight.copy_(theirs.q_b_proj.weight)
    mine.latent.weight.copy_(theirs.kv_a_proj_with_mqa.weight)
    mine.latent_norm.weight.copy_(theirs.kv_a_layernorm.weight)
    keys, values = theirs.kv_b_proj.weight.view(4, 2, 8, 12).unbind(1)
    mine.keys.weight.copy_(keys.flatten(0, 1))
    mine.values.weight.copy_(values.flatten(0, 1))
    mine.output.weight.copy_(theirs.o_proj.weight)


def decoded(mixer: Mixer, x: Tensor) -> Tensor:
    state = mixer.init_state(len(x), x.shape[1], "cpu", x.dtype)
    first, state = mixer(x[:, :4], None, state)
    rest = [mixer(token, None, state)[0] for token in x[:, 4:].split(1, dim=1)]
    return torch.cat([first, *rest], dim=1)


@pytest.mark.parametrize("q_rank", [None, 10])
@torch.no_grad()
def test_latent_attention_is_deepseek_v3s(q_rank: int | None) -> None:
    pytest.importorskip("transformers")
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

    settings = {**LATENT_SIZES, "q_lora_rank": q_rank, "rope_interleave": False}
    config = deepseek.DeepseekV3Config(**settings)
    theirs: Any = randomised(deepseek.DeepseekV3Attention(config, 0))
    mixer = LatentAttentionConfig(
        num_heads=4, head_dim=8, kv_rank=12, q_rank=q_rank, rope_dim=6
    ).build(Site(32, 8))
    copy_latent_weights(mixer, theirs)
    x = torch.randn(2, LENGTH, 32)
    angles = deepseek.DeepseekV3RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    expected = theirs(x, angles, causal_mask(LENGTH))[0]
    torch.testing.assert_close(mixer(x)[0], expected, **CLOSE)
    torch.testing.assert_close(decoded(mixer, x), expected, **CLOSE)


@torch.no_grad()
def test_latent_attention_without_positions_is_kimi_linears() -> None:
    pytest.importorskip("transformers")
    from transformers.models.kimi_linear import modeling_kimi_linear as kimi

    config = kimi.KimiLinearConfig(**LATENT_SIZES, q_lora_rank=None)
    theirs: Any = randomised(kimi.KimiLinearAttention(config, 0))
    mixer = LatentAttentionConfig(
        num_heads=4, head_dim=8, kv_rank=12, rope_dim=6, rope_base=None
    ).build(Site(32, 8))
    copy_latent_weights(mixer, theirs)
    x = torch.randn(2, LENGTH, 32)
    expected = theirs(x, causal_mask(LENGTH))[0]
    torch.testing.assert_close(mixer(x)[0], expected, **CLOSE)
    torch.testing.assert_close(decoded(mixer, x), expected, **CLOSE)
