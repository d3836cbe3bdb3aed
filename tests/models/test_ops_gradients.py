"""Gradients of the operators against finite differences, and refusals of shapes that don't fit."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from models.ops.convolution import short_convolution
from models.ops.decay import decayed_attention
from models.ops.delta import delta_rule
from models.ops.sight import visible_keys
from models.ops.softmax import softmax_attention
from models.ops.twin import step_by_step

SEGMENTS = [None, torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[-1, 0, 0, 0, 1]])]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def check(op: Callable[..., Any], *inputs: Tensor) -> None:
    assert gradcheck(op, [x.detach().requires_grad_() for x in inputs], fast_mode=False)


@pytest.mark.parametrize("segments", SEGMENTS, ids=["one", "packed", "padded"])
@pytest.mark.parametrize("chunk_size", [2, 5])
def test_delta_rule_gradients(chunk_size: int, segments: Tensor | None) -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, s: Tensor) -> Any:
        k, g, b = F.normalize(k, dim=-1), -F.softplus(g), 2 * b.sigmoid()
        return delta_rule(q, k, v, g, b, state=s, segments=segments, chunk_size=chunk_size)

    q, k, v = random(3, 1, 5, 2, 2)
    check(run, q, k, v, random(1, 5, 2), random(1, 5, 2), random(1, 2, 2, 2))


@pytest.mark.parametrize("segments", SEGMENTS, ids=["one", "packed", "padded"])
@pytest.mark.parametrize("chunk_size", [2, 5])
def test_decayed_attention_gradients(chunk_size: int, segments: Tensor | None) -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor) -> Any:
        g = -F.softplus(g)
        return decayed_attention(q, k, v, g, state=s, segments=segments, chunk_size=chunk_size)

    q, k = random(2, 1, 5, 1, 2)
    check(run, q, k, random(1, 5, 2, 3), random(1, 5, 2), random(1, 2, 2, 3))


@pytest.mark.parametrize("op", [delta_rule, decayed_attention], ids=lambda op: op.__name__)
def test_single_step_gradients(op: Callable[..., Any]) -> None:
    q, k, v = random(3, 1, 1, 2, 2)
    gates = [-random(1, 1, 2).square(), random(1, 1, 2)][: 2 if op is delta_rule else 1]
    check(lambda *x: op(*x[:-1], state=x[-1]), q, k, v, *gates, random(1, 2, 2, 2))


@pytest.mark.parametrize("segments", SEGMENTS, ids=["one", "packed", "padded"])
@pytest.mark.parametrize("window", [None, 2])
def test_softmax_attention_gradients(window: int | None, segments: Tensor | None) -> None:
    time = torch.arange(5)[None]
    visible = visible_keys(time, time, segments, segments, window)
    if segments is None and window is None:
        visible = None

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax_attention(q, k, v, visible=visible, window=window)

    check(run, random(1, 5, 2, 3), *random(2, 1, 5, 1, 3))


@pytest.mark.parametrize("segments", SEGMENTS, ids=["one", "packed", "padded"])
def test_short_convolution_gradients(segments: Tensor | None) -> None:
    def run(x: Tensor, weight: Tensor, tail: Tensor) -> Tensor:
        return short_convolution(x, weight, segments_BT=segments, tail_BWD=tail)

    check(run, random(1, 5, 2), random(2, 3), random(1, 2, 2))


Q, V, G = (1, 5, 2, 4), (1, 5, 2, 3), (1, 5, 2)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((Q, (1, 5, 2, 3), V, G, G), "q .1, 5, 2, 4., k .1, 5, 2, 3. .* don't fit"),
        ((Q, Q, (1, 4, 2, 3), G, G), "v .1, 4, 2, 3. don't fit"),
        ((Q, Q, (1, 5, 4, 3), (1, 5, 4), (1, 5, 4)), "v .1, 5, 4, 3. don't fit"),
        ((Q, Q, V, (1, 5), G), "log_decay is .1, 5., expected .B, T, H. = .1, 5, 2."),
        ((Q, Q, V, G, (1, 5, 1)), "beta is .1, 5, 1., expected .B, T, H. = .1, 5, 2."),
    ],
)
def test_delta_rule_refuses_other_shapes(shapes: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delta_rule(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((Q, (1, 5, 2, 3), V, G), "k .1, 5, 2, 3. and v .* don.t fit"),
        ((Q, Q, (1, 5, 3, 3), (1, 5, 3)), "G divides H"),
        ((Q, Q, (2, 5, 2, 3), (2, 5, 2)), "v .2, 5, 2, 3. don't fit"),
        ((Q, Q, V, (1, 5, 1)), "log_decay is .1, 5, 1., expected .B, T, H. = .1, 5, 2."),
    ],
)
def test_decayed_attention_refuses_other_shapes(shapes: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decayed_attention(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("rule", [decayed_attention, delta_rule])
def test_the_decay_has_its_gradient_even_where_nothing_else_has(rule: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 9, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    beta = [torch.rand(1, 9, 2, generator=generator, dtype=torch.float64)]
    log_decay = -torch.rand(1, 9, 2, generator=generator, dtype=torch.float64)
    gradients = []
    for twin in (False, True):
        leaf = log_decay.clone().requires_grad_()
        with step_by_step() if twin else nullcontext():
            out, _ = rule(q, k, v, leaf, *(beta if rule is delta_rule else []), chunk_size=4)
        (gradient,) = torch.autograd.grad(out.square().sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
