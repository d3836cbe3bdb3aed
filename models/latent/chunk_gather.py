"""The chunks of a batch: put side by side, run, smoothed, and laid out over the positions again.

Legend: B batch, T time, D width, M chunks, G rows of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..depth.depth import Trajectory
from ..depth.going import Group, of_equal_counts, put_states, take_states
from ..ops.smoothing import smooth
from .chunk_memory import LevelMemory
from .latent import Thought

Inside = Callable[[Tensor, Tensor | None, list[Any] | None], Thought]
"""`(x_GMD, segments_GM, states) -> Thought`: runs chunks; the states are brought on in place."""


@dataclass(frozen=True)
class Asking:
    """What a level is asked to read.

    Attributes:
        segments_BT: document ids; None is one document, or the state's.
        tokens_BT: token ids; None where the level reads chunks.
        states: its own memory, then those of what stands inside; None scores from scratch.
        learns: whether the loss of its ratio is asked for.
    """

    segments_BT: Tensor | None
    tokens_BT: Tensor | None
    states: list[Any] | None
    learns: bool

    @property
    def memory(self) -> LevelMemory | None:
        """The level's own memory."""
        return None if self.states is None else self.states[0]


@dataclass(frozen=True)
class Chunks:
    """Runs the chunks of a batch, smooths them, and lays them out over its positions.

    Attributes:
        inside: what runs chunks.
        h_BTD: the encoder's outputs.
        p_BT: each position's chance of beginning a chunk.
        begins_BT: where one begins.
        learned: whether the chances are learned; else there is nothing to smooth by.
        asking: what is read.
    """

    inside: Inside
    h_BTD: Tensor
    p_BT: Tensor
    begins_BT: Tensor
    learned: bool
    asking: Asking

    def run(self) -> Thought:
        """Return, at each position, the last chunk that began at or before it."""
        return self._from_scratch() if self.asking.states is None else self._with_states()

    def _from_scratch(self) -> Thought:
        """All rows side by side, those with fewer chunks padded at the end."""
        group = side_by_side(self.begins_BT, self.asking.segments_BT)
        thought = self.inside(group.pick(self.h_BTD), group.segments_GM, None)
        z_BMD = self._smoothed(thought.hidden_BTD, group, None)
        ran = thought.trajectory
        trajectory = replace(
            ran,
            states=[self._over_positions(state) for state in ran.states],
            halts=[self._over_positions(halt[..., None])[..., 0] for halt in ran.halts],
            layers=[self._over_positions(layer) for layer in ran.layers],
            chunks_BT=self._counted([(group, ran)]),
        )
        return replace(thought, hidden_BTD=self._over_positions(z_BMD), trajectory=trajectory)

    def _with_states(self) -> Thought:
        """Rows with equally many chunks side by side: a state must not read padding."""
        memory, states = self.asking.memory, self.asking.states
        assert memory is not None and states is not None
        before_BD, most = memory.chunk_BD.clone(), int(self.begins_BT.sum(dim=1).max())
        z_BMD = before_BD.new_zeros(len(before_BD), most, before_BD.shape[1])
        ran: list[tuple[Group, Trajectory]] = []
        for group in of_equal_counts(self.begins_BT, self.asking.segments_BT):
            calls = range(1, len(states))
            taken = take_states(states, calls, group)
            inner = taken[1:]
            thought = self.inside(group.pick(self.h_BTD), group.segments_GM, inner)
            taken[1:] = inner
            put_states(states, calls, group, taken)
            z_GMD = self._smoothed(thought.hidden_BTD, group, before_BD[group.rows_G])
            z_BMD[group.rows_G, : z_GMD.shape[1]] = z_GMD
            memory.chunk_BD[group.rows_G] = z_GMD[:, -1].to(memory.chunk_BD.dtype)
            ran.append((group, thought.trajectory))
        last = ran[-1][1] if ran else Trajectory(0, 0)
        trajectory = Trajectory(last.loops, last.block_calls, chunks_BT=self._counted(ran))
        return Thought(self._over_positions(z_BMD, before_BD), trajectory)

    def _smoothed(self, made_GMD: Tensor, group: Group, before_GD: Tensor | None) -> Tensor:
        """Smooth chunks by their chances; where those are not learned, they are one."""
        if not self.learned:
            return made_GMD
        return smooth(made_GMD, 1 - group.pick(self.p_BT), before_GD)

    def _over_positions(self, z_BMD: Tensor, before_BD: Tensor | None = None) -> Tensor:
        """Lay chunks out; positions before the first read what was before."""
        first_BD = torch.zeros_like(z_BMD[:, 0]) if before_BD is None else before_BD
        every_BMD = torch.cat([first_BD[:, None].to(z_BMD.dtype), z_BMD], dim=1)
        index_BT1 = self.begins_BT.cumsum(dim=1)[..., None]
        return every_BMD.gather(1, index_BT1.expand(-1, -1, z_BMD.shape[-1]))

    def _counted(self, ran: list[tuple[Group, Trajectory]]) -> Tensor:
        """Levels that begin a chunk at each position: this one, and those inside."""
        count_BT = self.begins_BT.long()
        for group, trajectory in ran:
            if trajectory.chunks_BT is not None:
                inner_GM = trajectory.chunks_BT + 1
                if group.real_GM is not None:
                    inner_GM = torch.where(group.real_GM, inner_GM, group.pick(count_BT))
                count_BT = group.place(count_BT, inner_GM)
        return count_BT


def side_by_side(begins_BT: Tensor, segments_BT: Tensor | None) -> Group:
    """Put all rows' chunks into one group; at least one place, so that what is inside always runs.

    (Processes that train together must call the same blocks.) Unlike `going.all_in_one` it keeps
    rows without any, so that means over rows stay means over all rows.
    """
    count_B = begins_BT.sum(dim=1)
    most = max(1, int(count_B.max()))
    index_BM = (~begins_BT).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    real_BM = torch.arange(most, device=begins_BT.device) < count_B[:, None]
    rows_B = torch.arange(len(begins_BT), device=begins_BT.device)
    given = torch.zeros_like(begins_BT, dtype=torch.long) if segments_BT is None else segments_BT
    segments_BM = given.gather(1, index_BM).where(real_BM, -1)
    return Group(rows_B, index_BM, segments_BM, True, real_BM)
