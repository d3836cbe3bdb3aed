"""What a question cost, counted analytically from what was written (see docs/metrics.md).

Samples share one reading of the prompt, and its thoughts: the state is forked. So those count once,
and each sample adds the positions that it ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from statistics import mean
from typing import Any

from eval.generate import Generation
from models.backbone import Backbone
from models.cost import Cost
from models.depth.loop_costs import ExitCosts, LoopCosts
from models.depth.stop import Stop
from models.latent.chunk import Chunk
from models.latent.chunk_costs import ChunkCosts


@dataclass(frozen=True)
class Spending:
    """The counted columns of a ledger row, by the same names."""

    prompt_tokens: int
    visible_tokens: int
    latent_steps: int
    block_calls: int
    model_flops: float
    serial_steps: int
    state_bytes: int
    mean_loops: float | None = None
    answer_loops: float | None = None
    chunks: int | None = None


@dataclass(frozen=True)
class _Ran:
    """The columns of `Spending` that go by what positions ran."""

    block_calls: int
    model_flops: float
    serial_steps: int
    state_bytes: int
    mean_loops: float | None = None
    answer_loops: float | None = None
    chunks: int | None = None


class Meter:
    """Counts for one backbone at one loop count; costs are computed once per length."""

    def __init__(self, backbone: Backbone, loops: int | None, stop: str | None = None) -> None:
        """Count for `backbone` running `loops` loops, its tokens stopping by `stop`.

        None is its own count or rule.
        """
        depth = backbone.depth
        self._latent, self._sizes = backbone.latent, backbone.sizes
        self._depth, self._loops = depth, depth.resolve_loops(loops)
        self._stop = depth.default_stop if stop is None else Stop.parse(stop)
        self._head = backbone.readout_flops
        self._chunks = None
        if isinstance(self._latent, Chunk):
            self._chunks = ChunkCosts(self._latent, depth, self._loops)
        self._cost = lru_cache(maxsize=None)(lambda context: backbone.cost(context, loops))
        self._prefill = lru_cache(maxsize=None)(lambda length: backbone.prefill_cost(length, loops))
        self._thought = lru_cache(maxsize=None)(
            lambda context: backbone.thought_cost(context, loops)
        )
        self._calls = len(depth.calls(self._loops))
        self._serial = depth.cost(1, self._loops).serial_steps
        self._fitting = lru_cache(maxsize=None)(lambda length: backbone.fitting(length, loops))
        self._flops_up_to = [0.0]

    def spend(self, samples: Sequence[Generation]) -> Spending:
        """Add up all samples of one question.

        The samples run side by side: they share serial steps (the longest counts), and their
        states are held at the same time (each at its end).
        """
        counts = self._equal if samples[0].exits is None else self._unequal
        counts = counts if self._chunks is None else partial(self._chunked, self._chunks)
        return Spending(
            prompt_tokens=samples[0].prompt_tokens,
            visible_tokens=(visible := sum(len(sample.tokens) for sample in samples)),
            latent_steps=self._latent_steps(samples, visible),
            **vars(counts(samples)),
        )

    def _held(self, samples: Sequence[Generation]) -> int:
        """Bytes of all states at their ends, where the length alone decides."""
        return round(sum(self._at(sample.final_context).state_bytes for sample in samples))

    def _equal(self, samples: Sequence[Generation]) -> _Ran:
        """Count samples whose positions all ran all loops."""
        prompt, thoughts = samples[0].prompt_tokens, samples[0].thoughts
        decoded = [sample.decode_steps for sample in samples]
        read = prompt + thoughts
        flops = sum(self._decode_flops(read, sample.final_context) for sample in samples)
        flops += sum(self._thought(context).flops for context in range(prompt + 1, read + 1))
        latent, fitting = self._latent, self._fitting(prompt)
        calls = prompt * latent.prompt_block_calls(self._calls)
        calls += self._thought_steps(samples) * self._calls
        calls += sum(decoded) * latent.block_calls(self._calls)
        serial = latent.prompt_serial(prompt) + latent.serial_thoughts(thoughts)
        calls += (latent.prefix + fitting.passes) * self._calls
        waits = (serial + latent.token_serial() * max(decoded)) * self._serial
        return _Ran(
            block_calls=round(calls),
            model_flops=self._prefill(prompt).flops + flops + fitting.cost.flops,
            serial_steps=round(waits + fitting.cost.serial_steps),
            state_bytes=self._held(samples),
            **self._looped(float(self._loops), float(self._loops)),
        )

    def _latent_steps(self, samples: Sequence[Generation], visible: int) -> int:
        """Steps of thoughts, of what every written token takes, and of vectors inferred."""
        written = self._latent.steps_per_token() * visible
        fitted = self._fitting(samples[0].prompt_tokens).latent_steps
        return self._thought_steps(samples) + written + fitted

    def _thought_steps(self, samples: Sequence[Generation]) -> int:
        """Positions of thoughts that were run, each as often as it was."""
        return samples[0].thoughts * self._latent.thought_rounds()

    def _unequal(self, samples: Sequence[Generation]) -> _Ran:
        """Count samples whose positions ran different numbers of loops."""
        prompt, thoughts = samples[0].prompt_tokens, samples[0].thoughts
        exits = [list(sample.exits or ()) for sample in samples]
        ways = [self._exits.spent(own, prompt) for own in exits]
        shared = exits[0][: prompt + thoughts]
        once = self._exits.spent(shared, prompt)
        again, decoded = len(samples) - 1, [sample.decode_steps for sample in samples]
        readouts = sum(way.readouts for way in ways) - again * once.readouts
        flops = sum(way.flops for way in ways) - again * once.flops
        ran = [n for own in exits for n in own[len(shared) :]]
        wrote = [n for own in exits for n in own[len(shared) - 1 :]]
        made = thoughts * self._latent.thought_flops(self._sizes)
        return _Ran(
            block_calls=sum(way.block_calls for way in ways) - again * once.block_calls,
            model_flops=flops + made + self._head * (1 + sum(decoded) + readouts),
            serial_steps=max(way.serial_calls for way in ways),
            state_bytes=self._held(samples),
            **self._looped(mean([*shared, *ran]), mean(wrote)),
        )

    def _chunked(self, costs: ChunkCosts, samples: Sequence[Generation]) -> _Ran:
        """Count samples by where their chunks began."""
        prompt, again = samples[0].prompt_tokens, len(samples) - 1
        begins = [sample.chunks or [] for sample in samples]
        ways = [costs.spent(own, prompt) for own in begins]
        once = costs.spent(begins[0][:prompt], prompt)
        readouts = 1 + sum(sample.decode_steps for sample in samples)
        flops = sum(way.flops for way in ways) - again * once.flops
        return _Ran(
            block_calls=sum(way.block_calls for way in ways) - again * once.block_calls,
            model_flops=flops + self._head * readouts,
            serial_steps=max(way.serial_calls for way in ways),
            state_bytes=round(sum(way.state_bytes for way in ways)),
            chunks=sum(way.chunks for way in ways) - again * once.chunks,
            **self._looped(float(self._loops), float(self._loops)),
        )

    @cached_property
    def _exits(self) -> ExitCosts:
        """What positions cost that stopped, or were left behind."""
        assert isinstance(self._depth, LoopCosts), "only looped tokens have exits"
        return ExitCosts(self._depth, self._loops, self._stop)

    def _looped(self, mean: float, answer: float) -> dict[str, Any]:
        """Loops that were run, where anything is looped."""
        return {"mean_loops": mean, "answer_loops": answer} if self._depth.adjustable else {}

    def _at(self, context: int) -> Cost:
        return self._cost(context)

    def _decode_flops(self, read: int, end: int) -> float:
        """FLOPs of the positions after `read`, up to the one that sees `end` tokens."""
        known = self._flops_up_to
        for context in range(len(known), end + 1):
            known.append(known[-1] + self._at(context).flops)
        return known[end] - known[read]
