"""What every latent scheme promises.

Legend: B batch, T time, D width, V vocabulary, M thoughts at hand.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..cost import Cost
from ..depth.depth import Between, Depth, Trajectory
from ..depth.draws import Draws
from ..processes import in_any_process
from .costs import CostAt, Fitting, Sizes
from .varying import refuse_varying

THOUGHT = 3
"""The role of a thought's place, as in a corpus (`data.roles.Role`)."""


@dataclass(frozen=True)
class LatentSite:
    """Where a latent scheme is to stand.

    Attributes:
        dim: model width.
        vocab_size: rows of the embedding.
        num_layers: layers of the stack.
        make_blocks: makes further blocks of the backbone's kind, by a layout such as "2*mamba2"
            (None is the backbone's own) and how many layers it is repeated to fill.
    """

    dim: int
    vocab_size: int
    num_layers: int
    make_blocks: Callable[[str | None, int], nn.ModuleList]


@dataclass
class LatentConfig(ABC):
    """Settings of one latent scheme; a subclass adds its own and names itself.

    Attributes:
        thinks: whether it has thoughts before an answer, whose number stages and budgets may set.
        needs_written: whether a training step also reads documents with all steps written out.
        words_at_own_place: whether the word that a thought stands for is predicted at its own
            place; else at the one before, from which it is made.
        reads_bytes: whether it takes tokens for bytes, so that no other vocabulary will do.
        by_content: whether what a token runs depends on what is read.
        kind: the scheme's name in the list of latents.
    """

    thinks: ClassVar[bool] = False
    needs_written: ClassVar[bool] = False
    words_at_own_place: ClassVar[bool] = False
    reads_bytes: ClassVar[bool] = False
    by_content: ClassVar[bool] = False
    kind: str = ""

    @abstractmethod
    def build(self, site: LatentSite) -> "Latent":
        """Make the module; raises ValueError on settings that are impossible at this site."""

    def slots(self, thoughts: int | None = None) -> int:
        """Return the positions that so many thoughts take (None is its own number of them)."""
        return 0


@dataclass
class Thought:
    """What a latent scheme hands back.

    Attributes:
        hidden_BTD: final hidden states, normalised, ready to be read out.
        trajectory: what really ran; of several passes, the last one's states.
        losses: auxiliary losses by name.
        passes: hidden states as above after each pass that a position takes, the last one's too,
            where there are several and they are recorded.
        measures: what a training step is told by name, but doesn't minimise; means over rows.
    """

    hidden_BTD: Tensor
    trajectory: Trajectory
    losses: dict[str, Tensor] = field(default_factory=dict)
    passes: list[Tensor] = field(default_factory=list)
    measures: dict[str, Tensor] = field(default_factory=dict)


Embed = Callable[[Tensor], Tensor]
"""`tokens_BT -> x_BTD`."""

Blend = Callable[[Tensor], Tensor]
"""`probabilities_...V -> x_...D`: the embedding that a distribution over tokens expects."""

Readout = Callable[[Tensor], Tensor]
"""`hidden_BTD -> logits_BTV`."""


