"""Texts as token ids alone: thoughts find their places, whatever stands beside, in any pieces."""

import pytest
import torch

from models.latent.listing import LATENTS
from models.reading import TextMemory, Way, read_text, text_segments
from tests.eval.scripted import TOKENIZER
from tests.eval.thinking import thinking_backbone
from tests.models.cases import ROUNDING

THINK, DOT = TOKENIZER.think_id, TOKENIZER.encode(".")[0]
WAY = Way(thoughts=2, think=THINK, thought=DOT)
# Rows that think early, late, behind padding, and never; one thinks once though it says so twice.
TEXTS = torch.tensor(
    [
        [9, THINK, 10, 11, THINK, 12],
        [9, 10, 11, 12, 13, THINK],
        [0, 0, 9, THINK, 10, 11],
        [9, 10, 11, 12, 13, 14],
    ]
)
SEGMENTS = torch.where(torch.tensor([[1] * 6, [1] * 6, [0, 0, 1, 1, 1, 1], [1] * 6]) > 0, 0, -1)


@pytest.mark.parametrize("kind", ["pause", "feedback", "lotus"])
@torch.no_grad()
def test_rows_think_as_one_by_one_in_any_pieces(kind: str) -> None:
    backbone = thinking_backbone(LATENTS[kind]())
    whole = read_text(backbone, TEXTS, SEGMENTS, None, WAY)
    for row, tokens in enumerate(TEXTS):
        real = SEGMENTS[row] >= 0
        alone = read_text(backbone, tokens[None, real], None, None, WAY)
        torch.testing.assert_close(alone[0], whole[row, real], **ROUNDING)
    for cut in (3, 4):
        memory = TextMemory(6)
        parts = [
            read_text(backbone, TEXTS[:, piece], SEGMENTS[:, piece], memory, WAY)
            for piece in (slice(cut), slice(cut, None))
        ]
        found = torch.cat(parts, dim=1)
        torch.testing.assert_close(found[SEGMENTS >= 0], whole[SEGMENTS >= 0], **ROUNDING)


@torch.no_grad()
def test_thoughts_stand_behind_the_first_think_alone() -> None:
    backbone = thinking_backbone(LATENTS["feedback"]())
    laid = torch.tensor([[9, THINK, DOT, DOT, 10, 11, THINK, 12]])
    roles = torch.tensor([[1, 1, 3, 3, 1, 1, 1, 1]])
    placed = backbone(laid, roles_BT=roles).hidden_BTD[:, [0, 3, 4, 5, 6, 7]]
    torch.testing.assert_close(read_text(backbone, TEXTS[:1], None, None, WAY), placed, **ROUNDING)


def test_a_memory_that_is_too_short_says_so() -> None:
    backbone, memory = thinking_backbone(LATENTS["pause"]()), TextMemory(5)
    read_text(backbone, TEXTS[:, :5], None, memory, WAY)
    with pytest.raises(ValueError, match="holds 5 tokens, and 6 are to be read"):
        read_text(backbone, TEXTS[:, :1], None, memory, WAY)


def test_masks_become_documents() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    found = text_segments(mask, 4)
    assert found is not None and found.tolist() == [[-1, -1, 0, 0], [0, 0, 0, -1]]
    assert text_segments(torch.ones(2, 4), 4) is text_segments(None, 4) is None
    assert text_segments(mask[:1], 2) is text_segments(mask, 1) is None
    for bad, line in (
        (torch.tensor([[1, 0, 1]]), "has a hole"),
        (torch.ones(1, 1, 3), "has shape"),
    ):
        with pytest.raises(ValueError, match=line):
            text_segments(bad, 3)
