"""Mixers of decayed linear attention against others' layers, and against their papers' equations.

Legend of the loops: one token at a time, `S` is `[B, H, K, V]`, everything in float64.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mixer import MixerConfig, Site
from models.mixers.gla import GatedLinearAttentionConfig
from models.mixers.hgrn2 import HGRN2Config, bounded_forget
from models.mixers.lightning import Lightning, LightningConfig
from models.mixers.mamba2 import Mamba2, Mamba2Config
from models.mixers.mamba3 import Mamba3Config, heavy_tail
from models.mixers.retnet import RetNetConfig
from models.ops.decay import decayed_attention
from models.ops.trapezoid import trapezoidal_attention
from models.ops.turning import TURN, cumulative_angles, turn_pairs
from models.ops.twin import step_by_step
from tests.models.cases import PACKINGS, ROUNDING, SITE, randomise

pytest.importorskip("transformers")

from transformers import DynamicCache, MiniMaxConfig
from transformers import Mamba2Config as TheirMamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.minimax.modeling_minimax import MiniMaxCache, MiniMaxLightningAttention

BATCH, LENGTH, DIM, HEADS, HEAD_DIM = 2, 75, 32, 4, 8
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
PROMPT = 70


def built(config: MixerConfig, site: Site = SITE, dtype: torch.dtype = torch.float64) -> Any:
    mixer = config.build(site).to(dtype)
    randomise(mixer)
    return mixer


@torch.no_grad()
def assign(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source.reshape(target.shape))


# Lightning attention beside MiniMax's.


def lightning_pair(layer: int) -> tuple[Lightning, MiniMaxLightningAttention]:
    config = MiniMaxConfig(
        hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=4, head_dim=HEAD_DIM
    )
    config.block_size = 32  # so that a row has more than one
    theirs = MiniMaxLightningAttention(config, layer)
    randomise(theirs)
    site = Site(dim=DIM, head_dim=HEAD_DIM, layer=layer, num_layers=4)
    ours = LightningConfig(chunk_size=16).build(site)
    by_head = theirs.qkv_proj.weight.unflatten(0, (HEADS, 3, HEAD_DIM))  # ours: q, k, v of all
    assign(
        [
            (ours.qkv.weight, by_head.transpose(0, 1)),
            (ours.norm.weight, theirs.norm.weight),
            (ours.gate.weight, theirs.output_gate.weight),
            (ours.output.weight, theirs.out_proj.weight),
        ]
    )
    return ours, theirs


@pytest.mark.parametrize("layer", range(4))
def test_lightning_is_minimaxs_layer(layer: int) -> None:
    ours, theirs = lightning_pair(layer)
    x = torch.randn(BATCH, LENGTH, DIM)
    expected, memory = theirs(x, (x, x), None)
    torch.testing.assert_close(ours(x)[0], expected, **CLOSE)
    _, state = ours(x, None, ours.init_state(BATCH, LENGTH, "cpu", torch.float32))
    assert state is not None
    torch.testing.assert_close(state.memory_BHKV, memory, **CLOSE)


def test_lightning_decodes_as_minimaxs_layer() -> None:
    ours, theirs = lightning_pair(1)
    x, cache = torch.randn(BATCH, LENGTH, DIM), MiniMaxCache()
    state = ours.init_state(BATCH, LENGTH, "cpu", torch.float32)
    for part in x.split([PROMPT, *[1] * (LENGTH - PROMPT)], dim=1):
        expected, _ = theirs(part, (x, x), None, past_key_values=cache)
        actual, state = ours(part, None, state)
        torch.testing.assert_close(actual, expected, **CLOSE)


# Mamba-2 beside transformers'.


def mamba2_pair(groups: int, bias: bool) -> tuple[Mamba2, Mamba2Mixer, TheirMamba2Config]:
    config = TheirMamba2Config(
        hidden_size=DIM,
        num_heads=2 * DIM // HEAD_DIM,
        head_dim=HEAD_DIM,
        state_size=6,
        n_groups=groups,
        chunk_size=16,
        num_hidden_layers=1,
        use_conv_bias=bias,
        layer_norm_epsilon=1e-6,
    )
    theirs = Mamba2Mixer(config, 0).eval()
    randomise(theirs)
    settings = Mamba2Config(state_dim=6, num_groups=groups, conv_bias=bias, chunk_size=16)
    ours = settings.build(Site(dim=DIM, head_dim=HEAD_DIM))
    gate, xbc, time = theirs.in_proj.weight.split([2 * DIM, theirs.conv_dim, theirs.num_heads])
    pairs = [
        (ours.gate.weight, gate),
        (ours.xbc.weight, xbc),
        (ours.time.weight, time),
        (ours.conv.weight, theirs.conv1d.weight.flip(-1)),  # ours begins with the newest input
        (ours.rate.log_rate, theirs.A_log),
        (ours.rate.time_bias, theirs.dt_bias),
        (ours.skip, theirs.D),
        (ours.norm.weight, theirs.norm.weight),
        (ours.output.weight, theirs.out_proj.weight),
    ]
    assign(pairs + ([(ours.conv_bias, theirs.conv1d.bias)] if bias else []))
    return ours, theirs, config


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_mamba2_is_transformers_layer(groups: int, bias: bool) -> None:
    ours, theirs, _ = mamba2_pair(groups, bias)
    x = torch.randn(BATCH, LENGTH, DIM)
    torch.testing.assert_close(ours(x)[0], theirs(x), **CLOSE)


def test_mamba2_decodes_as_transformers_layer() -> None:
    ours, theirs, config = mamba2_pair(2, True)
    x, cache = torch.randn(BATCH, LENGTH, DIM), DynamicCache(config=config)
    state = ours.init_state(BATCH, LENGTH, "cpu", torch.float32)
    for part in x.split([PROMPT, *[1] * (LENGTH - PROMPT)], dim=1):
        actual, state = ours(part, None, state)
        torch.testing.assert_close(actual, theirs(part, cache_params=cache), **CLOSE)


# The others beside their papers' equations, from the layers' own weights.


def inputs() -> Tensor:
    return torch.randn(BATCH, 21, SITE.dim, dtype=torch.float64)


def heads_of(linear: nn.Linear, x: Tensor, sizes: list[int], heads: int) -> list[Tensor]:
    """Project, split and cut into heads: each `[B, T, H, size / H]`."""
    return [part.unflatten(-1, (heads, -1)) for part in linear(x).split(sizes, dim=-1)]


def rms(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return weight * x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def recurrence(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """`S = decay S + k v^T`, `o = S^T q`, with decays `[B, T, H, K]` or `[B, T, H, 1]`."""
    memory, outputs = torch.zeros(()), []
    for t in range(q.shape[1]):
        memory = decay[:, t, ..., None] * memory + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return torch.stack(outputs, dim=1)


def complex_turn(x: Tensor, angle: Tensor) -> Tensor:
    """Neighbouring channels as complex numbers, times `exp(i angle)`; those beyond stay."""
    pairs = angle.shape[-1]
    turned = torch.view_as_complex(x[..., : 2 * pairs].unflatten(-1, (pairs, 2)).contiguous())
    turned = torch.view_as_real(turned * torch.exp(1j * angle)).flatten(-2)
    return torch.cat([turned, x[..., 2 * pairs :]], dim=-1)


def test_retnet_is_the_papers_parallel_form() -> None:
    """Equation 5: `(Q K^T * D) V`, with `D_nm = gamma^(n-m)` and rotations in Q and K."""
    mixer, x = built(RetNetConfig(chunk_size=8)), inputs()
    q, k, v = heads_of(mixer.qkv, x, mixer.sizes, mixer.heads)
    times, pairs = (torch.arange(n, dtype=torch.float64) for n in (x.shape[1], 2))
    angle = times[:, None, None] * 10000.0 ** (-2 * pairs / 4)
    scores = torch.einsum("bnhk,bmhk->bhnm", complex_turn(q, angle), complex_turn(k, angle))
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(mixer.heads)], dtype=torch.float64)
    ages = times[:, None] - times
    decays = torch.where(ages >= 0, gamma[:, None, None] ** ages.clamp(min=0), 0)
    out = torch.einsum("bhnm,bmhv->bnhv", scores * decays, v) / math.sqrt(mixer.key_dim)
    expected = mixer.output(rms(out).flatten(2) * F.silu(mixer.gate(x)))
    torch.testing.assert_close(mixer(x)[0], expected, **ROUNDING)


def test_retnet_positions_go_on_from_the_state() -> None:
    """Rotations need absolute positions: beside documents that began at different times."""
    mixer, x = built(RetNetConfig()), inputs()
    state = mixer.init_state(BATCH, 21, "cpu", torch.float64)
    _, state = mixer(x[:, :13], PACKINGS["several"][:, :13], state)
    actual, _ = mixer(x[:, 13:], PACKINGS["several"][:, 13:], state)
    torch.testing.assert_close(actual, mixer(x, PACKINGS["several"])[0][:, 13:], **ROUNDING)


def test_gla_is_the_papers_recurrence() -> None:
    mixer, x = built(GatedLinearAttentionConfig(chunk_size=8)), inputs()
    q, k, v = heads_of(mixer.qkv, x, mixer.sizes, mixer.heads)
    raw = x @ mixer.decay.down.weight.T @ mixer.decay.up.weight.T + mixer.decay.up.bias
    alpha = (raw.sigmoid() ** (1 / 16)).unflatten(-1, (mixer.heads, -1))
    assert mixer.key_dim == 2 and alpha.shape == q.shape
    out = recurrence(q / math.sqrt(2), k, v, alpha)
    expected = mixer.output(rms(out, mixer.norm.weight).flatten(2) * F.silu(mixer.gate(x)))
    torch.testing.assert_close(mixer(x)[0], expected, **ROUNDING)


@pytest.mark.parametrize("layer", range(3))
def test_hgrn2_is_the_papers_recurrence(layer: int) -> None:
    site = Site(dim=16, head_dim=4, layer=layer, num_layers=3)
    mixer, x = built(HGRN2Config(state_dim=6, chunk_size=8), site), inputs()
    q, raw, v = heads_of(mixer.qfv, x, mixer.sizes, mixer.heads)
    forget = layer / 3 + (1 - layer / 3) * raw.sigmoid()
    out = recurrence(q * q.sigmoid(), 1 - forget, v, forget)
    expected = mixer.output(rms(out.flatten(2), mixer.norm.weight))
    torch.testing.assert_close(mixer(x)[0], expected, **ROUNDING)


def test_hgrn2s_bounds_begin_the_papers_schedule() -> None:
    """Where the bounds' parameters are zero: a softmax over layers, summed, less the first."""
    shares = torch.zeros(5).softmax(dim=0)
    expected = (shares.cumsum(dim=0) - shares[0]).tolist()
    sites = [Site(dim=16, head_dim=4, layer=layer, num_layers=5) for layer in range(5)]
    assert [HGRN2Config().build(site).bound for site in sites] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_a_closed_forget_gate_is_finite(bound: float) -> None:
    raw = torch.tensor([-200.0, 0.0, 200.0], requires_grad=True)
    key, log_forget = bounded_forget(raw, bound)
    (key.sum() + log_forget.sum()).backward()
    assert log_forget.isfinite().all() and (log_forget <= 0).all()
    assert raw.grad is not None and raw.grad.isfinite().all()
    torch.testing.assert_close(key[1:], 1 - log_forget.exp()[1:])


