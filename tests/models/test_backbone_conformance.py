"""What every backbone promises, whatever its layout and depth: the mixers' promises, end to end."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.backbone import Backbone
from models.depth.halting import ACTHalting
from models.mlps.moe import MoE
from models.ops.twin import step_by_step
from tests.models.cases import (
    BACKBONE_CASES,
    CAUSAL_BACKBONES,
    LENGTH,
    PACKINGS,
    PIECES,
    ROUNDING,
    VOCABULARY,
    backbone_config,
    build_backbone,
    documents,
    segments_of,
    shared_backbone,
)


def tokens(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length))


def other(tokens_BT: Tensor) -> Tensor:
    """Return tokens that differ from these everywhere."""
    return (tokens_BT + torch.randint(1, VOCABULARY, tokens_BT.shape)) % VOCABULARY


def logits(backbone: Backbone, *args: Any, **settings: Any) -> Tensor:
    out = backbone(*args, **settings)
    return out.readout(out.hidden_BTD)


def unchanged(backbone: Backbone, after: Tensor, before: Tensor) -> bool:
    """Bit for bit; to rounding where shapes depend on content: experts, chunks, stopped tokens."""
    ran = backbone(tokens()).trajectory
    same_shapes = ran.exits_BT is None and ran.chunks_BT is None
    if same_shapes and not any(isinstance(module, MoE) for module in backbone.modules()):
        return torch.equal(after, before)
    tolerance = 1e-12 if after.dtype == torch.float64 else 1e-5
    return torch.allclose(after, before, rtol=tolerance, atol=tolerance)


def test_changing_a_document_changes_no_other(
    backbone: Backbone, segments: Tensor, dtype: torch.dtype
) -> None:
    backbone, read = backbone.to(dtype), tokens()
    before = logits(backbone, read, segments)
    for name, own in documents(segments):
        after = logits(backbone, torch.where(own, other(read), read), segments)
        assert unchanged(backbone, after[~own], before[~own]), f"{name} leaks into others"
        assert not torch.equal(after[own], before[own]), f"{name} ignores its own tokens"


@pytest.mark.parametrize("packing", [None, "several"])
def test_the_future_changes_nothing(
    causal_backbone: Backbone, packing: str | None, dtype: torch.dtype
) -> None:
    backbone, read = causal_backbone.to(dtype), tokens()
    segments = None if packing is None else PACKINGS[packing]
    before = logits(backbone, read, segments)
    for now in (1, 8, 15, LENGTH - 1):
        changed = torch.cat([read[:, :now], other(read[:, now:])], dim=1)
        after = logits(backbone, changed, segments)
        seen = unchanged(backbone, after[:, :now], before[:, :now])
        assert seen, f"tokens before {now} see the future"
        assert not torch.equal(after[:, now], before[:, now]), f"token {now} ignores its input"


def only_stops(name: str, backbone: Backbone) -> bool:
    """Whether a weight decides where tokens stop, and nothing else: no gradient reaches it."""
    return "depth.halting" in name and not isinstance(backbone.depth.halting, ACTHalting)


def only_fits(name: str, backbone: Backbone) -> bool:
    """Whether a weight reads what was fitted to a question, and there is none here."""
    return backbone.latent.sees_ahead and name == "latent.into.weight"


def results(backbone: Backbone, read: Tensor, segments: Tensor | None) -> dict[str, Tensor]:
    """Logits, and gradients of a random projection of them by each parameter."""
    y = logits(backbone, read, segments)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    named = [
        (name, parameter)
        for name, parameter in backbone.named_parameters()
        if not only_stops(name, backbone) and not only_fits(name, backbone)
    ]
    names, parameters = zip(*named, strict=True)
    gradients = torch.autograd.grad((y * weights).sum(), parameters)
    return dict(zip(["logits", *names], [y.detach(), *gradients], strict=True))


@pytest.mark.parametrize("packing", ["one", "several", "left padded"])
def test_fast_equals_step_by_step(backbone: Backbone, packing: str) -> None:
    read, segments = tokens(), PACKINGS[packing]
    fast = results(backbone, read, segments)
    with step_by_step():
        plain = results(backbone, read, segments)
    for name, expected in plain.items():
        scale = float(expected.abs().max())
        assert scale > 0, f"{name} has no effect"
        error = float((fast[name] - expected).abs().max()) / scale
        assert error < 1e-10, f"{name} differs from its twin's by {error:g}, relatively"


def read_in(
    backbone: Backbone, read: Tensor, segments: Tensor | None, sizes: list[int], state: Any
) -> tuple[Tensor, Any]:
    """Read in pieces of these sizes; return all logits and the last state."""
    outputs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        out = backbone(read[:, piece], None if segments is None else segments[:, piece], state)
        outputs.append(out.readout(out.hidden_BTD))
        state, start = out.state, start + size
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("case", CAUSAL_BACKBONES)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(sizes=PIECES, packing=st.sampled_from([None, *PACKINGS]))
def test_any_split_into_calls_equals_one_pass(
    case: str, sizes: list[int], packing: str | None
) -> None:
    backbone, read = shared_backbone(case), tokens()
    segments = None if packing is None else PACKINGS[packing]
    state = backbone.init_state(2, LENGTH, dtype=torch.float64)
    actual, _ = read_in(backbone, read, segments, sizes, state)
    torch.testing.assert_close(actual, logits(backbone, read, segments), **ROUNDING)


@pytest.mark.parametrize("packing", [None, "short"])
def test_one_token_at_a_time_equals_one_pass(
    causal_backbone: Backbone, packing: str | None
) -> None:
    backbone = causal_backbone
    segments = None if packing is None else PACKINGS[packing]
    read, state = tokens(), backbone.init_state(2, LENGTH, dtype=torch.float64)
    actual, _ = read_in(backbone, read, segments, [1] * LENGTH, state)
    torch.testing.assert_close(actual, logits(backbone, read, segments), **ROUNDING)


def left_padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    read = [torch.cat([tokens(1, longest - len(prompt))[0], prompt]) for prompt in prompts]
    return torch.stack(read), segments_of([[len(p) - longest, len(p)] for p in prompts])


def prefilled(backbone: Backbone, lengths: list[int]) -> tuple[list[Tensor], Any]:
    """Prompts of these lengths, and the state of a left-padded batch that has read them."""
    prompts = [tokens(1, length)[0] for length in lengths]
    state = backbone.init_state(len(prompts), 2 * LENGTH, dtype=torch.float64)
    return prompts, backbone(*left_padded(prompts), state).state


def assert_continued(backbone: Backbone, actual: Tensor, past: list[Tensor], new: Tensor) -> None:
    """Compare logits `[B, T, V]` of new tokens with those of each row alone, from scratch."""
    for row, prompt in enumerate(past):
        expected = logits(backbone, torch.cat([prompt, new[row]])[None])[0, len(prompt) :]
        torch.testing.assert_close(
            actual[row], expected, **ROUNDING, msg=lambda text, row=row: f"row {row}: {text}"
        )


def test_left_padded_prompts_decode_as_if_alone(causal_backbone: Backbone) -> None:
    backbone = causal_backbone
    prompts, state = prefilled(backbone, [LENGTH, 9, 1])
    new = tokens(3, 4)
    y, _ = read_in(backbone, new, None, [1, 1, 2], state)
    assert_continued(backbone, y, prompts, new)


def test_left_padding_changes_nothing(backbone: Backbone) -> None:
    prompts = [tokens(1, length)[0] for length in (LENGTH, 9, 1)]
    y = logits(backbone, *left_padded(prompts))
    for row, prompt in enumerate(prompts):
        expected = logits(backbone, prompt[None])[0]
        torch.testing.assert_close(y[row, -len(prompt) :], expected, **ROUNDING)


def test_rows_leave_fork_and_enter(causal_backbone: Backbone) -> None:
    """As batched generation does: drop and fork rows, decode, admit new ones, decode."""
    backbone = causal_backbone
    prompts, state = prefilled(backbone, [LENGTH, 9, 1])
    kept, new = [2, 0, 2], tokens(3, 2)
    y, state = read_in(backbone, new, None, [1, 1], state.take(torch.tensor(kept)))
    past = [prompts[row] for row in kept]
    assert_continued(backbone, y, past, new)
    past = [torch.cat([prompt, new[row]]) for row, prompt in enumerate(past)]

    (past[1],), entering = prefilled(backbone, [5])
    state.put(torch.tensor([1]), entering)
    new = tokens(3, 3)
    y, _ = read_in(backbone, new, None, [1, 1, 1], state)
    assert_continued(backbone, y, past, new)


@pytest.mark.parametrize("twin", [False, True], ids=["fast", "twin"])
def test_autocast_trains(backbone: Backbone, twin: bool) -> None:
    backbone, read = backbone.float(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        if twin:
            with step_by_step():
                y = logits(backbone, read, PACKINGS["several"])
        else:
            y = logits(backbone, read, PACKINGS["several"])
    y.float().square().mean().backward()
    for name, parameter in backbone.named_parameters():
        if only_stops(name, backbone):
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32, f"{name} has a gradient in half precision"


def test_an_output_is_complete(backbone: Backbone) -> None:
    out = backbone(tokens())
    assert out.hidden_BTD.shape == (2, LENGTH, backbone.config.dim)
    assert out.readout(out.hidden_BTD[:, -1:]).shape == (2, 1, VOCABULARY)
    assert out.state is None
    assert out.losses == {}


def test_tied_embeddings_are_one_weight() -> None:
    tied = build_backbone(backbone_config(tie_embeddings=True))
    untied = build_backbone(backbone_config())
    assert tied.head.weight is tied.embedding.weight
    assert untied.num_parameters - tied.num_parameters == tied.head.weight.numel()
    assert tied.num_parameters == sum(p.numel() for p in set(tied.parameters()))


def test_states_of_other_loop_counts_are_refused() -> None:
    backbone = build_backbone(BACKBONE_CASES["looped"])
    three = backbone.init_state(1, LENGTH, dtype=torch.float64)
    two = backbone.init_state(1, LENGTH, dtype=torch.float64, loops=2)
    with pytest.raises(ValueError, match="2 loops can't enter one of 3"):
        three.put(torch.tensor([0]), two)
    with pytest.raises(ValueError, match=r"loops=2 .* state was made for 3 loops"):
        backbone(tokens(1), None, three, loops=2)
