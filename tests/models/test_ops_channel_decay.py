"""The recurrences with a decay for each key channel: closed forms, twins, identities, extremes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from models.ops.decay import decayed_attention, decayed_attention_reference
from models.ops.delta import (
    delta_rule,
    delta_rule_reference,
    dplr,
    dplr_reference,
    erase_write,
    erase_write_reference,
)
from models.ops.twin import step_by_step
from tests.models.cases import LENGTH, PACKINGS, ROUNDING

REPEATABLE = settings(max_examples=25, deadline=None, derandomize=True, database=None)
KEYS, VALUES = 4, 3


@dataclass(frozen=True)
class Rule:
    """One recurrence: the operator, its twin, its inputs in order, FLOPs per element of state."""

    op: Callable[..., tuple[Tensor, Tensor]]
    twin: Callable[..., tuple[Tensor, Tensor]]
    inputs: str
    flops: int


RULES = {
    "decayed": Rule(decayed_attention, decayed_attention_reference, "q k v g", 4),
    "delta": Rule(delta_rule, delta_rule_reference, "q k v g beta", 6),
    "erase": Rule(erase_write, erase_write_reference, "q k a v g", 6),
    "dplr": Rule(dplr, dplr_reference, "q k v a b g", 8),
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def every_input(length: int = LENGTH, decay: float = 1.0, batch: int = 2) -> dict[str, Tensor]:
    """All inputs by name, with `decay` the usual log decay of a token."""
    q, k, a, b = F.normalize(random(4, batch, length, 2, KEYS), dim=-1)
    g = -decay * random(batch, length, 2, KEYS).abs()
    beta = 2 * random(batch, length, 2).sigmoid()
    return {"q": q, "k": k, "a": a, "b": b, "v": random(batch, length, 2, VALUES), "g": g} | {
        "beta": beta
    }


def inputs_of(rule: Rule, **how: Any) -> list[Tensor]:
    named = every_input(**how)
    return [named[name] for name in rule.inputs.split()]


def with_gradients(
    op: Callable[..., Any], inputs: list[Tensor], state: Tensor, **options: Any
) -> list[Tensor]:
    """Outputs, last state, and the gradients of both by all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in (*inputs, state)]
    out, last = op(*leaves[:-1], state=leaves[-1], **options)
    return [out, last, *torch.autograd.grad(out.sin().sum() + last.sin().sum(), leaves)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, **ROUNDING)


def outer(x_BHK: Tensor, y_BHV: Tensor) -> Tensor:
    return torch.einsum("bhk,bhv->bhkv", x_BHK, y_BHV)


def products(
    q: Tensor, transitions: list[Tensor], writes: list[Tensor], state: Tensor
) -> tuple[Tensor, Tensor]:
    """`S_t = M_t S_{t-1} + W_t`, `o_t = S_t^T q_t / sqrt(K)`, with matrices written out."""
    outputs = []
    for t, (transition, write) in enumerate(zip(transitions, writes, strict=True)):
        state = transition @ state + write
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) / KEYS**0.5)
    return torch.stack(outputs, dim=1), state


def test_decayed_attention_is_attention_with_weights_decayed_by_channel(segments: Tensor) -> None:
    q, k, v, g = inputs_of(RULES["decayed"])
    same = segments[:, :, None] == segments[:, None, :]
    seen = same & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    passed = g.cumsum(1)[:, :, None] - g.cumsum(1)[:, None]  # [B, T, S, H, K]
    weights = passed.masked_fill(~seen[..., None, None], -math.inf).exp()
    expected = 0.7 * torch.einsum("bthk,bshk,btshk,bshv->bthv", q, k, weights, v)
    actual, _ = decayed_attention(q, k, v, g, scale=0.7, segments=segments, chunk_size=8)
    torch.testing.assert_close(actual, expected, **ROUNDING)


def test_delta_rules_are_products_of_matrices() -> None:
    x, start = every_input(), random(2, 2, KEYS, VALUES)
    q, k, v, a, b, g, beta = (x[name] for name in ["q", "k", "v", "a", "b", "g", "beta"])
    decays, eye = torch.diag_embed(g.exp()), torch.eye(KEYS, dtype=torch.float64)
    times = range(LENGTH)
    strength = beta[..., None]
    kda = [(eye - outer(strength[:, t] * k[:, t], k[:, t])) @ decays[:, t] for t in times]
    kda_writes = [outer(strength[:, t] * k[:, t], v[:, t]) for t in times]
    apart = [(eye - outer(k[:, t], a[:, t])) @ decays[:, t] for t in times]
    low_rank = [decays[:, t] + outer(b[:, t], a[:, t]) for t in times]
    writes = [outer(k[:, t], v[:, t]) for t in times]
    how = {"state": start, "chunk_size": 8}
    for actual, (transitions, written) in (
        (delta_rule(q, k, v, g, beta, **how), (kda, kda_writes)),
        (erase_write(q, k, a, v, g, **how), (apart, writes)),
        (dplr(q, k, v, a, b, g, **how), (low_rank, writes)),
    ):
        assert_same(list(actual), list(products(q, transitions, written, start)))