@pytest.mark.parametrize("settings", [{}, {"num_groups": 2, "state_dim": 6, "rope_fraction": 1.0}])
def test_mamba3_is_the_papers_recurrence(settings: dict[str, Any]) -> None:
    """Both writes of each step, and rotations as complex numbers."""
    mixer, u = built(Mamba3Config(chunk_size=8, **settings)), inputs()
    heads, (x, b, c) = mixer.heads, mixer.xbc(u).split(mixer.sizes, dim=-1)
    step, rate, trap, turn = mixer.controls(u).split([heads] * 3 + [mixer.pairs], dim=-1)
    dt = F.softplus(step + mixer.time_bias)
    rate = torch.where(rate >= 0, 1 + rate, 1 / (1 - rate.clamp(max=0))).clamp(min=1e-4)
    decay, lam = torch.exp(-rate * dt), trap.sigmoid()
    angle = (math.pi * turn.tanh()[:, :, None] * dt[..., None]).cumsum(dim=1)
    groups, repeats = mixer.config.num_groups, heads // mixer.config.num_groups
    keys = []
    for part, norm, bias in zip((b, c), mixer.norms, mixer.bias, strict=True):
        grouped = rms(part.unflatten(-1, (groups, -1)), norm.weight)
        keys.append(complex_turn(grouped.repeat_interleave(repeats, dim=2) + bias, angle))
    (k, q), v = keys, x.unflatten(-1, (heads, -1))
    memory, outputs = torch.zeros(()), []
    for t in range(u.shape[1]):
        a, now = decay[:, t, :, None, None], (lam * dt)[:, t, :, None]
        memory = a * memory + torch.einsum("bhk,bhv->bhkv", now * k[:, t], v[:, t])
        if t:
            before = ((1 - lam) * dt)[:, t, :, None] * k[:, t - 1]
            memory = memory + a * torch.einsum("bhk,bhv->bhkv", before, v[:, t - 1])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    y = torch.stack(outputs, dim=1) + mixer.skip[:, None] * v
    expected = mixer.output(y.flatten(2) * F.silu(mixer.gate(u)))
    torch.testing.assert_close(mixer(u)[0], expected, **ROUNDING)


