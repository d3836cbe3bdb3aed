"""Filling in: what is to be written is masked, and each token is predicted at its own place.

A backbone whose tokens see the whole document would read its next-token targets in its inputs. So
the inputs of what follows the prompt are masks here, as in BERT (arXiv 1810.04805) with everything
that is to be written masked at once, and a target stands where its token does:

    next token    tokens  a b = | c d $ |        targets  b = c | d $ | _
    filled in     tokens  a b = | M M M |        targets  _ _ _ | c d $ |

The puzzle solvers with nested loops (HRM, arXiv 2506.21734; TRM, 2510.04871) are trained so.

Legend: B batch, T time.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data.batch import Batch
from data.roles import Role
from models.backbone import Backbone


def fill_in(batch: Batch, mask_id: int) -> Batch:
    """Return the batch as it is to be filled in.

    Every token of a trace, thought or answer is masked; target and weight of the place before it,
    in the same document, become its own. A target at a question's token whose next token is a
    question's too is a label of a dense document: it isn't the next token, so it stays. Plain text
    has no prompt: its next tokens are predicted as ever.

    Args:
        batch: next-token targets, or labels in the question (`data.document`).
        mask_id: the token that stands for what is to be filled in.

    Returns:
        A new batch. Its weights add up to the old ones', but where a document longer than a row is
        cut in what it writes: the weight of a piece's first token stands in another piece, and is
        lost.
    """
    written_BT = (batch.roles_BT > Role.QUESTION) & (batch.roles_BT != Role.TEXT)
    follows_BT = _follows(batch.segments_BT)
    moved_BT = written_BT & follows_BT
    left_BT = moved_BT.roll(-1, dims=1)  # the first place follows none, so nothing wraps around
    kept_BT = batch.loss_BT.masked_fill(left_BT | written_BT, 0)
    return replace(
        batch,
        tokens_BT=batch.tokens_BT.masked_fill(written_BT, mask_id),
        targets_BT=torch.where(moved_BT, batch.targets_BT.roll(1, dims=1), batch.targets_BT),
        loss_BT=torch.where(moved_BT, batch.loss_BT.roll(1, dims=1), kept_BT),
    )


def _follows(segments_BT: Tensor) -> Tensor:
    """Whether the place before is of the same document."""
    follows_BT = torch.zeros_like(segments_BT, dtype=torch.bool)
    follows_BT[:, 1:] = segments_BT[:, 1:] == segments_BT[:, :-1]
    return follows_BT


def check_fill(
    backbone: Backbone, fills: Sequence[bool], question: float, texts: Collection[str] = ()
) -> None:
    """Refuse stages that would let a backbone read what it is to predict.

    Args:
        backbone: on any device.
        fills: each stage's `objective.fill`.
        question: weight of a question's own tokens, `data.loss.question`.
        texts: names of the corpus's sources that are texts.

    Raises:
        ValueError: naming the key.
    """
    if backbone.causal:
        return
    name = backbone.config.name
    for index, fills_in in enumerate(fills):
        key = f"stages[{index}].objective.fill"
        if not fills_in:
            raise ValueError(
                f"{key}=false: the backbone {name} is non-causal, so it reads the next token "
                f"instead of predicting it: set {key}=true, or causal=true in all of its mixers"
            )
    for source in texts:
        raise ValueError(
            f"data.sources.{source}.text: the backbone {name} is non-causal and would read a text "
            "instead of predicting it: leave the source out, or set causal=true in all mixers"
        )
    if question:
        raise ValueError(
            f"data.loss.question={question}: the backbone {name} is non-causal and sees the whole "
            "question, so there is nothing in it to predict: set data.loss.question=0"
        )
