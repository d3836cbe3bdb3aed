"""Read texts as token ids alone: what is padding, which rows go on, where thoughts have to stand.

For callers that know neither documents nor roles, such as a published checkpoint's.

Legend: B rows, G some of them, T time, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Backbone, BackboneState
from .depth.stop import Stop
from .latent.placing import NOWHERE, WORD, Placed, first_places

PADDING = -1


@dataclass(frozen=True)
class Way:
    """How a text is to be read.

    Attributes:
        loops: loop count; None is the backbone's own.
        stop: rule by which tokens stop looping; None is the backbone's own.
        thoughts: thoughts behind the first `<think>`.
        think: the token that they follow; None where nothing thinks.
        thought: the token that stands at a thought's place, for schemes that read it.
    """

    loops: int | None = None
    stop: Stop | None = None
    thoughts: int = 0
    think: int | None = None
    thought: int = 0


@dataclass
class TextMemory:
    """What is known of texts between calls.

    Attributes:
        max_len: tokens that each row can hold, padding included; thoughts have room beside them.
        length: tokens read so far, padding included and thoughts not.
        state: the backbone's; None before the first call.
        thought_B: rows that have thought already.
    """

    max_len: int
    length: int = 0
    state: BackboneState | None = None
    thought_B: Tensor | None = None

    def begin(self, backbone: Backbone, rows: int, way: Way) -> BackboneState:
        """Return the state, made on first use."""
        if self.state is None:
            weight = backbone.head.weight
            where = (self.max_len + way.thoughts, weight.device, weight.dtype)
            self.state = backbone.init_state(rows, *where, way.loops, way.stop)
            self.thought_B = torch.zeros(rows, dtype=torch.bool, device=weight.device)
        return self.state

    def count(self, length: int) -> None:
        """Count tokens that are about to be read; ValueError where they don't fit."""
        if self.length + length > self.max_len:
            raise ValueError(
                f"the cache holds {self.max_len} tokens, and {self.length + length} are to be "
                "read: make a longer one with model.make_cache(max_len)"
            )
        self.length += length

    def take(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.state is not None and self.thought_B is not None:
            self.state, self.thought_B = self.state.take(rows), self.thought_B[rows]


def read_text(
    backbone: Backbone,
    tokens_BT: Tensor,
    segments_BT: Tensor | None,
    memory: TextMemory | None,
    way: Way,
) -> Tensor:
    """Read tokens, and think in the rows whose first `<think>` is among them.

    Args:
        backbone: who reads.
        tokens_BT: token ids.
        segments_BT: 0 where the text stands and -1 where padding does; None is text alone.
        memory: of earlier calls, brought on in place; None reads from scratch. What its first call
            reads is a prompt.
        way: how.

    Returns:
        Final hidden states `[B, T, D]`; at `<think>` those of the last thought behind it.

    Raises:
        ValueError: the memory is too short, or the backbone can't read so.
    """
    state, prompt = None, memory is not None and memory.state is None
    if memory is not None:
        state = memory.begin(backbone, len(tokens_BT), way)
        memory.count(tokens_BT.shape[1])
    place_B = _places(tokens_BT, segments_BT, memory, way)
    if place_B is None or not bool((place_B != NOWHERE).any()):
        return _words(backbone, tokens_BT, segments_BT, state, way, prompt)
    parts: list[tuple[Tensor, Tensor]] = []
    for thinks in (True, False):
        rows_G = ((place_B != NOWHERE) == thinks).nonzero()[:, 0]
        if not len(rows_G):
            continue
        apart = state is not None and len(rows_G) < len(tokens_BT)
        own = state.take(rows_G) if apart and state is not None else state
        segments_GT = None if segments_BT is None else segments_BT[rows_G]
        given = (backbone, tokens_BT[rows_G], segments_GT, own, way)
        read = _thinking(*given, place_B[rows_G]) if thinks else _words(*given, prompt)
        if apart and state is not None and own is not None:
            state.put(rows_G, own)
        parts.append((rows_G, read))
    order = torch.cat([rows_G for rows_G, _ in parts]).argsort()
    return torch.cat([read for _, read in parts])[order]


def _places(
    tokens_BT: Tensor, segments_BT: Tensor | None, memory: TextMemory | None, way: Way
) -> Tensor | None:
    """Where rows are to think, each row once; None where nothing thinks."""
    if way.think is None or not way.thoughts:
        return None
    place_B = first_places(tokens_BT, segments_BT, way.think)
    if memory is not None and memory.thought_B is not None:
        place_B = place_B.masked_fill(memory.thought_B, NOWHERE)
        memory.thought_B = memory.thought_B | (place_B != NOWHERE)
    return place_B


def _words(
    backbone: Backbone,
    tokens_BT: Tensor,
    segments_BT: Tensor | None,
    state: BackboneState | None,
    way: Way,
    prompt: bool,
) -> Tensor:
    """Read tokens among which is no thought."""
    roles_BT = torch.full_like(tokens_BT, WORD) if prompt else None
    given = (tokens_BT, segments_BT, state, way.loops, roles_BT)
    return backbone(*given, stop=way.stop).hidden_BTD


def _thinking(
    backbone: Backbone,
    tokens_BT: Tensor,
    segments_BT: Tensor | None,
    state: BackboneState | None,
    way: Way,
    place_B: Tensor,
) -> Tensor:
    """Read rows each of which has a place to think at."""
    put = Placed.after(place_B, way.thoughts, tokens_BT, segments_BT, way.thought)
    given = (put.tokens_BW, put.segments_BW, state, way.loops, put.roles_BW)
    return put.shown(backbone(*given, stop=way.stop).hidden_BTD)


def text_segments(mask: Tensor | None, length: int) -> Tensor | None:
    """Turn an attention mask into documents of the last `length` tokens; None is text alone.

    Args:
        mask: `[B, all tokens read so far]`, 0 where padding stands; None is no padding.
        length: tokens to come.

    Raises:
        ValueError: it has another shape, or a hole.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[1] < length:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}: give one of [rows, all tokens so far]"
        )
    if length == 1:  # one token, with which each row's own text goes on
        return None
    real_BT = mask.to(torch.bool)
    if bool(real_BT[:, -length:].all()):
        return None
    begins_B = (real_BT[:, 1:] & ~real_BT[:, :-1]).sum(dim=1) + real_BT[:, 0]
    if bool((begins_B > 1).any()):
        raise ValueError("attention_mask has a hole: padding may only stand at a row's ends")
    return torch.where(real_BT[:, -length:], 0, PADDING)
