"""cost.json: what a backbone holds and what training it costs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from data.corpus import Corpus, PackedRows, RowArrays
from data.roles import Role
from data.thoughts import Rule, Thinking
from models.backbone import Backbone
from models.depth.draws import Draws

from .config import RunConfig
from .loop_losses import ExtraPass
from .objective import extra_passes
from .objective_config import READS_LOOPS
from .stage import StagePlan
from .teacher import Teacher

MOST_ROWS, ROWS_AT_ONCE = 1 << 16, 1 << 10
"""Rows that are read to see how long documents with thoughts are."""


def training_cost(
    backbone: Backbone,
    config: RunConfig,
    corpus: Corpus,
    plan: StagePlan,
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Return the facts that a report states of each backbone.

    Training FLOPs are three forward passes' (one forward, two backward) over every document read,
    each reading out its positions, at the loop counts that the run draws; loops that are not
    differentiated count once, and what an objective over loops runs and reads out counts too, and
    what infers latent vectors. Where thoughts replace steps, documents are as long as each stage
    makes them. Where bytes are chunked, chunks are counted by the configured ratio: where they will
    begin is not known before. What a teacher runs to label documents is part of it, and stated by
    itself as well; what it took to train it isn't.
    """
    rows = corpus.split("train")
    steps = kinds_of_steps(backbone, config, plan)
    share = config.trainer.rows_per_step / rows.num_rows
    asks = backbone.latent.fits_questions
    lengths = {kind.thinking: documents_of(rows, kind.thinking, asks) for kind in steps}
    flops = sum(
        share * times * step_flops(backbone, lengths[kind.thinking], kind)
        for kind, times in steps.items()
    )
    if backbone.config.latent.needs_written:
        flops += _teacher_flops(backbone, rows, share, steps)
    tokens = sum(
        share * times * sum(size.length * n for size, n in lengths[kind.thinking].items())
        for kind, times in steps.items()
    )
    labelling = 0.0 if teacher is None else share * _labelling_flops(teacher, lengths, steps)
    mean_loops = sum(kind.loops * times for kind, times in steps.items()) / sum(steps.values())
    context = config.data.context
    return {
        "backbone": config.backbone.name,
        "layout": config.backbone.layout,
        "depth": asdict(config.backbone.depth),
        "parameters": backbone.num_parameters,
        "non_embedding_parameters": backbone.num_parameters - backbone.embedding.weight.numel(),
        "mlp_hidden": backbone.config.mlp_hidden,
        "block_calls_per_position": backbone.block_calls_per_position(),
        "model_flops_per_token": backbone.cost(context).flops,
        "state_bytes": backbone.cost(context).state_bytes,
        "weight_bytes": backbone.cost(context).weight_bytes,
        "context": context,
        "train_steps": config.trainer.max_steps,
        "train_tokens": round(tokens),
        "train_flops": flops + labelling,
        **({} if teacher is None else {"teacher_flops": labelling}),
        "mean_train_loops": mean_loops,
        "peak_learning_rate": config.optim.lr,
        "seed": config.seed,
        "corpus": corpus.hash,
    }


def _labelling_flops(
    teacher: Teacher, lengths: Mapping[Rule | None, "Lengths"], steps: Mapping["StepKind", int]
) -> float:
    """What a frozen teacher runs to label every document, in as many steps."""
    return sum(
        times * count * teacher.flops(size.length)
        for kind, times in steps.items()
        for size, count in lengths[kind.thinking].items()
    )


@dataclass(frozen=True)
class StepKind:
    """What a training step runs, as far as its cost goes.

    Attributes:
        loops: loops of its own pass (the largest count, where rows have their own).
        extra: further passes.
        reads_loops: whether it reads every loop out.
        jacobian: whether it runs the last loop twice more.
        thinking: what becomes of written traces; of documents that follow a rule of an earlier
            stage the stage's own is counted.
    """

    loops: int
    extra: tuple[ExtraPass, ...] = ()
    reads_loops: bool = False
    jacobian: bool = False
    thinking: Rule | None = None


