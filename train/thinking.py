"""A curriculum of thoughts: in each stage, which written steps they replace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.config import DataConfig
from data.corpus import PackedRows
from data.document import written_steps
from data.source_config import SourceConfig
from data.split import problem_at
from data.thoughts import Rule, Thinking
from models.latent.latent import LatentConfig

PROBLEMS, ROWS = 32, 1024
"""Problems of each level, or rows of texts, whose traces are looked at."""


@dataclass
class ThinkingConfig:
    """What becomes of the written traces in a stage.

    Attributes:
        steps: first written steps of each trace that are left out (all of a shorter one); null is
            all of every trace.
        thoughts: thoughts put in their place, before what is left of the trace; null is the latent
            scheme's own number. A scheme without thoughts leaves the steps out all the same.
        earlier: share of documents that follow the rule of an earlier stage, each as often
            (Coconut's uniform_prob).
    """

    steps: int | None = 0
    thoughts: int | None = None
    earlier: float = 0.0

    def validate(self, key: str) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        for name in ("steps", "thoughts"):
            value = getattr(self, name)
            if value is not None and value < 0:
                meant = "all steps" if name == "steps" else "the latent scheme's own number"
                raise ValueError(f"{key}.{name}={value} must be at least 0, or null for {meant}")
        if not 0 <= self.earlier <= 1:
            raise ValueError(f"{key}.earlier={self.earlier} must lie between 0 and 1")

    def rule(self, latent: LatentConfig) -> Rule:
        """Return what becomes of a trace under a latent scheme."""
        return Rule(self.steps, latent.slots(self.thoughts))


def thinking_of(stages: Sequence[ThinkingConfig], latent: LatentConfig) -> list[Thinking | None]:
    """Return what becomes of traces in each stage; None where they stay as they are.

    Args:
        stages: of the run, in order.
        latent: the scheme that thinks.
    """
    rules, keep = [stage.rule(latent) for stage in stages], latent.needs_written
    return [
        Thinking(rule, tuple(rules[:index]), stage.earlier, keep)
        if rule != Rule() or stage.earlier or keep
        else None
        for index, (rule, stage) in enumerate(zip(rules, stages, strict=True))
    ]


def check_thinking(
    stages: Sequence[ThinkingConfig], latent: LatentConfig, data: DataConfig
) -> None:
    """Refuse a curriculum that the traces of a corpus can't follow.

    Raises:
        ValueError: naming the key.
    """
    traced = [s for _, s in data.named_sources() if s.trace != "none"]
    if latent.slots() and not traced:
        raise ValueError(
            f"backbone.latent.thoughts={latent.slots()} come before a written trace, and no source "
            "of data.sources has one: add a source with trace=full, or choose latent=none"
        )
    last, own = stages[-1].thoughts, latent.slots()
    if own and last not in (None, own):
        raise ValueError(
            f"stages[{len(stages) - 1}].thinking.thoughts={last}, but evaluation takes the number "
            f"that is the scheme's own, backbone.latent.thoughts={own}: make them equal, or set "
            "the last stage's to null"
        )
    asked = [(index, stage.steps) for index, stage in enumerate(stages) if stage.steps]
    if not asked:
        return
    if any(source.text is not None for source in traced):
        return  # their steps are known once they are read: `check_read_thinking`
    longest = max((longest_trace(source, data.seed) for source in traced), default=0)
    _refuse_more(asked, longest)


def check_read_thinking(stages: Sequence[ThinkingConfig], rows: PackedRows) -> None:
    """Refuse the same once a corpus with texts can be read: by its first rows.

    Raises:
        ValueError: naming the key.
    """
    asked = [(index, stage.steps) for index, stage in enumerate(stages) if stage.steps]
    if not asked:
        return
    read = rows.read(np.arange(min(rows.num_rows, ROWS)))
    size = int(read.segments.max()) + 1
    keys = np.arange(len(read.segments))[:, None] * size + read.segments
    begun = np.bincount(keys[read.begins], minlength=1)
    _refuse_more(asked, max(0, int(begun.max()) - 1))


def _refuse_more(asked: Sequence[tuple[int, int]], longest: int) -> None:
    for index, steps in asked:
        if steps > longest:
            raise ValueError(
                f"stages[{index}].thinking.steps={steps}: the traces of data.sources have "
                f"{longest} step{'s' * (longest != 1)} at most: replace no more, or null for all"
            )


def longest_trace(source: SourceConfig, seed: int) -> int:
    """Return the most steps among some traces of each level of a source of problems."""
    return max(
        len(written_steps(problem_at(source.task, level, "train", seed, index), source.trace))
        for level in source.all_levels
        for index in range(PROBLEMS)
    )
