"""What a caller may do to thoughts: look at what they carry, and put something else in place."""

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.latent.feedback import FeedbackConfig
from models.latent.latent import THOUGHT, Alter, LatentConfig
from models.latent.ponder import PonderConfig
from models.latent.ponder2 import Ponder2Config
from tests.models.cases import VOCABULARY, backbone_config, build_backbone
from tests.models.test_latent_conformance import SCHEMES, SEGMENTS, logits, made, roles, tokens

PROMPT, THOUGHTS, DIM = 6, 3, 16


@pytest.fixture(params=SCHEMES)
def thinking(request: pytest.FixtureRequest) -> Backbone:
    return made(request.param)


class Seen:
    """Notes what thoughts carry, by row and number, in a batch with one run of thoughts a row."""

    def __init__(self, rows: int = 2) -> None:
        self.inputs_BND = torch.full((rows, THOUGHTS, DIM), torch.nan, dtype=torch.float64)

    def look(self, made_MD: Tensor, rows_M: Tensor, numbers_M: Tensor) -> Tensor:
        assert self.inputs_BND[rows_M, numbers_M].isnan().all(), "a thought is seen twice"
        self.inputs_BND[rows_M, numbers_M] = made_MD.detach()
        return made_MD


def given(inputs_BND: Tensor) -> Alter:
    return lambda made_MD, rows_M, numbers_M: inputs_BND[rows_M, numbers_M]


def zeroed(made_MD: Tensor, rows_M: Tensor, numbers_M: Tensor) -> Tensor:
    return torch.zeros_like(made_MD)


def words() -> Tensor:
    """Random words, and one and the same at thoughts' places, as a corpus has it."""
    read = tokens(PROMPT + THOUGHTS + 2)
    read[:, PROMPT : PROMPT + THOUGHTS] = 1
    return read


def asked(backbone: Backbone, alter: Alter | None, read: Tensor, decoding: bool) -> Tensor:
    """Logits of a prompt, its thoughts and two words behind them."""
    at = torch.ones_like(read)
    at[:, PROMPT : PROMPT + THOUGHTS] = THOUGHT
    if not decoding:
        out = backbone(read, roles_BT=at, alter=alter)
        return out.readout(out.hidden_BTD)
    state, end = backbone.init_state(2, 16, dtype=torch.float64), PROMPT + THOUGHTS
    first = backbone(read[:, :end], None, state, roles_BT=at[:, :end], alter=alter)
    rest = backbone(read[:, end:], None, state)
    return first.readout(torch.cat([first.hidden_BTD, rest.hidden_BTD], dim=1))


@pytest.mark.parametrize("decoding", [False, True])
def test_replaying_changes_nothing_and_swapping_twice_returns(
    thinking: Backbone, decoding: bool
) -> None:
    read, seen, again = words(), Seen(), Seen()
    plain = asked(thinking, seen.look, read, decoding)
    torch.testing.assert_close(asked(thinking, None, read, decoding), plain)
    assert not seen.inputs_BND.isnan().any(), "every thought is seen"
    assert torch.equal(asked(thinking, given(seen.inputs_BND), read, decoding), plain)
    swapped_BND = seen.inputs_BND.flip(0)

    def swap(made_MD: Tensor, rows_M: Tensor, numbers_M: Tensor) -> Tensor:
        return again.look(swapped_BND[rows_M, numbers_M], rows_M, numbers_M)

    other = asked(thinking, swap, read, decoding)
    assert torch.equal(other, plain) == (thinking.config.latent.kind in ("pause", "filler"))
    back = asked(thinking, given(again.inputs_BND.flip(0)), read, decoding)
    assert torch.equal(back, plain)


@pytest.mark.parametrize("decoding", [False, True])
def test_zeros_reach_what_follows_and_nothing_before(thinking: Backbone, decoding: bool) -> None:
    read = words()
    plain, empty = (asked(thinking, alter, read, decoding) for alter in (None, zeroed))
    torch.testing.assert_close(empty[:, :PROMPT], plain[:, :PROMPT])
    assert (empty[:, PROMPT:] - plain[:, PROMPT:]).abs().amax(dim=-1).min() > 1e-6


def test_altering_without_and_with_a_state_is_the_same(thinking: Backbone) -> None:
    read = words()
    whole, decoded = (asked(thinking, zeroed, read, decoding) for decoding in (False, True))
    torch.testing.assert_close(decoded, whole)


def test_packed_documents_number_their_own_thoughts(thinking: Backbone) -> None:
    seen: list[tuple[int, int]] = []

    def look(made_MD: Tensor, rows_M: Tensor, numbers_M: Tensor) -> Tensor:
        seen.extend(zip(rows_M.tolist(), numbers_M.tolist(), strict=True))
        return made_MD

    read = tokens()
    plain = logits(thinking, read, SEGMENTS, roles())
    out = thinking(read, SEGMENTS, roles_BT=roles(), alter=look)
    real = SEGMENTS >= 0
    torch.testing.assert_close(out.readout(out.hidden_BTD)[real], plain[real])
    assert sorted(seen) == sorted(
        [(0, 0), (0, 1), (0, 2), (0, 0), (0, 1)] + [(1, n) for n in range(4)]
    )


def test_rounds_are_recorded_pass_by_pass() -> None:
    backbone = build_backbone(backbone_config("gdn attn", latent=FeedbackConfig(jacobi=2)))
    read = torch.randint(VOCABULARY, (2, 11))
    at = torch.ones_like(read)
    at[:, PROMPT : PROMPT + THOUGHTS] = THOUGHT
    out = backbone(read, roles_BT=at, record=True)
    assert len(out.passes) == 3
    assert torch.equal(out.passes[-1], out.hidden_BTD)
    # Rounds are exact from the front: after two, the first two thoughts don't change any more.
    torch.testing.assert_close(out.passes[1][:, : PROMPT + 1], out.hidden_BTD[:, : PROMPT + 1])
    assert not torch.allclose(out.passes[0], out.hidden_BTD)
    assert backbone(read, roles_BT=at).passes == []


@pytest.mark.parametrize(
    ("latent", "passes"),
    [(PonderConfig(passes=2), 3), (Ponder2Config(), 2), (Ponder2Config(rounds=2), 2)],
    ids=["ponder", "ponder2", "ponder2 rounds"],
)
def test_pondering_is_recorded_pass_by_pass(latent: LatentConfig, passes: int) -> None:
    backbone = build_backbone(backbone_config("gdn attn", latent=latent))
    read = torch.randint(VOCABULARY, (2, 5))
    out = backbone(read, record=True)
    assert len(out.passes) == passes
    assert torch.equal(out.passes[-1], out.hidden_BTD)
    assert all(each.shape == out.hidden_BTD.shape for each in out.passes)
    assert not torch.allclose(out.passes[0], out.passes[-1])
    assert backbone(read).passes == []
