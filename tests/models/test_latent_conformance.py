"""What every latent scheme with thoughts before an answer promises, over attention and a hybrid."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.backbone import Backbone
from models.latent.fed import FedSlots
from models.latent.feedback import FeedbackConfig
from models.latent.latent import THOUGHT, LatentConfig
from models.latent.listing import LATENTS
from models.latent.slots import SlotConfig
from models.ops.twin import step_by_step
from tests.models.cases import PIECES, ROUNDING, VOCABULARY, backbone_config, build_backbone

LENGTH = 21
LAYOUTS = ("attn", "gdn attn")
SCHEMES: dict[str, LatentConfig] = {
    **{kind: made() for kind, made in LATENTS.items() if made.thinks},
    "feedback mlp": FeedbackConfig(projection="mlp"),
    "feedback jacobi": FeedbackConfig(jacobi=2),
}
# Two rows: documents with and without thoughts, with words after them and without, and padding.
SEGMENTS = torch.tensor([[0] * 9 + [1] * 4 + [2] * 8, [0] * 3 + [1] * 15 + [-1] * 3])
THOUGHTS = {0: [*range(4, 7), *range(15, 17)], 1: [*range(8, 12)]}


def roles() -> Tensor:
    made = torch.ones(2, LENGTH, dtype=torch.long)
    for row, places in THOUGHTS.items():
        made[row, places] = THOUGHT
    return made


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SCHEMES)
def thinking(request: pytest.FixtureRequest, layout: str) -> Backbone:
    return made(request.param, layout)


def made(scheme: str | LatentConfig, layout: str = "gdn attn") -> Backbone:
    latent = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    return build_backbone(backbone_config(layout, latent=latent))


def tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (2, length))


def other(tokens_BT: Tensor) -> Tensor:
    return (tokens_BT + torch.randint(1, VOCABULARY, tokens_BT.shape)) % VOCABULARY


def logits(backbone: Backbone, read: Tensor, segments: Tensor | None, roles_BT: Tensor) -> Tensor:
    out = backbone(read, segments, roles_BT=roles_BT)
    return out.readout(out.hidden_BTD)


def test_changing_a_document_changes_no_other(thinking: Backbone) -> None:
    read = tokens()
    before = logits(thinking, read, SEGMENTS, roles())
    for row in range(2):
        for segment in range(int(SEGMENTS[row].max()) + 1):
            own = torch.zeros_like(SEGMENTS, dtype=torch.bool)
            own[row] = SEGMENTS[row] == segment
            after = logits(thinking, torch.where(own, other(read), read), SEGMENTS, roles())
            rest = ~own & (SEGMENTS >= 0)
            assert torch.equal(after[rest], before[rest]), f"document {segment} of row {row} leaks"
            assert not torch.equal(after[own], before[own])


def test_the_future_changes_nothing(thinking: Backbone) -> None:
    read, real = tokens(), SEGMENTS >= 0
    before = logits(thinking, read, SEGMENTS, roles())
    for now in (1, 5, 10, 17):
        changed = torch.cat([read[:, :now], other(read[:, now:])], dim=1)
        after = logits(thinking, changed, SEGMENTS, roles())
        seen = real[:, :now]
        torch.testing.assert_close(after[:, :now][seen], before[:, :now][seen], **ROUNDING)


def test_without_thoughts_it_is_the_plain_backbone(thinking: Backbone) -> None:
    plain = build_backbone(backbone_config(thinking.config.layout))
    plain.load_state_dict(thinking.state_dict(), strict=False)
    read, words = tokens(), torch.ones(2, LENGTH, dtype=torch.long)
    expected = logits(plain, read, SEGMENTS, words)
    assert torch.equal(logits(thinking, read, SEGMENTS, words), expected)


def test_what_a_word_at_a_thoughts_place_is_means_nothing(thinking: Backbone) -> None:
    read, at = tokens(), roles() == THOUGHT
    before = logits(thinking, read, SEGMENTS, roles())
    after = logits(thinking, torch.where(at, other(read), read), SEGMENTS, roles())
    reads_dots = thinking.config.latent.kind == "filler"
    assert torch.equal(after, before) != reads_dots


def results(backbone: Backbone, read: Tensor) -> dict[str, Tensor]:
    """Logits of real places, and gradients of a random projection of them."""
    y = logits(backbone, read, SEGMENTS, roles())[SEGMENTS >= 0]
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    gradients = torch.autograd.grad((y * weights).sum(), parameters)
    return dict(zip(["logits", *names], [y.detach(), *gradients], strict=True))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        scale = float(value.abs().max())
        assert scale > 0, f"{name} has no effect"
        error = float((actual[name] - value).abs().max()) / scale
        assert error < 1e-10, f"{name} differs by {error:g}, relatively"


def test_the_fast_way_equals_whole_passes(thinking: Backbone) -> None:
    """With gradients: thoughts made with states against one more pass for each thought."""
    read = tokens()
    fast = results(thinking, read)
    with step_by_step():
        assert_same(fast, results(thinking, read))


def test_as_many_jacobi_rounds_as_thoughts_are_one_after_the_other(layout: str) -> None:
    most = max(map(len, ([*range(3)], [*range(4)])))
    parallel = made(FeedbackConfig(jacobi=most), layout)
    sequential = made(FeedbackConfig(), layout)
    sequential.load_state_dict(parallel.state_dict(), strict=False)
    read = tokens()
    expected = results(sequential, read)
    y = logits(parallel, read, SEGMENTS, roles())[SEGMENTS >= 0]
    torch.testing.assert_close(y, expected["logits"], **ROUNDING)
    fewer = made(FeedbackConfig(jacobi=most - 2), layout)
    fewer.load_state_dict(parallel.state_dict())
    assert not torch.allclose(logits(fewer, read, SEGMENTS, roles())[SEGMENTS >= 0], y)


def pieces_read(
    backbone: Backbone, read: Tensor, roles_BT: Tensor, sizes: list[int], state: Any
) -> Tensor:
    outputs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        out = backbone(read[:, piece], SEGMENTS[:, piece], state, roles_BT=roles_BT[:, piece])
        outputs.append(out.readout(out.hidden_BTD))
        state, start = out.state, start + size
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(sizes=PIECES, layout=st.sampled_from(LAYOUTS))
def test_any_split_into_calls_equals_one_pass(scheme: str, sizes: list[int], layout: str) -> None:
    backbone = made(scheme, layout)
    if isinstance(backbone.latent, FedSlots) and backbone.latent.jacobi is not None:
        sizes = [4, 3, 1, 7, 6]  # thoughts of a run are made side by side, so in one call
        marked = torch.ones(2, LENGTH, dtype=torch.long)
        marked[0, 4:7] = marked[0, 15:17] = THOUGHT
    else:
        marked = roles()
    read, real = tokens(), SEGMENTS >= 0
    state = backbone.init_state(2, LENGTH, dtype=torch.float64)
    actual = pieces_read(backbone, read, marked, sizes, state)
    expected = logits(backbone, read, SEGMENTS, marked)
    torch.testing.assert_close(actual[real], expected[real], **ROUNDING)


def test_rows_think_as_if_alone(thinking: Backbone) -> None:
    """As batched generation does: left-padded prompts with thoughts behind, forked rows, words."""
    prompts = [torch.randint(VOCABULARY, (n,)) for n in (9, 4)]
    thoughts, longest = 3, 9
    read = torch.randint(VOCABULARY, (2, longest + thoughts))
    segments = torch.full_like(read, -1)
    for row, prompt in enumerate(prompts):
        read[row, longest - len(prompt) : longest] = prompt
        segments[row, longest - len(prompt) :] = 0
    marked = torch.ones_like(read)
    marked[:, longest:] = THOUGHT
    state = thinking.init_state(2, 2 * LENGTH, dtype=torch.float64)
    state = thinking(read, segments, state, roles_BT=marked).state
    assert state is not None
    kept = [1, 0, 1]
    state = state.take(torch.tensor(kept))
    new = torch.randint(VOCABULARY, (3, 2))
    for step in range(2):
        out = thinking(new[:, step : step + 1], None, state)
        y = out.readout(out.hidden_BTD)[:, 0]
        for row, prompt in enumerate(kept):
            own = torch.cat([read[prompt][segments[prompt] >= 0], new[row, : step + 1]])
            length = len(prompts[prompt])
            own_roles = torch.ones_like(own)
            own_roles[length : length + thoughts] = THOUGHT
            alone = logits(thinking, own[None], None, own_roles[None])[0, -1]
            torch.testing.assert_close(y[row], alone, **ROUNDING)


def test_a_state_holds_what_it_costs(thinking: Backbone) -> None:
    state = thinking.init_state(1, 7, dtype=torch.float32)
    assert state.nbytes == thinking.float().cost(7).state_bytes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_impossible_numbers_are_refused(scheme: str) -> None:
    config = type(SCHEMES[scheme])(thoughts=-1)  # pyright: ignore[reportCallIssue]
    assert isinstance(config, SlotConfig)
    with pytest.raises(ValueError, match=r"latent\.thoughts=-1 must be at least 0"):
        made(config)
