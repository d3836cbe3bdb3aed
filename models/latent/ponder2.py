"""PonderLM-2: a latent thought between each token and the next (arXiv 2509.23184).

    t_1 z_1 t_2 z_2 ...        z_t the hidden state of t_t, logits from the hidden state of z_t

Each token is followed by `latents` positions, each of which reads the hidden state before it; the
last one predicts the next token. So a thought sees all earlier ones, and reading many tokens at
once is a chain as long as the text. It is solved by Jacobi rounds, as in training there: thoughts
begin as the hidden states of a pass over the tokens alone, and each round makes all of them anew.
A token that is decoded thinks exactly.

Legend: B batch, T time, D width, P positions of the stack.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cost import Cost, total
from ..depth.depth import Trajectory
from .latent import (
    CostAt,
    Latent,
    LatentConfig,
    LatentSite,
    Reading,
    Sizes,
    Thought,
    joined_in_time,
    last_of,
)


@dataclass
class Ponder2Config(LatentConfig):
    """Settings of thoughts between tokens.

    Attributes:
        latents: thoughts after each token.
        rounds: passes over tokens and thoughts when many are read at once, the last of which is
            read out; null thinks token by token, exactly, which takes as many steps.
    """

    kind: str = "ponder2"
    latents: int = 1
    rounds: int | None = None

    def build(self, site: LatentSite) -> "Ponder2":
        """Make the module; ValueError on impossible settings."""
        if self.latents < 1:
            raise ValueError(
                f"latent.latents={self.latents} must be at least 1, or choose latent=none"
            )
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"latent.rounds={self.rounds} must be at least 1, or null for exact")
        return Ponder2(self.latents, self.rounds)


class Ponder2(Latent):
    """Interleaves tokens with thoughts."""

    repeats_passes = True

    def __init__(self, latents: int, rounds: int | None) -> None:
        super().__init__()
        self.latents, self.rounds = latents, rounds
        self.stretch = latents + 1

    def forward(self, given: Reading) -> Thought:
        """Think between tokens; in rounds, or token by token."""
        x_BTD = given.embed(given.tokens_BT)
        if self.rounds is not None and x_BTD.shape[1] > 1:
            return self._in_rounds(given, x_BTD, self.rounds)
        calls = given.calls
        if calls is None:
            calls = given.run.fresh(len(x_BTD), self.stretch * x_BTD.shape[1])
        tokens = [
            self._think(given, x_BTD[:, t : t + 1], _at(given.segments_BT, t), calls)
            for t in range(x_BTD.shape[1])
        ]
        return joined_in_time(tokens)

    def _think(
        self, given: Reading, x_B1D: Tensor, segments_B1: Tensor | None, calls: list
    ) -> Thought:
        """Read one token, then think after it."""
        parts: list[Thought] = []
        for _ in range(self.stretch):
            if torch.is_grad_enabled():  # what the backward pass needs of old memories stays
                every = torch.arange(len(x_B1D), device=x_B1D.device)
                calls[:] = [call.take(every) for call in calls]
            parts.append(given.run(x_B1D, segments_B1, calls))
            x_B1D = parts[-1].hidden_BTD
        return last_of(parts, given.record)

    def _in_rounds(self, given: Reading, x_BTD: Tensor, rounds: int) -> Thought:
        """Make all thoughts anew in each round, from the hidden states before them."""
        segments_BP = None
        if given.segments_BT is not None:
            segments_BP = given.segments_BT.repeat_interleave(self.stretch, dim=1)
        guess = given.run(x_BTD, given.segments_BT, _copies(given.calls))
        parts, thoughts = [], [guess.hidden_BTD] * self.latents
        for number in range(1, rounds + 1):
            calls = given.calls if number == rounds else _copies(given.calls)
            inputs_BPD = torch.stack([x_BTD, *thoughts], dim=2).flatten(1, 2)
            parts.append(given.run(inputs_BPD, segments_BP, calls))
            hidden_BTPD = parts[-1].hidden_BTD.unflatten(1, (-1, self.stretch))
            thoughts = list(hidden_BTPD[:, :, :-1].unbind(dim=2))
        last = last_of(parts)
        steps = [last.hidden_BTD[:, place :: self.stretch] for place in range(self.stretch)]
        trajectory = self._in_tokens(last.trajectory, guess)
        return Thought(steps[-1], trajectory, last.losses, steps if given.record else [])

    def _in_tokens(self, trajectory: Trajectory, guess: Thought) -> Trajectory:
        """What ran, at the places that are read out; calls are counted for each token."""
        calls = guess.trajectory.block_calls + self.stretch * trajectory.block_calls
        step = slice(self.latents, None, self.stretch)
        return replace(
            trajectory,
            block_calls=calls,
            states=[state[:, step] for state in trajectory.states],
            layers=[layer[:, step] for layer in trajectory.layers],
        )

    # What it costs: a pass over the stretched sequence for each round, and one over the tokens.

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """The token's position and those of its thoughts, each seeing all before it."""
        first = self.stretch * (context - 1)
        each = [at(first + number) for number in range(1, self.stretch + 1)]
        return _at_the_end(each)

    def prefill_cost(self, at: CostAt, length: int, sizes: Sizes) -> Cost:
        """Rounds over all positions, or all of them once."""
        whole = at(self.stretch * length)
        if self.rounds is None or length == 1:
            steps = self.stretch * length
            return Cost(
                whole.flops,
                steps * whole.weight_bytes,
                whole.state_bytes,
                steps * whole.serial_steps,
            )
        return _at_the_end([at(length), *[whole] * self.rounds])

    def passes_per_position(self) -> int:
        """The token and its thoughts."""
        return self.stretch

    def steps_per_token(self) -> int:
        """The thoughts."""
        return self.latents

    def prompt_passes(self) -> int:
        """The token and its thoughts, in every round, and the token in the first guess."""
        return self.stretch if self.rounds is None else 1 + self.rounds * self.stretch

    def prompt_serial(self, length: int) -> int:
        """Rounds and the first guess; or every position."""
        if self.rounds is None or length == 1:
            return self.stretch * length
        return 1 + self.rounds


def _at(segments_BT: Tensor | None, time: int) -> Tensor | None:
    return None if segments_BT is None else segments_BT[:, time : time + 1]


def _copies(calls: list | None) -> list | None:
    """Copies of memories, for a pass whose traces aren't kept."""
    if calls is None or not calls:
        return calls
    rows = calls[0].document_B
    every = torch.arange(len(rows), device=rows.device)
    return [call.take(every) for call in calls]


def _at_the_end(costs: list[Cost]) -> Cost:
    """Add up what runs one after the other; memory is what the last one holds."""
    added = total(costs)
    return Cost(added.flops, added.weight_bytes, costs[-1].state_bytes, added.serial_steps)