@REPEATABLE
@given(
    name=st.sampled_from([*RULES]),
    length=st.integers(1, 40),
    chunk_size=st.integers(1, 70),
    decay=st.sampled_from([0.0, 0.1, 1.0, 16.0]),
    documents=st.lists(st.integers(0, 40), max_size=4),
)
def test_chunks_do_what_single_steps_do(
    name: str, length: int, chunk_size: int, decay: float, documents: list[int]
) -> None:
    rule = RULES[name]
    inputs, state = inputs_of(rule, length=length, decay=decay), random(2, 2, KEYS, VALUES)
    starts = torch.arange(length)[:, None] >= torch.tensor([documents]).reshape(1, -1)
    segments = torch.stack([starts.sum(1), torch.zeros(length).long()]) if documents else None
    expected = with_gradients(rule.twin, inputs, state, segments=segments)
    assert_same(
        with_gradients(rule.op, inputs, state, segments=segments, chunk_size=chunk_size), expected
    )


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 7, 8, 16, 21, 64])
@pytest.mark.parametrize("decay", [0.1, 1.0, 16.0])
def test_any_chunk_size_gives_the_same(
    rule: Rule, chunk_size: int, decay: float, segments: Tensor
) -> None:
    inputs, state = inputs_of(rule, decay=decay), random(2, 2, KEYS, VALUES)
    expected = rule.twin(*inputs, state=state, segments=segments)
    actual = rule.op(*inputs, state=state, segments=segments, chunk_size=chunk_size)
    assert_same(list(actual), list(expected))


def test_identities() -> None:
    """What the recurrences are of one another."""
    x, state = every_input(), random(2, 2, KEYS, VALUES)
    q, k, v, a, b, g, beta = (x[name] for name in ["q", "k", "v", "a", "b", "g", "beta"])
    how, strength, alike = {"state": state, "chunk_size": 8}, beta[..., None], g[..., :1]
    kda = delta_rule(q, k, v, g, beta, **how)
    as_dplr = dplr(q, k, strength * v, g.exp() * k, -strength * k, g, **how)
    assert_same(list(as_dplr), list(kda))
    assert_same(list(erase_write(q, k, strength * k, strength * v, g, **how)), list(kda))
    gdn = delta_rule(q, k, v, alike[..., 0], beta, **how)
    assert_same(list(delta_rule(q, k, v, alike.expand_as(g), beta, **how)), list(gdn))
    ssd = decayed_attention(q, k, v, alike[..., 0], **how)
    assert_same(list(decayed_attention(q, k, v, alike.expand_as(g), **how)), list(ssd))
    assert_same(list(erase_write(q, k, 0 * a, v, alike[..., 0], **how)), list(ssd))
    assert_same(list(dplr(q, k, v, a, 0 * b, alike[..., 0], **how)), list(ssd))


def test_without_decay_the_delta_rule_is_deltanets() -> None:
    """`S = S + beta k (v - S^T k)^T`, written out, for both shapes of a decay of zero."""
    q, k, v, g, beta = inputs_of(RULES["delta"])
    state, expected = torch.zeros(2, 2, KEYS, VALUES).double(), []
    for t in range(LENGTH):
        missing = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + outer(beta[:, t, :, None] * k[:, t], missing)
        expected.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) / KEYS**0.5)
    for none in (0 * g, 0 * g[..., 0]):
        actual = delta_rule(q, k, v, none, beta, chunk_size=8)
        assert_same(list(actual), [torch.stack(expected, dim=1), state])


SEGMENTS = [None, torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[-1, 0, 0, 0, 1]])]


@pytest.mark.parametrize("segments", SEGMENTS, ids=["one", "packed", "padded"])
@pytest.mark.parametrize("chunk_size", [2, 5])
def test_gradients(rule: Rule, chunk_size: int, segments: Tensor | None) -> None:
    inputs = [x[:, :, :1, ..., :2] if x.dim() == 4 else x[:, :, :1] for x in
              inputs_of(rule, length=5, batch=1)]  # fmt: skip
    leaves = [x.clone().requires_grad_() for x in (*inputs, random(1, 1, 2, 2))]

    def run(*x: Tensor) -> Any:
        return rule.op(*x[:-1], state=x[-1], segments=segments, chunk_size=chunk_size)

    assert gradcheck(run, leaves, fast_mode=False)


def test_gradients_of_a_single_step(rule: Rule) -> None:
    leaves = [x.requires_grad_() for x in (*inputs_of(rule, length=1), random(2, 2, KEYS, VALUES))]
    assert gradcheck(lambda *x: rule.op(*x[:-1], state=x[-1]), leaves)