def test_mamba3_turns_for_long_without_losing_precision() -> None:
    """In float32 over thousands of tokens: angles are kept below a full turn."""
    steps = torch.rand(1, 5000, 2, 3)
    expected = steps.double().cumsum(dim=1)
    angles = cumulative_angles(steps)
    assert angles.min() >= 0 and angles.max() <= TURN + 1e-6
    torch.testing.assert_close(angles.double().sin(), expected.sin(), atol=2e-4, rtol=0)


def test_heavy_tail() -> None:
    x = torch.tensor([-1e6, -1.0, 0.0, 1.0, 1e6], dtype=torch.float64, requires_grad=True)
    y = heavy_tail(x)
    expected = torch.tensor([1 / (1 + 1e6), 0.5, 1.0, 2.0, 1 + 1e6], dtype=torch.float64)
    torch.testing.assert_close(y, expected)
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.tensor([(1 + 1e6) ** -2, 0.25, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(slope, expected)


# Trapezoidal attention and running angles, alone.

PACKING = [None, *PACKINGS]


def trapezoid_inputs(length: int = 21) -> tuple[Tensor, ...]:
    q, k = torch.randn(2, BATCH, length, 3, 5, dtype=torch.float64)
    v = torch.randn(BATCH, length, 3, 4, dtype=torch.float64)
    log_decay, before, now = torch.rand(3, BATCH, length, 3, dtype=torch.float64)
    return q, k, v, -2 * log_decay, before, now


def trapezoid_state() -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(5, 4), (5,), (4,)]
    first, second, third = (torch.randn(BATCH, 3, *s, dtype=torch.float64) for s in shapes)
    return first, second, third


@pytest.mark.parametrize("packing", PACKING)
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_shifted_attention_is_the_trapezoidal_recurrence(
    chunk_size: int, packing: str | None
) -> None:
    values = tuple(x.requires_grad_() for x in trapezoid_inputs())
    settings = {"segments": packing and PACKINGS[packing], "state": trapezoid_state()}
    fast, fast_state = trapezoidal_attention(*values, **settings, chunk_size=chunk_size)
    with step_by_step():
        plain, plain_state = trapezoidal_attention(*values, **settings)
    torch.testing.assert_close((fast, *fast_state), (plain, *plain_state), **ROUNDING)
    both = ((fast, fast_state), (plain, plain_state))
    sums = [out.sin().sum() + state[0].cos().sum() for out, state in both]
    ours, twins = (torch.autograd.grad(total, values) for total in sums)
    torch.testing.assert_close(ours, twins, **ROUNDING)


def test_unshifted_identity_with_decayed_attention() -> None:
    """Keys weighted by `c_t + b_{t+1}`, less the second write of the token itself."""
    q, k, v, log_decay, before, now = trapezoid_inputs()
    due = F.pad(before[:, 1:], (0, 0, 0, 1))
    out, _ = decayed_attention(q, k * (now + due)[..., None], v, log_decay, scale=1.0)
    expected = out - (due * (q * k).sum(dim=-1))[..., None] * v
    actual, _ = trapezoidal_attention(q, k, v, log_decay, before, now)
    torch.testing.assert_close(actual, expected, **ROUNDING)


def test_without_the_second_write_it_is_decayed_attention() -> None:
    q, k, v, log_decay, before, now = trapezoid_inputs()
    actual, (memory, _, _) = trapezoidal_attention(q, k, v, log_decay, 0 * before, now)
    expected = decayed_attention(q, k * now[..., None], v, log_decay, scale=1.0)
    torch.testing.assert_close((actual, memory), expected, **ROUNDING)


@pytest.mark.parametrize("packing", [None, "several"])
def test_gradients_of_trapezoidal_attention(packing: str | None) -> None:
    values = tuple(x[:, :7].detach().requires_grad_() for x in trapezoid_inputs())
    segments = packing and PACKINGS[packing][:, :7]
    state = tuple(x.requires_grad_() for x in trapezoid_state())

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out, last = trapezoidal_attention(
            *tensors[:6], segments=segments, state=tensors[6:], chunk_size=3
        )
        return out, *last

    assert torch.autograd.gradcheck(run, (*values, *state))


@pytest.mark.parametrize("packing", PACKING)
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_angles_add_up_within_documents(chunk_size: int, packing: str | None) -> None:
    steps = 5 * torch.randn(BATCH, 21, 3, 2, dtype=torch.float64)
    start = torch.rand(BATCH, 3, 2, dtype=torch.float64)
    segments = packing and PACKINGS[packing]
    angles = cumulative_angles(steps, segments=segments, start=start, chunk_size=chunk_size)
    with step_by_step():
        plain = cumulative_angles(steps, segments=segments, start=start)
    x = torch.ones(BATCH, 21, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(turn_pairs(x, angles), turn_pairs(x, plain), **ROUNDING)
    torch.testing.assert_close(turn_pairs(x, angles), complex_turn(x, plain), **ROUNDING)


# Settings that can't be.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RetNetConfig(head_dim=3, num_heads=2), "head_dim=3 is odd"),
        (RetNetConfig(expand_v=0.3), "expand_v=0.3 times head_dim=4 is not a whole number"),
        (RetNetConfig(chunk_size=0), "chunk_size=0 must be at least 1 token"),
        (LightningConfig(head_dim=3), "head_dim=3 doesn't divide dim=16"),
        (GatedLinearAttentionConfig(expand_k=0.3), "expand_k=0.3 times head_dim=4"),
        (GatedLinearAttentionConfig(gate_rank=0), "gate_rank=0 must be at least 1"),
        (GatedLinearAttentionConfig(gate_temperature=0.0), "gate_temperature=0.0 must be above 0"),
        (HGRN2Config(lower_bound=1.0), "lower_bound=1.0 must be at least 0 and below 1"),
        (HGRN2Config(state_dim=0), "state_dim=0 must be at least 1"),
        (Mamba2Config(conv_bias=True, conv_width=0), "conv_bias=true needs a convolution"),
        (Mamba3Config(head_dim=5), "head_dim=5 doesn't divide expand\\*dim=32"),
        (Mamba3Config(num_groups=3), "num_groups=3 doesn't divide the 8 heads"),
        (Mamba3Config(rope_fraction=0.2), "rope_fraction=0.2 of state_dim=4"),
    ],
)
def test_impossible_settings_are_refused(config: MixerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build(SITE)
