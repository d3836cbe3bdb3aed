"""What tests of latent thought vectors read: packed documents with questions, small backbones."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.backbone import Backbone, Output
from models.depth.depth import Asked
from models.depth.draws import Draws
from models.latent.vector import Vector, VectorConfig
from tests.models.cases import (
    VOCABULARY,
    backbone_config,
    build_backbone,
)

LENGTH = 21
LAYOUTS = ("attn", "gdn attn")
VECTORS = VectorConfig(vectors=3, width=5, inner_steps=2)
DRAWS = Draws(seed=3, stage=0, step=5, rows=2)
# Two rows: documents with a question and an answer, one of a single token, a text, and padding.
SEGMENTS = torch.tensor([[-1] * 2 + [0] * 9 + [1] * 10, [0] + [1] * 11 + [2] * 6 + [-1] * 3])
QUESTION, ANSWER, TEXT = 1, 4, 5
QUESTIONS = {(0, 0): 5, (0, 1): 6, (1, 1): 4}
"""Tokens of the question of a document of a row; the others have none."""


def spans() -> dict[tuple[int, int], slice]:
    """Where each document of each row stands."""
    found = {}
    for row, ids in enumerate(SEGMENTS.tolist()):
        for document in sorted({*ids} - {-1}):
            start = ids.index(document)
            found[row, document] = slice(start, start + ids.count(document))
    return found


def roles() -> Tensor:
    made = torch.full((2, LENGTH), TEXT)
    for (row, document), length in QUESTIONS.items():
        span = spans()[row, document]
        made[row, span] = ANSWER
        made[row, span.start : span.start + length] = QUESTION
    return made


def made(layout: str = "gdn attn", latent: VectorConfig = VECTORS, **changes: Any) -> Backbone:
    return build_backbone(backbone_config(layout, latent=latent, **changes))


def with_(backbone: Backbone, **settings: Any) -> Backbone:
    """The same weights under other settings of its vectors."""
    other = made(backbone.config.layout, replace(VECTORS, **settings))
    other.load_state_dict(backbone.state_dict())
    return other


def vector(backbone: Backbone) -> Vector:
    assert isinstance(backbone.latent, Vector)
    return backbone.latent


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH))


def changed(tokens_BT: Tensor) -> Tensor:
    return (tokens_BT + torch.randint(1, VOCABULARY, tokens_BT.shape)) % VOCABULARY


def logits_of(out: Output) -> Tensor:
    return out.readout(out.hidden_BTD)


def logits(backbone: Backbone, read: Tensor, draws: Draws | None = None) -> Tensor:
    return logits_of(backbone(read, SEGMENTS, roles_BT=roles(), draws=draws))


def prefixed_logits(backbone: Backbone, read: Tensor, z_NPW: Tensor) -> Tensor:
    """Logits of documents, one a row, read after given vectors by the depth alone."""
    places = vector(backbone).prefixes(z_NPW)
    x = torch.cat([places, backbone.embedding(read)], dim=1)
    hidden, _, _ = backbone.depth(x, None, None, Asked(1))
    return backbone.head(backbone.norm(hidden[:, z_NPW.shape[1] :]))