def kinds_of_steps(
    backbone: Backbone, config: RunConfig, plan: StagePlan, stride: int = 1
) -> Counter[StepKind]:
    """How many steps of the run are of each kind; of every `stride`-th, where all are too many."""
    kinds: Counter[StepKind] = Counter()
    rules = [stage.thinking.rule(config.backbone.latent) for stage in plan.stages]
    for step in range(0, config.trainer.max_steps, stride):
        place = plan.place(step)
        objective = plan.stages[place.stage].objective
        where = (place.stage, place.step, place.steps, config.trainer.rows_per_step)
        draws = Draws(config.seed, *where)
        loops = max(backbone.depth.counts(draws))
        extra = tuple(extra_passes(objective, draws, loops))
        reads = objective.resolve_over(backbone) in READS_LOOPS
        rule = rules[place.stage] if rules[place.stage] != Rule() else None
        kinds[StepKind(loops, extra, reads, objective.jacobian > 0, rule)] += 1
    return kinds


def _teacher_flops(
    backbone: Backbone, rows: PackedRows, share: float, steps: Counter[StepKind]
) -> float:
    """Training FLOPs of the passes that read documents with all steps written out."""
    documents = documents_of(rows, None)
    return sum(
        share * times * step_flops(backbone, documents, StepKind(kind.loops))
        for kind, times in steps.items()
    )


class DocumentSize(NamedTuple):
    """What a document takes up.

    Attributes:
        length: positions.
        thoughts: thoughts among them.
        question: tokens of the question among them, where they are asked for.
    """

    length: int
    thoughts: int = 0
    question: int = 0


Lengths = Mapping[DocumentSize, float]
"""How many documents are of each size."""


def documents_of(rows: PackedRows, rule: Rule | None, questions: bool = False) -> Lengths:
    """Count documents by what they take up, as a rule for thoughts makes them.

    With a rule, or to tell questions, rows are read: the first of a large split stand for all.
    """
    if rule is None and not questions:
        return Counter(DocumentSize(length) for length in rows.document_lengths.tolist())
    read = min(rows.num_rows, MOST_ROWS)
    found: Counter[DocumentSize] = Counter()
    thinking = None if rule is None else Thinking(rule)
    for start in range(0, read, ROWS_AT_ONCE):
        part = rows.read(np.arange(start, min(read, start + ROWS_AT_ONCE)))
        if thinking is not None:
            part = thinking.apply(part, "", rows.dot_id, rows.pad_id)
        found.update(_documents(part, questions))
    return {size: count * rows.num_rows / read for size, count in found.items()}


def _documents(rows: RowArrays, questions: bool) -> Iterator[DocumentSize]:
    """The size of each document."""
    most = int(rows.segments.max()) + 1
    keys = np.arange(len(rows.segments))[:, None] * most + rows.segments
    real, size = rows.segments >= 0, len(rows.segments) * most
    positions = np.bincount(keys[real], minlength=size)
    thoughts = np.bincount(keys[real & (rows.roles == Role.THOUGHT)], minlength=size)
    asked = np.bincount(keys[real & questions & (rows.roles == Role.QUESTION)], minlength=size)
    held = positions > 0
    for sizes in zip(*(x[held].tolist() for x in (positions, thoughts, asked)), strict=True):
        yield DocumentSize(*sizes)


def step_flops(backbone: Backbone, documents: Lengths, kind: StepKind) -> float:
    """Training FLOPs of every document once, all positions read out."""

    def flops(length: int, thoughts: int, question: int) -> float:
        fits = question if backbone.latent.fits_questions else length
        found = _pass_flops(backbone, length, fits, kind.loops, None)
        found += sum(_pass_flops(backbone, length, fits, e.loops, e.window) for e in kind.extra)
        if kind.reads_loops:
            found += 3 * (kind.loops - 1) * backbone.finish_cost(length).flops
        if kind.jacobian:
            found += 3 * 2 * _one_loop(backbone, length, kind.loops)
        return found + 3 * backbone.thinking_cost(length, thoughts, kind.loops).flops

    return sum(count * flops(*size) for size, count in documents.items())


def _pass_flops(
    backbone: Backbone, length: int, fits: int, loops: int, window: int | None
) -> float:
    """One pass: what is differentiated three times, what isn't once.

    `fits` is how many tokens latent vectors are inferred from before it. That counts as if all
    loops were differentiated.
    """
    forward = backbone.prefill_cost(length, loops, readouts=length).flops
    once = 2 * backbone.forward_only_cost(length, loops, window).flops
    return 3 * forward - once + backbone.fitting(fits, loops).cost.flops


def _one_loop(backbone: Backbone, length: int, loops: int) -> float:
    """One loop more."""
    more, fewer = (backbone.depth.prefill_cost(length, n).flops for n in (loops + 1, loops))
    return more - fewer