@pytest.mark.parametrize("decay", [0.0, -50.0, -1e4, -1e30, -math.inf, "mixed"])
def test_extreme_decays_stay_finite(rule: Rule, decay: float | str, segments: Tensor) -> None:
    inputs = dict(zip(rule.inputs.split(), inputs_of(rule), strict=True))
    g = inputs["g"]
    strong = torch.where(torch.rand(g.shape) < 0.5, -300.0, 0.0)
    inputs["g"] = strong if decay == "mixed" else torch.full_like(g, float(decay))
    single = [x.float() for x in inputs.values()]
    for x in with_gradients(
        rule.op, single, torch.randn(2, 2, KEYS, VALUES), segments=segments, chunk_size=8
    ):
        assert x.isfinite().all()


def test_documents_are_isolated_bit_for_bit(rule: Rule, segments: Tensor) -> None:
    """Neither outputs nor gradients of a document move when all other documents change."""
    inputs = [x.float() for x in inputs_of(rule)]
    others = [x.float() for x in inputs_of(rule, decay=5.0)]
    state = torch.randn(2, 2, KEYS, VALUES)
    for document in segments.unique().tolist():
        mine = segments == document
        results = []
        for strangers in (inputs, others):
            mixed = [
                torch.where(mine.view(2, -1, *[1] * (x.dim() - 2)), x, y)
                for x, y in zip(inputs, strangers, strict=True)
            ]
            leaves = [x.requires_grad_() for x in mixed]
            out, _ = rule.op(*leaves, state=state, segments=segments, chunk_size=8)
            out = out[mine]
            results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
        for x, y in zip(*results, strict=True):
            assert torch.equal(x, y)
        for gradient in results[0][1:]:
            assert not gradient[~mine].any()


def test_nothing_sees_the_future_bit_for_bit(rule: Rule) -> None:
    inputs, others = ([x.float() for x in inputs_of(rule)] for _ in range(2))
    whole, _ = rule.op(*inputs, chunk_size=16)
    for cut in range(1, LENGTH):
        changed = [
            torch.cat([x[:, :cut], y[:, cut:]], dim=1) for x, y in zip(inputs, others, strict=True)
        ]
        assert torch.equal(rule.op(*changed, chunk_size=16)[0][:, :cut], whole[:, :cut])


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_state_carries_on(rule: Rule, cut: int) -> None:
    inputs, state = inputs_of(rule), random(2, 2, KEYS, VALUES)
    segments = PACKINGS["several"]
    whole, last = rule.op(*inputs, state=state, segments=segments, chunk_size=8)
    first, middle = rule.op(*(x[:, :cut] for x in inputs), state=state, segments=segments[:, :cut])
    middle = middle * (segments[:, cut] == segments[:, cut - 1])[:, None, None, None]
    rest = (x[:, cut:] for x in inputs)
    second, end = rule.op(*rest, state=middle, segments=segments[:, cut:], chunk_size=8)
    assert_same([torch.cat([first, second], dim=1), end], [whole, last])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 5])
def test_half_inputs_give_half_outputs_and_float32_states(
    rule: Rule, dtype: torch.dtype, length: int
) -> None:
    inputs = [x.to(dtype) for x in inputs_of(rule, length=length)]
    expected = rule.twin(*(x.double() for x in inputs))
    for run in (rule.op, rule.twin):
        out, state = run(*inputs)
        assert out.dtype == dtype
        assert state.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(state.double(), expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by_channel", [True, False])
def test_steps_cost_their_matrix_products(rule: Rule, by_channel: bool) -> None:
    named = {name: x.float().to("meta") for name, x in every_input(batch=1).items()}
    named["g"] = named["g"] if by_channel else named["g"][..., 0]
    with step_by_step(), FlopCounterMode(display=False) as counter:
        rule.op(*(named[name] for name in rule.inputs.split()))
    assert counter.get_total_flops() == LENGTH * 2 * rule.flops * KEYS * VALUES


def zeros(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.zeros(shape) for shape in shapes]


Q, V, G = (1, 5, 2, 4), (1, 5, 2, 3), (1, 5, 2)


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        (decayed_attention, ((1, 5, 1, 4), (1, 5, 1, 4), V, Q), "1 groups for 2 heads"),
        (decayed_attention, (Q, Q, V, V), "log_decay is .1, 5, 2, 3., expected .* .1, 5, 2, 4."),
        (delta_rule, (Q, Q, V, V, G), "log_decay is .1, 5, 2, 3., expected .* .1, 5, 2, 4."),
        (delta_rule, (Q, Q, V, Q, Q), "beta is .1, 5, 2, 4., expected .B, T, H."),
        (erase_write, (Q, Q, G, V, Q), "erase .1, 5, 2. and v .* don't fit"),
        (erase_write, (Q, Q, Q, V, V), "log_decay is .1, 5, 2, 3."),
        (dplr, (Q, Q, V, V, Q, Q), "a .1, 5, 2, 3., b .1, 5, 2, 4. and v .* don't fit"),
        (dplr, (Q, Q, V, Q, Q, V), "log_decay is .1, 5, 2, 3."),
    ],
)
def test_other_shapes_are_refused(op: Any, shapes: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op(*zeros(*shapes))
