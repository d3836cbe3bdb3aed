"""Chunking: the backbone's depth runs over chunks of bytes that the model cuts itself.

H-Net (arXiv 2507.07955), which learns by similarity what BLT (2412.09871) takes from the entropy
of a second model, and LCM from sentences. An encoder reads bytes, a router says where chunks begin,
the depth runs once a chunk, and a decoder writes bytes again; see `chunk_level`. Two levels nest.

Legend: B batch, T time, D width.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cost import Cost
from ..depth.depth import Depth
from .chunk_gather import Asking, Inside
from .chunk_level import Level
from .chunk_memory import ChunkMemory
from .chunk_router import ROUTERS, router_of
from .costs import CostAt, Sizes
from .latent import Latent, LatentConfig, LatentSite, Reading, Thought
from .varying import refuse_varying

MOST_LEVELS = 2


@dataclass
class ChunkConfig(LatentConfig):
    """Settings of chunking.

    Attributes:
        router: where chunks begin: cosine (learned), or the controls stride (at every `ratio`-th
            byte of a document) and space (at the first byte after a space).
        ratio: bytes of a chunk that the loss of cosine aims at, N. Costs that know no content go by
            it, for every router. With two levels it is each level's.
        levels: 1, or 2: chunks of chunks.
        encoder: layout of each level's encoder, over the backbone's mixers; null is the backbone's
            own layout, from its first layer.
        encoder_layers: its layers.
        decoder: layout of each level's decoder, as the encoder's.
        decoder_layers: its layers.
        ratio_weight: weight of the loss that keeps the ratio (of cosine alone).
    """

    reads_bytes: ClassVar[bool] = True
    by_content: ClassVar[bool] = True
    kind: str = "chunk"
    router: str = "cosine"
    ratio: int = 4
    levels: int = 1
    encoder: str | None = None
    encoder_layers: int = 1
    decoder: str | None = None
    decoder_layers: int = 1
    ratio_weight: float = 0.03

    def build(self, site: LatentSite) -> "Chunk":
        """Make the module; ValueError on impossible settings."""
        self._check()
        return Chunk(self, [self._level(site) for _ in range(self.levels)])

    def _level(self, site: LatentSite) -> Level:
        router = router_of(self.router, site.dim, self.ratio)
        encoder = _blocks(site, "encoder", self.encoder, self.encoder_layers)
        decoder = _blocks(site, "decoder", self.decoder, self.decoder_layers)
        return Level(site.dim, router, encoder, decoder, self.ratio)

    def _check(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(
                f"latent.router={self.router} is not known: choose one of {', '.join(ROUTERS)}"
            )
        if self.ratio < 2:
            raise ValueError(f"latent.ratio={self.ratio} must be at least 2 bytes of a chunk")
        if not 1 <= self.levels <= MOST_LEVELS:
            raise ValueError(f"latent.levels={self.levels} must be 1 or {MOST_LEVELS}")
        if self.levels > 1 and self.router == "space":
            raise ValueError(
                f"latent.levels={self.levels} needs chunks of chunks, and latent.router=space cuts "
                "bytes alone: choose levels=1, or router=cosine or stride"
            )
        if not self.ratio_weight >= 0:
            raise ValueError(f"latent.ratio_weight={self.ratio_weight} must be at least 0")


def _blocks(site: LatentSite, key: str, layout: str | None, layers: int) -> nn.ModuleList:
    if layers < 1:
        raise ValueError(f"latent.{key}_layers={layers} must be at least 1")
    try:
        return site.make_blocks(layout, layers)
    except ValueError as error:
        raise ValueError(f"latent.{key}={layout}: {error}") from None


class Chunk(Latent):
    """Runs the depth over chunks.

    Attributes:
        levels: the outer one first.
        repeats_passes: rules that stop tokens early are refused, as where passes are repeated:
            what a position ran would be its chunk's.
    """

    repeats_passes = True

    def __init__(self, config: ChunkConfig, levels: list[Level]) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(levels)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for level in self.each():
            level.reset_parameters()

    def each(self) -> list[Level]:
        """Return the levels."""
        return [level for level in self.levels if isinstance(level, Level)]

    def forward(self, given: Reading) -> Thought:
        """Embed, read chunks, write."""
        states = None
        if given.calls is not None:
            states = [*given.memory.levels, *given.calls]
        asking = Asking(given.segments_BT, given.tokens_BT, states, given.learns)
        inside = self._inside(1, given, given.learns)
        thought = self.levels[0](inside, given.embed(given.tokens_BT), asking)
        if given.calls is not None and states is not None:
            given.calls[:] = states[len(self.levels) :]
        if "ratio" in thought.losses:
            losses = dict(thought.losses)
            losses["ratio"] = self.config.ratio_weight * losses["ratio"]
            thought = replace(thought, losses=losses)
        return thought

    def _inside(self, number: int, given: Reading, learns: bool) -> Inside:
        """What stands inside the level before `number`: that level, or the depth."""
        if number == len(self.levels):
            return given.run
        further, level = self._inside(number + 1, given, learns), self.levels[number]

        def inside(x_GMD: Tensor, segments_GM: Tensor | None, states: list[Any] | None) -> Thought:
            return level(further, x_GMD, Asking(segments_GM, None, states, learns))

        return inside

    def check_depth(self, depth: Depth) -> None:
        """Refuse depths whose tokens run different numbers of loops: it is chunks that would."""
        refuse_varying(depth, "latent=chunk counts what each byte ran by its chunks")

    def init_memory(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> ChunkMemory:
        """Return empty memory of each level."""
        return ChunkMemory(
            [level.init_memory(batch, max_len, device, dtype) for level in self.each()]
        )

    # What it costs where nothing is known of the content: by the ratio

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """Cost of one byte: its levels', and its share of a chunk, at the chunks of that context.

        The share is one in `ratio`, at each level; what is held is held whole.
        """
        return self._cost(0, at, context)

    def _cost(self, number: int, at: CostAt, context: int) -> Cost:
        if number == len(self.levels):
            return at(context)
        level = self.each()[number]
        inner = self._cost(number + 1, at, self.chunks_of(context))
        share = (1 / level.ratio) * inner
        return level.cost(context) + replace(share, state_bytes=inner.state_bytes)

    def prefill_cost(self, at: CostAt, length: int, sizes: Sizes) -> Cost:
        """Cost of reading `length` bytes at once, cut by the ratio."""
        return self._prefill_cost(0, at, length)

    def _prefill_cost(self, number: int, at: CostAt, length: int) -> Cost:
        if number == len(self.levels):
            return at(length)
        inner = self._prefill_cost(number + 1, at, self.chunks_of(length))
        return self.each()[number].prefill_cost(length) + inner

    def chunks_of(self, length: int) -> int:
        """Chunks of so many positions of a level, by the ratio: rounded up."""
        return -(-length // self.config.ratio)

    def inner_length(self, length: int) -> int:
        """Positions of the depth for so many bytes, by the ratio."""
        for _ in self.levels:
            length = self.chunks_of(length)
        return length

    def block_calls(self, calls: float) -> float:
        """Block calls of one byte, where one chunk takes `calls`: a mean, by the ratio."""
        for level in reversed(self.each()):
            calls = level.own_calls + calls / level.ratio
        return calls
