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
from torch import Tensor, nn

from ..cost import Cost, total
from .costs import CostAt, Sizes
from .latent import Latent, LatentConfig, LatentSite, Reading, Thought, joined_in_time, last_of

CONTENTS = ("hidden", "pause")


@dataclass
class Ponder2Config(LatentConfig):
    """Settings of thoughts between tokens.

    Attributes:
        latents: thoughts after each token.
        rounds: passes over tokens and thoughts when many are read at once, the last of which is
            read out; null thinks token by token, exactly, which takes as many steps.
        content: what a thought reads: the hidden state before it, or (pause) a learned vector, the
            control, which waits for nothing.
    """

    kind: str = "ponder2"
    latents: int = 1
    rounds: int | None = None
    content: str = "hidden"

    def build(self, site: LatentSite) -> "Interleaved":
        """Make the module; ValueError on impossible settings."""
        if self.latents < 1:
            raise ValueError(
                f"latent.latents={self.latents} must be at least 1, or choose latent=none"
            )
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"latent.rounds={self.rounds} must be at least 1, or null for exact")
        if self.content not in CONTENTS:
            raise ValueError(f"latent.content={self.content} is not known: choose hidden or pause")
        if self.content == "pause":
            return PauseBetween(site.dim, self.latents)
        return Ponder2(self.latents, self.rounds)


class Interleaved(Latent):
    """Interleaves tokens with positions that write nothing; the last of them is read out."""

    repeats_passes = True

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents, self.stretch = latents, latents + 1

    def run_stretched(self, given: Reading, inputs: list[Tensor], calls: list | None) -> Thought:
        """Run tokens and what follows each, `[B, T, D]` for every place after a token."""
        segments_BP = given.segments_BT
        if segments_BP is not None:
            segments_BP = segments_BP.repeat_interleave(self.stretch, dim=1)
        return given.run(torch.stack(inputs, dim=2).flatten(1, 2), segments_BP, calls)

    def by_token(self, last: Thought, block_calls: int, record: bool) -> Thought:
        """Return what is read out of stretched states, and the calls of a token."""
        step = slice(self.latents, None, self.stretch)
        steps = [last.hidden_BTD[:, place :: self.stretch] for place in range(self.stretch)]
        trajectory = replace(
            last.trajectory,
            block_calls=block_calls,
            states=[state[:, step] for state in last.trajectory.states],
            layers=[layer[:, step] for layer in last.trajectory.layers],
        )
        return Thought(steps[-1], trajectory, last.losses, steps if record else [])

    def passes_per_position(self) -> int:
        """The token and its thoughts."""
        return self.stretch

    def steps_per_token(self) -> int:
        """The thoughts."""
        return self.latents


class PauseBetween(Interleaved):
    """A learned vector after each token: as many positions, and no content."""

    def __init__(self, dim: int, latents: int) -> None:
        super().__init__(latents)
        self.pause_D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vector as embeddings are drawn."""
        nn.init.normal_(self.pause_D, std=0.02)

    def forward(self, given: Reading) -> Thought:
        """Run all positions at once."""
        x_BTD = given.embed(given.tokens_BT)
        pauses = [self.pause_D.to(x_BTD.dtype).expand_as(x_BTD)] * self.latents
        made = self.run_stretched(given, [x_BTD, *pauses], given.calls)
        calls = self.stretch * made.trajectory.block_calls
        return self.by_token(made, calls, given.record)

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """The token's position and the pauses', which wait for nothing."""
        first = self.stretch * (context - 1)
        each = [at(first + number) for number in range(1, self.stretch + 1)]
        last = each[-1]
        flops = sum(position.flops for position in each)
        return Cost(flops, last.weight_bytes, last.state_bytes, last.serial_steps)

    def prefill_cost(self, at: CostAt, length: int, sizes: Sizes) -> Cost:
        """All positions at once."""
        return at(self.stretch * length)

    def token_serial(self) -> int:
        """One run."""
        return 1

    def prompt_serial(self, length: int) -> int:
        """One run."""
        return 1


class Ponder2(Interleaved):
    """Interleaves tokens with thoughts."""

    repeats_depth = True

    def __init__(self, latents: int, rounds: int | None) -> None:
        super().__init__(latents)
        self.rounds = rounds

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
        guess = given.run(x_BTD, given.segments_BT, _copies(given.calls))
        parts, thoughts = [], [guess.hidden_BTD] * self.latents
        for number in range(1, rounds + 1):
            calls = given.calls if number == rounds else _copies(given.calls)
            parts.append(self.run_stretched(given, [x_BTD, *thoughts], calls))
            hidden_BTPD = parts[-1].hidden_BTD.unflatten(1, (-1, self.stretch))
            thoughts = list(hidden_BTPD[:, :, :-1].unbind(dim=2))
        last = last_of(parts)
        block_calls = guess.trajectory.block_calls + self.stretch * last.trajectory.block_calls
        return self.by_token(last, block_calls, given.record)

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
