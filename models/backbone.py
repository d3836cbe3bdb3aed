"""The backbone: embed, depth over a stack of blocks, norm and head; one class for every one.

Legend: B batch, T time, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .block import Block
from .config import BackboneConfig
from .cost import Cost, linear_flops
from .depth.depth import Asked, Between, Depth, Trajectory
from .depth.draws import Draws
from .depth.stop import Stop
from .latent.costs import CostAt, Fitting, Sizes
from .latent.latent import Alter, LatentSite, Reading, Thought
from .layers import RMSNorm
from .mixer import Mixer
from .stack import make_blocks, make_more_blocks


@dataclass
class BackboneState:
    """Memory of a batch of rows: one typed mixer state per block call, in call order.

    Attributes:
        calls: the mixers' states, several sets one after the other where the latent scheme keeps
            several.
        loops: the loop count that they were made for.
        stop: the rule by which tokens stop.
        latent: what the latent scheme remembers itself; None where that is nothing.
    """

    calls: list[Any]
    loops: int
    stop: Stop = field(default_factory=Stop)
    latent: Any = None

    def take(self, rows: Tensor) -> "BackboneState":
        """Return a copy with these rows, in this order: drop finished ones, or fork by repeats."""
        latent = None if self.latent is None else self.latent.take(rows)
        calls = [state.take(rows) for state in self.calls]
        return BackboneState(calls, self.loops, self.stop, latent)

    def put(self, rows: Tensor, other: "BackboneState") -> None:
        """Overwrite these rows, in place, by the rows of another state of the same capacity."""
        if other.loops != self.loops:
            raise ValueError(
                f"a state of {other.loops} loops can't enter one of {self.loops}: use one count"
            )
        for mine, theirs in zip(self.calls, other.calls, strict=True):
            mine.put(rows, theirs)
        if self.latent is not None:
            self.latent.put(rows, other.latent)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = 0 if self.latent is None else self.latent.nbytes
        return own + sum(state.nbytes for state in self.calls)


@dataclass
class Output:
    """What a forward pass returns.

    Attributes:
        hidden_BTD: final hidden states, normalised.
        state: memory for the next call (None if none was given).
        trajectory: what really ran.
        readout: hidden states to logits; apply it to as few positions as you need.
        losses: auxiliary losses by name.
        finish: a recorded state of the trajectory to hidden states as above.
        passes: hidden states as above after each pass that a position takes, where the latent
            scheme makes several and they are recorded.
        measures: what a training step is told by name, but doesn't minimise.
    """

    hidden_BTD: Tensor
    state: BackboneState | None
    trajectory: Trajectory
    readout: Callable[[Tensor], Tensor]
    losses: dict[str, Tensor] = field(default_factory=dict)
    finish: Callable[[Tensor], Tensor] = lambda hidden_BTD: hidden_BTD
    passes: list[Tensor] = field(default_factory=list)
    measures: dict[str, Tensor] = field(default_factory=dict)


class Backbone(nn.Module):
    """A language model made of the nouns: mixers in blocks, under a depth and a latent scheme.

    Args:
        config: settings; `vocab_size` and `mlp_hidden` must be filled in (see `models.sizing`).

    Raises:
        ValueError: on impossible settings, naming the key.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.vocab_size < 1 or (config.mlp_hidden or 0) < 1:
            raise ValueError(
                f"backbone.vocab_size={config.vocab_size}, backbone.mlp_hidden={config.mlp_hidden}:"
                " both must be set to build; models.sizing.resolve derives them"
            )
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        blocks, order = make_blocks(config)
        self.depth = config.depth.build(blocks, config.dim, order)
        self.latent = config.latent.build(
            LatentSite(
                config.dim,
                config.vocab_size,
                config.num_layers,
                partial(make_more_blocks, config),
            )
        )
        self.latent.check_depth(self.depth)
        if self.latent.between is not None:
            self.depth.check_between(self.latent.between)
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.reset_embeddings()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as a constructor does: the way to initialise after `to_empty`."""
        self.depth.reset_parameters()
        self.latent.reset_parameters()
        self.norm.reset_parameters()
        self.reset_embeddings()

    def reset_embeddings(self) -> None:
        """Draw the embedding with standard deviation 0.02; an untied head starts at zero."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        if not self.config.tie_embeddings:
            nn.init.zeros_(self.head.weight)

    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        state: BackboneState | None = None,
        loops: int | None = None,
        roles_BT: Tensor | None = None,
        record: bool = False,
        draws: Draws | None = None,
        stop: Stop | None = None,
        gradient_loops: int | None = None,
        layers: bool = False,
        alter: Alter | None = None,
        labels_BTM: Tensor | None = None,
    ) -> Output:
        """Read tokens.

        Args:
            tokens_BT: token ids; at a thought's place (see roles) they mean nothing.
            segments_BT: document ids, contiguous, -1 is padding; None is one document (with a
                state: the document that the state is in).
            state: memory of earlier calls, updated in place; None scores from scratch.
            loops: loop count; None is the state's, or else the depth's default.
            roles_BT: what each token is, for latent schemes that think at certain places.
            record: keep the state after each recurrence in the trajectory, and after each pass of
                a latent scheme that makes several.
            draws: where a training step is: it draws the loop count and all else that is left to
                chance, and differentiates what the depth says; None is evaluation.
            stop: when tokens stop; None is the state's rule, or else the depth's default. In
                training none does.
            gradient_loops: last loops that a training step differentiates; None is the depth's.
            layers: keep what every block call returns in the trajectory.
            alter: changes what is read at thoughts' places, for instance to what another question's
                thoughts were; it may also just look.
            labels_BTM: what a teacher says of each token, for latent schemes that are taught.

        Raises:
            ValueError: on a loop count or rule that can't be run, or isn't the state's.
        """
        loops, stop = self._resolve(state, loops, stop, draws)
        asked = Asked(loops, record, draws, stop, self._read, gradient_loops, layers)
        own = (None, None) if state is None else (state.calls, state.latent)
        run, read = _Run(self.depth, self.norm, asked), (tokens_BT, segments_BT, roles_BT)
        learns = draws is not None and torch.is_grad_enabled()
        own_run = (self.embedding, self._blend, run, self.head)
        asks = (record, alter, draws, learns, labels_BTM)
        reading = Reading(*read, *own_run, *own, *asks)
        return self._output(self.latent(reading), state)

    def _output(self, thought: Thought, state: BackboneState | None) -> Output:
        after = thought.trajectory.finish
        return Output(
            thought.hidden_BTD,
            state,
            thought.trajectory,
            self.head,
            thought.losses,
            lambda hidden_BTD: self.norm(after(hidden_BTD)),
            thought.passes,
            thought.measures,
        )

    def _resolve(
        self, state: BackboneState | None, loops: int | None, stop: Stop | None, draws: Draws | None
    ) -> tuple[int, Stop]:
        """Return count and rule of a pass: what is asked for, the state's, or the depth's."""
        if state is None:
            stop = self._resolve_stop(stop)
        else:
            loops, stop = _of_state(state, loops, stop)
        count = self.depth.resolve_loops(loops)
        if draws is not None and loops is None:
            count = max(self.depth.counts(draws))
        return count, stop

    def _blend(self, probabilities: Tensor) -> Tensor:
        """Return the embedding that a distribution over tokens expects."""
        weight_VD = self.embedding.weight
        return (probabilities.to(weight_VD.dtype) @ weight_VD).to(weight_VD.dtype)

    def _read(self, hidden: Tensor) -> Tensor:
        """Read a state out between loops."""
        return self.head(self.norm(hidden))

    def _resolve_stop(self, stop: Stop | None) -> Stop:
        """The rule that is asked for, if it has something to go by, or the depth's own."""
        if stop is None:
            return self.depth.default_stop
        self.depth.check_stop(stop)
        return stop

    def init_state(
        self,
        batch: int,
        max_len: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        loops: int | None = None,
        stop: Stop | None = None,
    ) -> BackboneState:
        """Return empty memory for `batch` documents of up to `max_len` tokens."""
        count = self.depth.resolve_loops(loops)

        def make(positions: int, some: slice) -> list[Any]:
            return self.depth.init_state(batch, positions, device, dtype, count, some)

        calls = self.latent.init_calls(make, max_len)
        memory = self.latent.init_memory(batch, max_len, device, dtype)
        return BackboneState(calls, count, self._resolve_stop(stop), memory)

    def cost(self, context: int, loops: int | None = None) -> Cost:
        """Cost of one token that sees `context` positions, itself included, read out."""
        return self.latent.cost(self._cost_at(loops), context, self.sizes) + self._head_cost()

    def thought_cost(self, context: int, loops: int | None = None) -> Cost:
        """Cost of one thought that sees `context` positions, itself included, not read out."""
        once = self._cost_at(loops)(context) + Cost(flops=self.latent.thought_flops(self.sizes))
        return self.latent.thought_rounds() * once

    def prefill_cost(self, length: int, loops: int | None = None, readouts: int = 1) -> Cost:
        """Cost of reading `length` tokens at once, reading out `readouts` of them."""
        head = self._head_cost()
        once = Cost(flops=readouts * head.flops, weight_bytes=head.weight_bytes)
        return self.latent.prefill_cost(self._reading_at(loops), length, self.sizes) + once

    def thinking_cost(self, length: int, thoughts: int, loops: int | None = None) -> Cost:
        """Cost of a document's thoughts in training, beside one pass over `length` positions.

        That is the inputs of the thoughts, and further passes where the scheme makes those.
        """
        latent, passes = self.latent, self.latent.training_passes(thoughts, self.depth.keeps_rows)
        made = max(1, latent.thought_rounds() - 1) * thoughts * latent.thought_flops(self.sizes)
        again = self.depth.prefill_cost(length, self.depth.resolve_loops(loops))
        return (passes - 1) * again + Cost(flops=made)

    def fitting(self, length: int, loops: int | None = None) -> Fitting:
        """What inferring latent vectors from `length` tokens costs, beside reading them."""
        return self.latent.fitting(self._reading_at(loops), length, self.sizes)

    def forward_only_cost(self, length: int, loops: int, window: int | None = None) -> Cost:
        """Cost of what a training step over `length` tokens runs without differentiating it."""
        return self.depth.forward_only_cost(self.latent.inner_length(length), loops, window)

    def _cost_at(self, loops: int | None) -> CostAt:
        count = self.depth.resolve_loops(loops)
        return CostAt(lambda context: self.depth.cost(context, count), self.depth.layers_cost)

    def _reading_at(self, loops: int | None) -> CostAt:
        depth, count = self.depth, self.depth.resolve_loops(loops)
        whole = partial(depth.prefill_cost, loops=count)
        return CostAt(whole, depth.layers_prefill_cost)

    @property
    def sizes(self) -> Sizes:
        """What the cost of a thought goes by."""
        return Sizes(self.config.dim, self.config.vocab_size)

    def finish_cost(self, length: int) -> Cost:
        """Cost of following one more loop up, for `length` tokens, each read out."""
        return self.depth.finish_cost(length) + length * self._head_cost()

    @property
    def readout_flops(self) -> int:
        """FLOPs of reading one token out."""
        return linear_flops(self.config.dim, self.config.vocab_size)

    def _head_cost(self) -> Cost:
        norm = 4 * self.norm.weight.numel()
        return Cost(flops=self.readout_flops, weight_bytes=4 * self.head.weight.numel() + norm)

    def block_calls_per_position(self, loops: int | None = None) -> float:
        """Passes through blocks that one token runs, those of further positions it takes too.

        A mean where content decides.
        """
        return self.latent.block_calls(len(self.depth.calls(self.depth.resolve_loops(loops))))

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one: else it can't write word by word, but fills in."""
        return all(part.causal for part in self.modules() if isinstance(part, Mixer))

    @property
    def num_parameters(self) -> int:
        """Unique parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def compile_blocks(self) -> None:
        """Compile each block in place: a varying loop count then never recompiles the model."""
        for block in self.modules():
            if isinstance(block, Block):
                block.compile()

    def recompute_blocks(self) -> None:
        """Keep no activations of blocks for the backward pass: make them again, bit for bit."""
        for part in self.modules():
            if isinstance(part, Depth):
                part.recompute = True


@dataclass(frozen=True)
class _Run:
    """The depth over its stack as it was asked for, then the final norm."""

    depth: Depth
    norm: RMSNorm
    asked: Asked

    @property
    def keeps_rows(self) -> bool:
        """Whether this step needs its rows as they are."""
        return self.asked.draws is not None and self.depth.keeps_rows

    def __call__(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        calls: list[Any] | None = None,
        between: Between | None = None,
    ) -> Thought:
        """Run inputs of these documents, on these memories (updated in place)."""
        asked = self.asked if between is None else replace(self.asked, between=between)
        x_BTD, _, trajectory = self.depth(x_BTD, segments_BT, calls, asked)
        return Thought(self.norm(x_BTD), trajectory, trajectory.losses)

    def fresh(self, batch: int, max_len: int) -> list[Any]:
        """Return empty memories of the stack's calls."""
        weight = self.norm.weight
        return self.depth.init_state(batch, max_len, weight.device, weight.dtype, self.asked.loops)


def _of_state(state: BackboneState, loops: int | None, stop: Stop | None) -> tuple[int, Stop]:
    """Return a state's count and rule, checked when it was made; ValueError on other ones."""
    if loops not in (None, state.loops):
        raise ValueError(
            f"loops={loops} was asked for, but the state was made for {state.loops} loops: "
            f"make one with init_state(..., loops={loops})"
        )
    if stop not in (None, state.stop):
        raise ValueError(
            f"stop={stop.text} was asked for, but the state was made for {state.stop.text}: make "
            "one with init_state(..., stop=...)"
        )
    return state.loops, state.stop