Alter = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(made_MD, rows_M, numbers_M) -> inputs_MD`: what is read in place of what a scheme made.

Each thought at hand is given with its row, and its number from 0 in its run of thoughts.
"""


class Run(Protocol):
    """The depth over its stack, then the final norm.

    Attributes:
        keeps_rows: whether a training step needs its rows as they are (see `Depth`).
    """

    @property
    def keeps_rows(self) -> bool:
        """The depth's."""
        ...

    def __call__(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        calls: list[Any] | None = None,
        between: Between | None = None,
    ) -> Thought:
        """Run inputs of these documents, on these memories (updated in place).

        `between` may only be given where the depth has agreed to it (`Latent.between`).
        """
        ...

    def fresh(self, batch: int, max_len: int) -> list[Any]:
        """Return empty memories of the stack's calls."""
        ...


@dataclass(frozen=True)
class Reading:
    """One forward pass, as a latent scheme sees it.

    Attributes:
        tokens_BT: token ids; at a thought's place they mean nothing.
        segments_BT: document ids, -1 is padding; None is one document, or the state's.
        roles_BT: what each token is; None where none is a thought.
        embed: tokens to inputs.
        blend: distributions over tokens to inputs.
        run: the stack.
        readout: hidden states to logits.
        calls: memories of the stack's calls, one set after the other where a scheme keeps several;
            None scores from scratch.
        memory: the scheme's own memory, updated in place; None where it keeps none.
        record: whether the states of all loops, and passes, are asked for.
        alter: changes the inputs of thoughts before they are read; None reads them as they are.
        draws: where a training step is; None is evaluation.
        learns: whether it is a training step, which may charge losses of its own.
        labels_BTM: what a teacher says of each token, for a scheme that is taught; None is nothing.
    """

    tokens_BT: Tensor
    segments_BT: Tensor | None
    roles_BT: Tensor | None
    embed: Embed
    blend: Blend
    run: Run
    readout: Readout
    calls: list[Any] | None = None
    memory: Any = None
    record: bool = False
    alter: Alter | None = None
    draws: Draws | None = None
    learns: bool = False
    labels_BTM: Tensor | None = None

    def expected(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the embedding that the word after a hidden state is expected to have."""
        logits = self.readout(hidden)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return self.blend((logits.to(wide) / temperature).softmax(dim=-1))

    @property
    def thoughts_BT(self) -> Tensor | None:
        """Where thoughts stand; None where there is none, in training in no process.

        Ask once a pass.
        """
        if self.roles_BT is None:
            return None
        places_BT = self.roles_BT == THOUGHT
        some = in_any_process(places_BT.any()) if self.learns else bool(places_BT.any())
        return places_BT if some else None


class Memory(Protocol):
    """What a scheme remembers: rows as of a `State`."""

    def take(self, rows: Tensor) -> "Memory":
        """Return a copy with these rows, in this order."""
        ...

    def put(self, rows: Tensor, other: Any) -> None:
        """Overwrite these rows, in place."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...


MakeCalls = Callable[[int, slice], list[Any]]
"""Makes empty memories of some of the stack's calls, for so many positions."""


class Latent(nn.Module, ABC):
    """Holds the reins of a forward pass: decides what is embedded, and how often the stack runs.

    Attributes:
        copies: sets of memories of the stack that a state holds.
        stretch: positions of the stack that one token takes.
        prefix: positions of the stack that stand in front of every document.
        repeats_passes: whether a token's position is run more than once.
        fits_questions: whether training infers latent vectors from questions alone.
        sees_ahead: whether a token of a question is read with what follows it there, so that
            predicting a question's own tokens shows nothing.
        between: layers below the place in the stack where it does something itself; None is none.
        repeats_depth: whether a training step may run the depth more than once.
    """

    copies: int = 1
    stretch: int = 1
    prefix: int = 0
    repeats_passes: bool = False
    fits_questions: bool = False
    sees_ahead: bool = False
    between: int | None = None
    repeats_depth: bool = False

    def reset_parameters(self) -> None:
        """Draw all weights anew; a scheme with weights of its own overrides this."""

    @abstractmethod
    def forward(self, given: Reading) -> Thought:
        """Turn tokens into hidden states."""

    def init_memory(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> Memory | None:
        """Return what it remembers itself between calls, beside the stack's memories.

        For `batch` documents of up to `max_len` tokens.
        """
        return None

    def check_depth(self, depth: Depth) -> None:
        """Raise ValueError where it can't stand around a depth."""
        if self.repeats_passes:
            refuse_varying(depth, "this latent scheme runs positions more than once")
        if self.prefix:
            refuse_varying(depth, "this latent scheme puts positions in front of documents")

    def init_calls(self, make: MakeCalls, max_len: int) -> list[Any]:
        """Return empty memories of the stack's calls for `max_len` tokens."""
        longest = self.prefix + max_len * self.stretch
        return [call for _ in range(self.copies) for call in make(longest, slice(None))]

    # What it costs

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """Cost of one token that sees `context` tokens, its last readout left out."""
        return at(context)

    def prefill_cost(self, at: CostAt, length: int, sizes: Sizes) -> Cost:
        """Cost of reading `length` tokens at once, their last readouts left out."""
        return at(length)

    def fitting(self, at: CostAt, length: int, sizes: Sizes) -> Fitting:
        """Cost of inferring latent vectors from so many tokens; `at` is of reading many at once."""
        return Fitting()

    def steps_per_token(self) -> int:
        """Latent steps that every written token takes."""
        return 0

    def thought_rounds(self) -> int:
        """Times that each thought's position is run, in a row, when it is generated."""
        return 1

    def serial_thoughts(self, thoughts: int) -> int:
        """Positions that must wait for one another among so many generated thoughts."""
        return self.thought_rounds() * thoughts

    def thought_flops(self, sizes: Sizes) -> float:
        """FLOPs of making one thought's input, each time it is made."""
        return 0.0

    def training_passes(self, thoughts: int, keeps_rows: bool) -> int:
        """Times that a training step runs every position of a document with so many thoughts.

        `keeps_rows` is the depth's.
        """
        return 1

    def passes_per_position(self) -> int:
        """Times that one token takes all calls of the depth."""
        return 1

    def token_serial(self) -> int:
        """Runs of the depth that wait for one another while a token is decoded."""
        return self.passes_per_position()

    def prompt_passes(self) -> int:
        """Times that a token of a prompt takes all calls of the depth."""
        return self.passes_per_position()

    def prompt_serial(self, length: int) -> int:
        """Runs of the depth that wait for one another while a prompt is read."""
        return self.token_serial()

    def inner_length(self, length: int) -> int:
        """Positions that one pass of the depth has for so many tokens."""
        return length

    def block_calls(self, calls: float) -> float:
        """Passes of a position through a block that one token takes, where a depth has so many.

        A mean where content decides.
        """
        return calls * self.passes_per_position()

    def prompt_block_calls(self, calls: float) -> float:
        """The same of a token of a prompt."""
        return calls * self.prompt_passes()


def joined_in_time(parts: list[Thought]) -> Thought:
    """Put pieces of the same rows, read one after the other, together."""
    last = parts[-1].trajectory
    exits = [part.trajectory.exits_BT for part in parts]
    known = [e for e in exits if e is not None]
    trajectory = replace(
        last,
        states=_end_to_end([part.trajectory.states for part in parts]),
        exits_BT=torch.cat(known, dim=1) if len(known) == len(parts) else None,
        halts=_end_to_end([part.trajectory.halts for part in parts], missing=1.0),
        layers=_end_to_end([part.trajectory.layers for part in parts]),
    )
    hidden_BTD = torch.cat([part.hidden_BTD for part in parts], dim=1)
    passes = _end_to_end([part.passes for part in parts])
    return Thought(hidden_BTD, trajectory, mean_losses(parts), passes)


def last_of(parts: list[Thought], record: bool = False) -> Thought:
    """Return the last of several passes over the same positions; all of their calls were made.

    With `record` it keeps what each of them left.
    """
    trajectory = parts[-1].trajectory
    calls = sum(part.trajectory.block_calls for part in parts)
    made = replace(trajectory, block_calls=calls)
    passes = [part.hidden_BTD for part in parts] if record else []
    return Thought(parts[-1].hidden_BTD, made, mean_losses(parts), passes)


def mean_losses(parts: list[Thought]) -> dict[str, Tensor]:
    """Auxiliary losses of several passes, each a mean over rows already, averaged."""
    names = parts[-1].losses
    return {name: torch.stack([p.losses[name] for p in parts]).mean(dim=0) for name in names}


def _end_to_end(parts: list[list[Tensor]], missing: float | None = None) -> list[Tensor]:
    """Lay each loop's `[B, T, ...]` of all pieces end to end.

    A piece whose tokens all stopped early has fewer: what is missing is `missing`, or as the last.
    """
    most = max(map(len, parts))
    if not all(parts):
        return []
    padded = [
        part
        + [part[-1] if missing is None else torch.full_like(part[-1], missing)] * (most - len(part))
        for part in parts
    ]
    return [torch.cat(each, dim=1) for each in zip(*padded, strict=True)]
