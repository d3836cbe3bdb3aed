"""Our operators against those of transformers, which were written by others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.convolution import short_convolution
from models.ops.decay import decayed_attention
from models.ops.delta import delta_rule

pytest.importorskip("transformers")

from transformers.models.kimi_linear import modeling_kimi_linear as kimi_linear
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

BATCH, LENGTH, HEADS, KEYS, VALUES = 2, 75, 4, 8, 6
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def delta_inputs() -> tuple[Tensor, ...]:
    q, k = (F.normalize(x, dim=-1) for x in torch.randn(2, BATCH, LENGTH, HEADS, KEYS))
    v = torch.randn(BATCH, LENGTH, HEADS, VALUES)
    log_decay = -F.softplus(torch.randn(BATCH, LENGTH, HEADS))
    beta = 2 * torch.rand(BATCH, LENGTH, HEADS)
    return q, k, v, log_decay, beta


def gradients(out: Tensor, state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.sin().sum() + state.sin().sum(), inputs)


@pytest.mark.parametrize(
    "theirs", [qwen3_next.torch_chunk_gated_delta_rule, qwen3_next.torch_recurrent_gated_delta_rule]
)
def test_delta_rule_is_qwen3_nexts(theirs: Callable[..., Any]) -> None:
    inputs = tuple(x.requires_grad_() for x in delta_inputs())
    start = torch.randn(BATCH, HEADS, KEYS, VALUES)
    expected = theirs(*inputs, initial_state=start, output_final_state=True)
    actual = delta_rule(*inputs, state=start)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
    pairs = zip(gradients(*actual, inputs), gradients(*expected, inputs), strict=True)
    for name, (mine, other) in zip(("q", "k", "v", "log_decay", "beta"), pairs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("decay", [0.1, 1.0, 16.0])
@pytest.mark.parametrize(
    "theirs",
    [kimi_linear.chunk_kimi_delta_attention, kimi_linear.recurrent_kimi_delta_attention],
)
def test_delta_rule_with_a_decay_by_channel_is_kimi_linears(
    theirs: Callable[..., Any], decay: float
) -> None:
    q, k, v, _, beta = delta_inputs()
    log_decay = -decay * F.softplus(torch.randn(BATCH, LENGTH, HEADS, KEYS))
    start = torch.randn(BATCH, HEADS, KEYS, VALUES)
    inputs = tuple(x.requires_grad_() for x in (q, k, v, log_decay, beta, start))
    expected = theirs(*inputs[:-1], initial_state=start, output_final_state=True)
    actual = delta_rule(*inputs[:-1], state=start)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
    pairs = zip(gradients(*actual, inputs), gradients(*expected, inputs), strict=True)
    names = ("q", "k", "v", "log_decay", "beta", "state")
    for name, (mine, other) in zip(names, pairs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


def scan_inputs(groups: int) -> tuple[Tensor, ...]:
    x, step = torch.randn(BATCH, LENGTH, HEADS, VALUES), torch.rand(BATCH, LENGTH, HEADS)
    rate = -1 - 3 * torch.rand(HEADS)
    b, c = torch.randn(2, BATCH, LENGTH, groups, KEYS)
    return x, step, rate, b, c


@pytest.mark.parametrize("groups", [1, 2])
def test_decayed_attention_is_mamba2s_scan(groups: int) -> None:
    inputs = tuple(x.requires_grad_() for x in scan_inputs(groups))
    x, step, rate, b, c = inputs
    expected = mamba2.mamba2_chunk_scan(
        x, step, rate, b, c, chunk_size=16, return_final_states=True
    )
    out, state = decayed_attention(c, b, x * step[..., None], step * rate, scale=1.0)
    actual = out, state.mT  # theirs is [B, H, V, K]
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
    pairs = zip(gradients(*actual, inputs), gradients(*expected, inputs), strict=True)
    for name, (mine, other) in zip(("x", "step", "rate", "b", "c"), pairs, strict=True):
        torch.testing.assert_close(
            mine, other, atol=1e-3, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("groups", [1, 2])
def test_one_step_of_decayed_attention_is_mamba2s_update(groups: int) -> None:
    x, step, rate, b, c = (x[:, 0] if x.dim() > 1 else x for x in scan_inputs(groups))
    state = torch.randn(BATCH, HEADS, VALUES, KEYS)
    inputs = c, b, x * step[..., None], step * rate
    out, last = decayed_attention(*(x[:, None] for x in inputs), scale=1.0, state=state.mT)
    wide = rate[:, None, None].expand(HEADS, VALUES, KEYS)  # as their mixer calls it
    expected = mamba2.mamba2_selective_state_update(
        state, x, step[..., None].expand(-1, -1, VALUES), wide, b, c
    )
    torch.testing.assert_close(out[:, 0], expected, **CLOSE)
    torch.testing.assert_close(last.mT, state, **CLOSE)  # theirs is updated in place


def test_short_convolution_is_qwen3_nexts() -> None:
    x, weight = torch.randn(BATCH, LENGTH, KEYS), torch.randn(KEYS, 4)
    expected = qwen3_next.causal_conv1d_fn(x.mT, weight.flip(1), None, activation="silu").mT
    torch.testing.assert_close(F.silu(short_convolution(x, weight)[0]), expected, **CLOSE)
