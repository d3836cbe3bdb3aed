"""What a question cost, counted analytically from what was written (see docs/metrics.md).

Samples share one reading of the prompt: its state is forked. So the prompt counts once, and each
sample adds the positions that it ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from eval.generate import Generation
from models.backbone import Backbone
from models.cost import Cost


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


class Meter:
    """Counts for one backbone at one loop count; costs are computed once per length."""

    def __init__(self, backbone: Backbone, loops: int | None) -> None:
        """Count for `backbone` running `loops` loops (None is its own count)."""
        self._cost = lru_cache(maxsize=None)(lambda context: backbone.cost(context, loops))
        self._prefill = lru_cache(maxsize=None)(lambda length: backbone.prefill_cost(length, loops))
        self._calls = backbone.block_calls_per_position(loops)
        self._flops_up_to = [0.0]

    def spend(self, samples: Sequence[Generation]) -> Spending:
        """Add up all samples of one question.

        The samples run side by side: they share serial steps (the longest counts), and their
        states are held at the same time (each at its end).
        """
        prompt = samples[0].prompt_tokens
        decoded = [sample.decode_steps for sample in samples]
        steps = 1 + max(decoded)
        flops = sum(self._decode_flops(prompt, sample.final_context) for sample in samples)
        held = sum(self._at(sample.final_context).state_bytes for sample in samples)
        return Spending(
            prompt_tokens=prompt,
            visible_tokens=sum(len(sample.tokens) for sample in samples),
            latent_steps=0,
            block_calls=(prompt + sum(decoded)) * self._calls,
            model_flops=self._prefill(prompt).flops + flops,
            serial_steps=round(steps * self._at(prompt).serial_steps),
            state_bytes=round(held),
        )

    def _at(self, context: int) -> Cost:
        return self._cost(context)

    def _decode_flops(self, read: int, end: int) -> float:
        """FLOPs of the positions after `read`, up to the one that sees `end` tokens."""
        known = self._flops_up_to
        for context in range(len(known), end + 1):
            known.append(known[-1] + self._at(context).flops)
        return known[end] - known[read]
