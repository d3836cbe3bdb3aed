"""One level of chunking: bytes in, chunks through whatever stands inside, bytes out.

    h = encoder(x)                        p_t: the chance that a chunk begins at t
    v = inside(h_t where one begins)      z_m = P_m v_m + (1 - P_m) z_{m-1}, P_m = p where m begins
    y = decoder(W h_t + c_t z_m(t))       m(t) the last chunk that began at or before t

c_t is the confidence of the choice, one in the forward pass; W begins at zero. With chances that
are not learned P and c are one. Inside stands the backbone's depth, or a further level. Nothing
looks ahead; padding begins no chunk.

Legend: B batch, T time, D width.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..depth.depth import Asked, Depth
from ..depth.fixed import FixedDepth
from ..layers import RMSNorm, parameter_bytes
from ..segments import document_positions
from ..state import advance, continues, empty_counters, keep
from .chunk_gather import Asking, Chunks, Inside
from .chunk_memory import LevelMemory
from .chunk_router import ChunkRouter, Sight, ratio_loss, straight_through
from .latent import Thought

ONCE = Asked(loops=1)


class Level(nn.Module):
    """One level.

    Args:
        dim: width D.
        router: says where chunks begin.
        encoder: blocks that read what comes in.
        decoder: blocks that write what goes out.
        ratio: positions of a chunk that it aims at, and that costs without content go by.
    """

    def __init__(
        self,
        dim: int,
        router: ChunkRouter,
        encoder: nn.ModuleList,
        decoder: nn.ModuleList,
        ratio: int,
    ) -> None:
        super().__init__()
        self.dim, self.ratio = dim, ratio
        self.encoder, self.decoder = FixedDepth(encoder), FixedDepth(decoder)
        self.encoder_norm, self.decoder_norm = RMSNorm(dim), RMSNorm(dim)
        self.router = router
        self.residual = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.residual.weight)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for part in (self.encoder, self.decoder, self.encoder_norm, self.decoder_norm, self.router):
            part.reset_parameters()
        nn.init.zeros_(self.residual.weight)

    def forward(self, inside: Inside, x_BTD: Tensor, asking: Asking) -> Thought:
        """Read; the trajectory's `chunks_BT` counts the levels that begin a chunk."""
        positions_BT = self._begin(x_BTD, asking)
        h_BTD = self.encoder_norm(_run(self.encoder, x_BTD, asking, "encoder"))
        p_BT = self._chances(h_BTD, positions_BT, asking)
        begins_BT = p_BT >= 0.5
        if asking.segments_BT is not None:
            begins_BT = begins_BT & (asking.segments_BT >= 0)
        thought = Chunks(inside, h_BTD, p_BT, begins_BT, self.router.learns, asking).run()
        joined_BTD = self.residual(h_BTD) + self._read(thought, p_BT, begins_BT, asking).to(h_BTD)
        y_BTD = self.decoder_norm(_run(self.decoder, joined_BTD, asking, "decoder"))
        self._keep(h_BTD, positions_BT, asking)
        losses = dict(thought.losses)
        if asking.learns and self.router.learns:
            own = ratio_loss(p_BT, begins_BT, positions_BT, asking.segments_BT, self.ratio)
            losses["ratio"] = losses.get("ratio", 0.0) + own
        calls = thought.trajectory.block_calls + self.own_calls
        return Thought(y_BTD, replace(thought.trajectory, block_calls=calls), losses)

    def _read(self, thought: Thought, p_BT: Tensor, begins_BT: Tensor, asking: Asking) -> Tensor:
        """What each position reads of its chunk: nothing in padding, else all of it."""
        read_BTD = thought.hidden_BTD
        if asking.segments_BT is not None:
            read_BTD = torch.where((asking.segments_BT >= 0)[..., None], read_BTD, 0.0)
        if self.router.learns:
            read_BTD = read_BTD * straight_through(p_BT, begins_BT)[..., None]
        return read_BTD

    def _begin(self, x_BTD: Tensor, asking: Asking) -> Tensor:
        """Forget documents that ended; return the place of each token in its document."""
        start_B, memory = None, asking.memory
        if memory is not None and asking.states is not None:
            kept_B = continues(memory, asking.segments_BT)
            start_B = keep(memory.position_B, kept_B)
            if kept_B is not None and not kept_B.all():
                for state in asking.states[1:]:
                    state.forget((~kept_B).nonzero()[:, 0])
        return document_positions(asking.segments_BT, x_BTD.shape[1], start_B, x_BTD.device)

    def _chances(self, h_BTD: Tensor, positions_BT: Tensor, asking: Asking) -> Tensor:
        memory = asking.memory
        if memory is None:
            before_BD = torch.zeros_like(h_BTD[:, 0])
            last_B = torch.zeros(len(h_BTD), dtype=torch.long, device=h_BTD.device)
        else:
            before_BD, last_B = memory.output_BD, memory.last_B
        return self.router(Sight(h_BTD, before_BD, positions_BT, asking.tokens_BT, last_B))

    def _keep(self, h_BTD: Tensor, positions_BT: Tensor, asking: Asking) -> None:
        """Remember what the next position compares itself with."""
        memory = asking.memory
        if memory is None:
            return
        memory.document_B, memory.position_B = advance(
            memory, asking.segments_BT, h_BTD.shape[1], positions_BT
        )
        memory.output_BD = h_BTD[:, -1].to(memory.output_BD.dtype)
        if asking.tokens_BT is not None:
            memory.last_B = asking.tokens_BT[:, -1].clone()

    def init_memory(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> LevelMemory:
        """Return empty memory; as many chunks as tokens may begin."""
        encoder, decoder = (
            part.init_state(batch, max_len, device, dtype, 1)
            for part in (self.encoder, self.decoder)
        )
        wide = torch.promote_types(dtype, torch.float32)
        return LevelMemory(
            *empty_counters(batch, device),
            encoder,
            decoder,
            torch.zeros(batch, self.dim, device=device, dtype=dtype),
            torch.zeros(batch, self.dim, device=device, dtype=wide),
            torch.zeros(batch, dtype=torch.long, device=device),
        )

    @property
    def own_calls(self) -> int:
        """Passes through blocks of one position, what stands inside left out."""
        return len(self.encoder.order) + len(self.decoder.order)

    def cost(self, context: int) -> Cost:
        """Cost of one position, what stands inside left out."""
        return self.encoder.cost(context, 1) + self.decoder.cost(context, 1) + self._rest(1)

    def prefill_cost(self, length: int) -> Cost:
        """Cost of reading `length` positions at once, what stands inside left out."""
        coders = self.encoder.prefill_cost(length, 1) + self.decoder.prefill_cost(length, 1)
        return coders + self._rest(length)

    def _rest(self, positions: int) -> Cost:
        """Router, residual and norms; two vectors are remembered."""
        parts = (self.router, self.residual, self.encoder_norm, self.decoder_norm)
        flops = positions * (self.router.flops + linear_flops(self.dim, self.dim))
        return Cost(flops, sum(map(parameter_bytes, parts)), 4 * 2 * self.dim)


def _run(coder: Depth, x_BTD: Tensor, asking: Asking, name: str) -> Tensor:
    states = None if asking.memory is None else getattr(asking.memory, name)
    return coder(x_BTD, asking.segments_BT, states, ONCE)[0]
