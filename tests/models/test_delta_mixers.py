"""The delta family: whole layers against transformers', and each mixer as a case of the next."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.low_rank import LowRank
from models.mixer import Mixer, Site
from models.mixers.delta_product import GatedDeltaProductConfig
from models.mixers.deltanet import DeltaNetConfig
from models.mixers.gated_delta import GatedDeltaNet, GatedDeltaNetConfig
from models.mixers.gated_delta2 import GatedDeltaNet2Config
from models.mixers.kda import ChannelDecay, KimiDeltaConfig
from models.mixers.rwkv7 import RWKV7, RWKV7Config
from models.ops.delta import delta_rule
from models.ops.delta_product import delta_product, delta_product_reference
from tests.models.cases import LENGTH, PACKINGS, ROUNDING, SITE, randomise

DIM, WIDTH = 32, 4
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def inputs(length: int = LENGTH, dim: int = SITE.dim) -> Tensor:
    return torch.randn(2, length, dim, dtype=torch.float64)


def pair(*configs: Any, site: Site = SITE) -> list[Any]:
    """Build mixers of these configs, in float64, all weights off their start."""
    built = [config.build(site).double() for config in configs]
    for mixer in built:
        randomise(mixer)
    return built


@torch.no_grad()
def copy(target: Tensor | None, source: Tensor) -> None:
    assert target is not None
    target.copy_(source.reshape(target.shape))


def copy_conv(mixer: Any, theirs: nn.Conv1d) -> None:
    """Theirs goes from the oldest token to the newest, ours the other way."""
    copy(mixer.conv.weight, theirs.weight.squeeze(1).flip(1))


def assert_layers_agree(mixer: Mixer, theirs: nn.Module, config: Any) -> None:
    """Compare a forward pass with gradients, and a prefill with decoding after it."""
    from transformers.cache_utils import DynamicCache

    x = torch.randn(2, 75, DIM, requires_grad=True)
    expected, actual = theirs(x), mixer(x)[0]
    torch.testing.assert_close(actual, expected, **CLOSE)
    mine, other = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (actual, expected))
    rounding = 1e-5 * other.abs().max().item()
    torch.testing.assert_close(mine, other, atol=rounding, rtol=1e-4)
    cache = DynamicCache(config=config)
    state = mixer.init_state(2, 75, "cpu", torch.float32)
    with torch.no_grad():
        for part in x.split([70, 1, 1, 1, 1, 1], dim=1):
            expected = theirs(part, cache_params=cache)
            actual, state = mixer(part, None, state)
            torch.testing.assert_close(actual, expected, **CLOSE)


def test_gdn_is_qwen3_nexts_layer() -> None:
    """With two value heads to a key head, whose weights theirs keeps together."""
    pytest.importorskip("transformers")
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

    config = Qwen3NextConfig(
        hidden_size=DIM,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        linear_conv_kernel_dim=WIDTH,
    )
    theirs = qwen.Qwen3NextGatedDeltaNet(config, 0)
    randomise(theirs)
    ours = GatedDeltaNetConfig(
        num_heads=4,
        num_key_heads=2,
        head_dim=8,
        expand_v=6 / 8,
        negative_eigenvalues=False,
        norm_epsilon=config.rms_norm_eps,
    )
    mixer = ours.build(Site(DIM, 8))
    q, k, v, z = theirs.in_proj_qkvz.weight.unflatten(0, (2, -1)).split([8, 8, 12, 12], dim=1)
    copy(mixer.qkv.weight, torch.cat([x.flatten(0, 1) for x in (q, k, v)]))
    copy(mixer.gate.weight, z)
    b, a = theirs.in_proj_ba.weight.unflatten(0, (2, -1)).split([2, 2], dim=1)
    copy(mixer.beta.weight, b)
    copy(mixer.decay.projection.weight, a)
    copy_rest(mixer, theirs, theirs.norm, theirs.out_proj)
    assert_layers_agree(mixer, theirs, config)


def copy_rest(mixer: GatedDeltaNet, theirs: Any, norm: Any, output: nn.Linear) -> None:
    copy_conv(mixer, theirs.conv1d)
    copy(mixer.decay.rate.log_rate, theirs.A_log)
    copy(mixer.decay.rate.time_bias, theirs.dt_bias)
    copy(mixer.norm.weight, norm.weight)
    copy(mixer.output.weight, output.weight)


@pytest.mark.parametrize("negative", [False, True])
def test_gdn_is_olmo_hybrids_layer(negative: bool) -> None:
    pytest.importorskip("transformers")
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as olmo
    from transformers.models.olmo_hybrid.configuration_olmo_hybrid import OlmoHybridConfig

    config = OlmoHybridConfig(
        hidden_size=DIM,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=4,
        linear_num_key_heads=3,
        linear_num_value_heads=3,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=WIDTH,
        linear_allow_neg_eigval=negative,
    )
    theirs = olmo.OlmoHybridGatedDeltaNet(config, 0)
    randomise(theirs)
    ours = GatedDeltaNetConfig(
        num_heads=3, head_dim=8, negative_eigenvalues=negative, norm_epsilon=1e-5
    )
    mixer = ours.build(Site(DIM, 8))
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    copy(mixer.qkv.weight, torch.cat([linear.weight for linear in projections]))
    copy(mixer.beta.weight, theirs.b_proj.weight)
    copy(mixer.decay.projection.weight, theirs.a_proj.weight)
    copy(mixer.gate.weight, theirs.g_proj.weight)
    copy_rest(mixer, theirs, theirs.o_norm, theirs.o_proj)
    assert_layers_agree(mixer, theirs, config)


def copy_decay(decay: ChannelDecay, theirs: Any) -> None:
    copy(decay.projection.down.weight, theirs.f_a_proj.weight)
    copy(decay.projection.up.weight, theirs.f_b_proj.weight)
    copy(decay.log_rate, theirs.A_log)
    copy(decay.time_bias, theirs.dt_bias)


def test_kda_is_kimi_linears_layer() -> None:
    """Whose output gate has no bias: ours is then zero, as at the start."""
    pytest.importorskip("transformers")
    from transformers.models.kimi_linear import modeling_kimi_linear as kimi
    from transformers.models.kimi_linear.configuration_kimi_linear import KimiLinearConfig

    config = KimiLinearConfig(
        hidden_size=DIM,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        linear_num_heads=3,
        linear_head_dim=8,
        linear_conv_kernel_dim=WIDTH,
    )
    theirs = kimi.KimiLinearDeltaAttention(config, 0)
    for name in ("A_log", "dt_bias"):
        nn.init.normal_(getattr(theirs.forget_gate, name))
    randomise(theirs)
    ours = KimiDeltaConfig(num_heads=3, head_dim=8, norm_epsilon=config.rms_norm_eps)
    mixer = ours.build(Site(DIM, 8))
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    copy(mixer.qkv.weight, torch.cat([linear.weight for linear in projections]))
    copy_conv(mixer, theirs.conv1d)
    copy(mixer.beta.weight, theirs.b_proj.weight)
    copy_decay(mixer.decay, theirs.forget_gate)
    copy(mixer.gate.down.weight, theirs.g_a_proj.weight)
    copy(mixer.gate.up.weight, theirs.g_b_proj.weight)
    copy(mixer.norm.weight, theirs.o_norm.weight)
    copy(mixer.output.weight, theirs.o_proj.weight)
    assert_layers_agree(mixer, theirs, config)


@pytest.mark.parametrize("bound", [None, -5.0])
def test_channel_decay_is_glm5_nexts(bound: float | None) -> None:
    pytest.importorskip("transformers")
    from transformers.models.glm5_next import modeling_glm5_next as glm
    from transformers.models.glm5_next.configuration_glm5_next import Glm5NextTextConfig

    config = Glm5NextTextConfig(hidden_size=DIM, linear_num_heads=3, linear_head_dim=8)
    config.linear_lower_bound = bound
    theirs = glm.Glm5NextTextForgetGate(config)
    for name in ("A_log", "dt_bias"):
        nn.init.normal_(getattr(theirs, name))
    randomise(theirs)
    mixer = KimiDeltaConfig(num_heads=3, head_dim=8, lower_bound=bound).build(Site(DIM, 8))
    copy_decay(mixer.decay, theirs)
    x = torch.randn(2, 9, DIM)
    torch.testing.assert_close(mixer.decay(x), theirs(x), **CLOSE)


def test_gdn2_with_equal_gates_is_kda() -> None:
    gdn2, kda = pair(GatedDeltaNet2Config(expand_v=2.0), KimiDeltaConfig(expand_v=2.0))
    shared = {name: x for name, x in kda.state_dict().items() if "beta" not in name}
    gates = {"erase.weight": 4, "write.weight": 8}
    for name, channels in gates.items():
        shared[name] = kda.beta.weight.repeat_interleave(channels, dim=0)
    gdn2.load_state_dict(shared)
    x, segments = inputs(), PACKINGS["several"]
    torch.testing.assert_close(gdn2(x, segments)[0], kda(x, segments)[0], **ROUNDING)


def test_kda_with_equal_channels_is_gdn() -> None:
    """The decays of all channels of a head are its one decay, and so are the rules."""
    kda, gdn = pair(KimiDeltaConfig(expand_v=2.0, gate_rank=16), GatedDeltaNetConfig())
    copy(kda.decay.projection.down.weight, torch.eye(16))
    copy(kda.decay.projection.up.weight, gdn.decay.projection.weight.repeat_interleave(4, dim=0))
    copy(kda.decay.log_rate, gdn.decay.rate.log_rate)
    copy(kda.decay.time_bias, gdn.decay.rate.time_bias.repeat_interleave(4))
    x, segments = inputs(), PACKINGS["several"]
    by_head, by_channel = gdn.decay(x), kda.decay(x)
    torch.testing.assert_close(by_channel, by_head[..., None].expand_as(by_channel), **ROUNDING)
    q, k = (F.normalize(part, dim=-1) for part in inputs(dim=32).view(2, LENGTH, 2, 4, 4).unbind(2))
    v, beta = inputs(dim=32).view(2, LENGTH, 4, 8), 2 * inputs(dim=4).sigmoid()
    results = [
        delta_rule(q, k, v, decay, beta, segments=segments, chunk_size=8)
        for decay in (by_head, by_channel)
    ]
    for channel, head in zip(*results, strict=True):
        torch.testing.assert_close(channel, head, **ROUNDING)


def test_gdn_without_decay_is_deltanet() -> None:
    config = DeltaNetConfig(expand_v=2.0, use_gate=True, negative_eigenvalues=True)
    gdn, deltanet = pair(GatedDeltaNetConfig(), config)
    nn.init.constant_(gdn.decay.rate.log_rate, -math.inf)
    shared = {name: x for name, x in gdn.state_dict().items() if not name.startswith("decay")}
    deltanet.load_state_dict(shared)
    x, segments = inputs(), PACKINGS["several"]
    torch.testing.assert_close(gdn(x, segments)[0], deltanet(x, segments)[0], **ROUNDING)


def test_delta_product_of_one_step_is_gdn() -> None:
    product, gdn = pair(GatedDeltaProductConfig(num_householder=1), GatedDeltaNetConfig())
    product.load_state_dict(gdn.state_dict())
    x, segments = inputs(), PACKINGS["several"]
    torch.testing.assert_close(product(x, segments)[0], gdn(x, segments)[0], **ROUNDING)
    assert product.cost(5) == gdn.cost(5)


def product_inputs(steps: int, length: int = LENGTH) -> tuple[Tensor, ...]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(2, length, *shape, dtype=torch.float64)

    q, k = draw(3, 4), F.normalize(draw(steps, 3, 4), dim=-1)
    decay, beta = -F.softplus(draw(3)), 2 * draw(steps, 3).sigmoid()
    return tuple(x.requires_grad_() for x in (q, k, draw(steps, 3, 5), decay, beta))


def test_delta_product_multiplies_householder_matrices() -> None:
    """Against matrices written out: one document, one state."""
    q, k, v, decay, beta = product_inputs(3)
    out, last = delta_product(q, k, v, decay, beta, scale=1.0, chunk_size=8)
    state, eye = torch.zeros(2, 3, 4, 5, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    for time in range(LENGTH):
        state = decay[:, time].exp()[..., None, None] * state
        for step in range(3):
            key, strength = k[:, time, step, :, :, None], beta[:, time, step, :, None, None]
            value = v[:, time, step, :, None, :]
            state = (eye - strength * key @ key.mT) @ state + strength * key @ value
        expected = (q[:, time, :, None, :] @ state)[..., 0, :]
        torch.testing.assert_close(out[:, time], expected, **ROUNDING)
    torch.testing.assert_close(last, state, **ROUNDING)


@pytest.mark.parametrize("packing", [None, *PACKINGS])
@pytest.mark.parametrize("length", [1, LENGTH])
def test_delta_product_equals_its_twin(packing: str | None, length: int) -> None:
    drawn = product_inputs(2, length)
    start = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    segments = None if packing is None else PACKINGS[packing][:, :length]
    results = []
    for run in (delta_product, delta_product_reference):
        out, last = run(*drawn, segments=segments, state=start)
        gradients = torch.autograd.grad(out.sin().sum() + last.sin().sum(), [*drawn, start])
        results.append((out, last, *gradients))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, **ROUNDING)


def test_delta_product_names_what_does_not_fit() -> None:
    q, k, v, decay, beta = product_inputs(2)
    with pytest.raises(ValueError, match="don't fit"):
        delta_product(q, k[:, :, 0], v, decay, beta)
    with pytest.raises(ValueError, match="beta is"):
        delta_product(q, k, v, decay, beta[:, :, 0])


def reduced(gate: LowRank, x: Tensor, activation: Any = None) -> Tensor:
    waist = x @ gate.down.weight.T
    waist = waist if activation is None else activation(waist)
    return waist @ gate.up.weight.T + (0 if gate.up.bias is None else gate.up.bias)


def rwkv7_written_out(mixer: RWKV7, x: Tensor, first: Tensor | None = None) -> Tensor:
    """One document through the paper's equations (arXiv 2503.14456, section 4), token by token."""
    heads, outputs = (mixer.heads, mixer.head_dim), []
    state = torch.zeros(x.shape[0], *heads, mixer.head_dim, dtype=x.dtype)
    for time in range(x.shape[1]):
        now = x[:, time]
        before = x[:, time - 1] if time else torch.zeros_like(now)
        r, w, k, v, a, g = (now + (before - now) * mixer.shift[name] for name in "rwkvag")
        decay = torch.exp(-math.exp(-0.5) * reduced(mixer.decay, w, torch.tanh).sigmoid())
        rate = reduced(mixer.rate, a).sigmoid()
        gate = reduced(mixer.gate, g, torch.sigmoid)
        r, k = r @ mixer.receptance.weight.T, k @ mixer.key.weight.T
        value = v @ mixer.value.weight.T
        if first is not None:
            assert mixer.first_value is not None
            share = reduced(mixer.first_value, v).sigmoid()
            value = value + (first[:, time] - value) * share
        unit = F.normalize((k * mixer.unit_key).unflatten(-1, heads), dim=-1)
        k = k * (1 + (rate - 1) * mixer.rate_key)
        r, k, value, rate, decay = (y.unflatten(-1, heads) for y in (r, k, value, rate, decay))
        moved = torch.diag_embed(decay) - (unit * rate)[..., :, None] @ unit[..., None, :]
        state = moved @ state + k[..., :, None] @ value[..., None, :]
        out = (r[..., None, :] @ state)[..., 0, :].flatten(1)
        normed = F.group_norm(
            out, heads[0], mixer.norm_scale, mixer.norm_shift, eps=heads[1] * 1e-5
        )
        bonus = (r * k * mixer.bonus.view(heads)).sum(dim=-1, keepdim=True) * value
        outputs.append((normed + bonus.flatten(1)) * gate @ mixer.output.weight.T)
    return torch.stack(outputs, dim=1)


def test_rwkv7_is_its_equations() -> None:
    (mixer,) = pair(RWKV7Config(chunk_size=8))
    x = inputs()
    torch.testing.assert_close(mixer(x)[0], rwkv7_written_out(mixer, x), atol=1e-8, rtol=1e-8)


def test_rwkv7_moves_values_towards_the_first_layers() -> None:
    (first,) = pair(RWKV7Config(chunk_size=8), site=Site(16, 4, 0, 3, name="time"))
    (later,) = pair(RWKV7Config(chunk_size=8), site=Site(16, 4, 1, 3, name="time", first=False))
    x, shared = inputs(), {}
    y = first(x, None, None, shared)[0]
    assert list(shared) == ["time"]
    actual = later(y, None, None, shared)[0]
    expected = rwkv7_written_out(later, y, shared["time"])
    torch.testing.assert_close(actual, expected, atol=1e-8, rtol=1e-8)
    with pytest.raises(ValueError, match="needs the values of the first layer named 'time'"):
        later(y)
    weights = sum(p.numel() for p in later.parameters())
    assert later.cost(3).weight_bytes == 4 * weights > first.cost(3).weight_bytes


def test_rwkv7_starts_where_its_authors_start() -> None:
    first = RWKV7Config().build(Site(dim=64, head_dim=16, layer=0, num_layers=4))
    last = RWKV7Config().build(Site(dim=64, head_dim=16, layer=3, num_layers=4, first=False))
    assert first.shift["r"][0] == last.shift["r"][0] == 1, "the first channel reads the past"
    torch.testing.assert_close(first.shift["k"], 1 - (torch.arange(64) / 64) ** 0.7)
    torch.testing.assert_close(last.norm_scale, torch.ones(64))
    torch.testing.assert_close(first.norm_scale, torch.full((64,), 0.25**0.7))
    assert last.first_value is not None and first.first_value is None
    torch.testing.assert_close(last.first_value.up.bias[[0, -1]], torch.tensor([0.93, 0.53]))
    torch.testing.assert_close(first.key.weight @ first.key.weight.T, 0.01 * torch.eye(64))
    bias, slope = first.decay.up.bias, (torch.arange(64) / 63)
    middle = (bias - (-5.5 + 6 * slope)).view(4, 16)
    torch.testing.assert_close(middle[0], middle[3])
    assert middle[0, 0].item() == pytest.approx(-2.5) and middle[0, -1].item() == pytest.approx(2.5)


IMPOSSIBLE = [
    (GatedDeltaNetConfig(num_heads=4, num_key_heads=3), "num_key_heads=3 doesn't divide"),
    (GatedDeltaProductConfig(num_householder=0), "num_householder=0 must be at least 1"),
    (KimiDeltaConfig(gate_rank=0), "gate_rank=0 must be at least 1"),
    (KimiDeltaConfig(lower_bound=5.0), "lower_bound=5.0 must be below 0"),
    (GatedDeltaNet2Config(lower_bound=0.0), "lower_bound=0.0 must be below 0"),
    (RWKV7Config(value_rank=0), "value_rank=0 must be at least 1"),
    (DeltaNetConfig(chunk_size=0), "chunk_size=0 must be at least 1"),
]


@pytest.mark.parametrize(("config", "message"), IMPOSSIBLE, ids=lambda case: str(case)[:24])
def test_impossible_settings_are_named(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build(SITE)
