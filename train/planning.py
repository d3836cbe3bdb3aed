"""Put a plan together: what a run would hold, send, take and cost on a cluster that isn't there."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.draws import Draws
from models.sizing import resolve

from .config import RunConfig
from .gpus import GIB, Gpu, find_gpu
from .parallel_config import ParallelConfig
from .plan_cache import remembered
from .plan_memory import Memory, largest_rows, memory_of
from .plan_muon import MuonWork, muon_work
from .plan_settings import Layout, PlanSettings, layout_of
from .plan_shards import UnitSize, unit_sizes
from .plan_step import NotPredicted, StepAsked
from .plan_time import StepTime, Traffic, step_time, traffic_of
from .precision import resolve_precision
from .spending import DocumentSize, StepKind, kinds_of_steps, step_flops
from .stage import StagePlan

SAMPLED_STEPS = 1000
"""Steps of a run that are looked at, evenly spread, to see what they draw."""


LOOKED_ROWS = 64
"""Rows of a micro-batch up to which is looked for the largest, even where the batch has fewer."""


@dataclass(frozen=True)
class Work:
    """What is trained, and how a step of it is cut up.

    Attributes:
        asked: one GPU's micro-batch.
        parameters: of the backbone.
        accumulate: micro-batches of a step.
        world: GPUs.
        steps: of the run.
        flops: model FLOPs of a step, over all GPUs, a mean over what steps draw.
        rerun_flops: those of what a step runs a second time.
        loops: mean loops of a step.
        bf16: autocast.
    """

    asked: StepAsked
    parameters: int
    accumulate: int
    world: int
    steps: int
    flops: float
    rerun_flops: float
    loops: float
    bf16: bool

    @property
    def tokens_per_step(self) -> int:
        """Positions of a global batch."""
        return self.asked.rows * self.asked.context * self.accumulate * self.world


@dataclass(frozen=True)
class Plan:
    """What is to be expected of a run.

    Attributes:
        settings: what was asked and assumed.
        gpu: the device's figures.
        work: what is trained.
        layout: how GPUs share the work.
        memory: what a GPU holds at most; None where that can't be told.
        limit: bytes that it may hold.
        largest: most rows of a micro-batch that fit, of those that the global batch has for a GPU
            or `LOOKED_ROWS`; None where that can't be told.
        traffic: what a GPU sends in a step.
        time: of a step.
        muon: what its matrices take.
        notes: what the reader has to know of these figures.
    """

    settings: PlanSettings
    gpu: Gpu
    work: Work
    layout: Layout
    memory: Memory | None
    limit: float
    largest: int | None
    traffic: list[Traffic]
    time: StepTime
    muon: MuonWork
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where that can't be told."""
        return None if self.memory is None else self.memory.total <= self.limit

    @property
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return self.work.steps * self.time.step * self.layout.world / 3600

    @property
    def utilisation(self) -> float:
        """Model FLOP/s over the GPUs' peak."""
        peak = self.gpu.rate(self.work.bf16) * self.layout.world
        return self.work.flops / (peak * self.time.step)


def make_plan(config: RunConfig, settings: PlanSettings) -> Plan:
    """Plan a run.

    Raises:
        ValueError: on settings that can't be, naming the key.
    """
    settings.validate()
    gpu = find_gpu(settings.gpu)
    work = work_of(config, settings)
    limit = gpu.memory * settings.usable
    laid, notes = _laid_out(work, config.parallel, limit)
    largest = None
    if laid.memory is not None:
        share = config.trainer.rows_per_step // work.world
        most = max(share, work.asked.rows, LOOKED_ROWS)
        largest = largest_rows(laid.memory_at, limit, laid.memory, most)
    traffic = traffic_of(laid.units, laid.layout, work.accumulate, laid.muon)
    flops = (work.flops + work.rerun_flops) / work.world + laid.muon.flops
    time = step_time(flops, traffic, gpu, settings, work.bf16)
    notes += _notes(config, settings, work, laid)
    return Plan(
        settings,
        gpu,
        work,
        laid.layout,
        laid.memory,
        limit,
        largest,
        traffic,
        time,
        laid.muon,
        notes,
    )


@dataclass(frozen=True)
class _LaidOut:
    """A step under one strategy."""

    asked: StepAsked
    layout: Layout
    units: list[UnitSize]
    muon: MuonWork
    offload: bool
    memory: Memory | None = None

    def memory_at(self, rows: int) -> Memory:
        """Return what a GPU holds with so many rows in its micro-batch."""
        asked = replace(self.asked, rows=rows)
        return memory_of(asked, self.units, self.layout, self.muon, self.offload)


def _laid_out(work: Work, parallel: ParallelConfig, limit: float) -> tuple[_LaidOut, list[str]]:
    """Lay a step out as the run would; where that is left open and ddp doesn't fit, in shards."""
    first = _under(work, parallel)
    try:
        first = replace(first, memory=first.memory_at(work.asked.rows))
    except NotPredicted as error:
        return first, [f"memory is not predicted: {error}"]
    assert first.memory is not None
    if parallel.strategy != "auto" or parallel.processes == 1 or first.memory.total <= limit:
        return first, []
    second = _under(work, replace(parallel, strategy="fsdp2"))
    note = (
        f"strategy=ddp would hold {first.memory.total / GIB:.1f} GiB, more than the "
        f"{limit / GIB:.1f} that may be used: train with parallel.strategy=fsdp2, as planned here"
    )
    return replace(second, memory=second.memory_at(work.asked.rows)), [note]


def _under(work: Work, parallel: ParallelConfig) -> _LaidOut:
    layout, asked = layout_of(parallel), work.asked
    muon = muon_work(asked.backbone, asked.optim, layout.shards, asked.trainable)
    units = unit_sizes(asked.backbone, layout.shards)
    return _LaidOut(asked, layout, units, muon, parallel.offload)


def work_of(config: RunConfig, settings: PlanSettings) -> Work:
    """Return what is trained; raises ValueError where a batch can't be cut."""
    backbone = resolved_backbone(config, settings)
    rows, accumulate = cut(config, settings)
    built = _on_meta(backbone)
    plan = StagePlan(config.stages, config.trainer.max_steps)
    stride = max(1, config.trainer.max_steps // SAMPLED_STEPS)
    kinds = kinds_of_steps(built, replace(config, backbone=backbone), plan, stride)
    bf16 = _is_bf16(config, settings)
    asked = _asked(config, settings, backbone, built, kinds_most(kinds), rows, bf16)
    asked = replace(asked, accumulates=accumulate > 1)
    seen, context = sum(kinds.values()), config.data.context
    global_rows, document = config.trainer.rows_per_step, {DocumentSize(context): 1.0}
    flops = sum(n * step_flops(built, document, kind) for kind, n in kinds.items()) / seen
    again = 0.0
    if rows * context > asked.objective.chunk_size:
        again += context * built.readout_flops
    if config.parallel.recompute == "blocks":
        each = [n * built.depth.prefill_cost(context, k.loops).flops for k, n in kinds.items()]
        again += sum(each) / seen
    return Work(
        asked,
        built.num_parameters,
        accumulate,
        config.parallel.processes,
        config.trainer.max_steps,
        global_rows * flops,
        global_rows * again,
        sum(kind.loops * n for kind, n in kinds.items()) / seen,
        bf16,
    )


@remembered
def _on_meta(backbone: BackboneConfig) -> Backbone:
    with torch.device("meta"):
        return Backbone(backbone)


def kinds_most(kinds: Any) -> StepKind:
    """Return the kind of step that loops most."""
    return max(kinds, key=lambda kind: kind.loops)


def resolved_backbone(config: RunConfig, settings: PlanSettings) -> BackboneConfig:
    """Return the backbone with its sizes filled in, under the vocabulary that was asked for."""
    vocab = settings.vocab or config.data.build_tokenizer().vocab_size
    return resolve(replace(config.backbone, vocab_size=0), vocab)


def _asked(
    config: RunConfig,
    settings: PlanSettings,
    backbone: BackboneConfig,
    built: Backbone,
    worst: StepKind,
    rows: int,
    bf16: bool,
) -> StepAsked:
    stage = config.stages[0]
    draws = Draws(config.seed, 0, 0, config.trainer.max_steps, rows)
    counted = len(built.depth.counts(draws))
    return StepAsked(
        backbone,
        config.optim,
        stage.objective,
        draws,
        config.data.context,
        rows,
        (worst.loops,) * counted,
        bf16=bf16,
        cuda=settings.gpu != "cpu",
        flash_attn=settings.flash_attn,
        recompute=config.parallel.recompute == "blocks",
        clip=config.trainer.gradient_clip > 0,
        trainable=tuple(stage.trainable),
    )


def _is_bf16(config: RunConfig, settings: PlanSettings) -> bool:
    precision = config.trainer.precision
    if settings.gpu == "cpu":
        return resolve_precision(precision, "cpu") == "bf16"
    return precision in ("auto", "bf16")  # all that are listed are fast at it


def cut(config: RunConfig, settings: PlanSettings) -> tuple[int, int]:
    """Return rows of a GPU's micro-batch, and micro-batches of a step.

    Raises:
        ValueError: the global batch isn't so many equal parts.
    """
    total, world = config.trainer.rows_per_step, config.parallel.processes
    if not settings.rows:
        return total // (world * config.parallel.accumulate), config.parallel.accumulate
    if total % (world * settings.rows):
        raise ValueError(
            f"trainer.rows_per_step={total} can't be cut into {world} GPUs x rows={settings.rows} "
            f"equal parts: choose a multiple of {world * settings.rows}"
        )
    return settings.rows, total // (world * settings.rows)


def _notes(config: RunConfig, settings: PlanSettings, work: Work, laid: _LaidOut) -> list[str]:
    notes = []
    if laid.offload and laid.memory is not None:
        notes.append(
            f"parallel.offload: {laid.memory.offloaded / GIB:.1f} GiB of each GPU's shards lie in "
            "the CPU's memory; neither moving them nor the CPU's optimizer step is in the time"
        )
    if len(config.stages) > 1:
        notes.append("memory is the first stage's; later stages may hold more or less")
    if config.backbone.latent.kind != "none":
        notes.append(
            f"latent={config.backbone.latent.kind}: thoughts are not counted, neither in memory "
            "nor in time; rows are taken for plain text"
        )
    if settings.flash_attn:
        notes.append("attention as flash-attn; recurrent mixers as torch runs them, not as fla")
    if work.asked.loops[0] > 1:
        notes.append(
            f"memory at {work.asked.loops[0]} loops, the most that a step draws; time at "
            f"{work.loops:.2f}, the mean"
        )
    return notes


def plain(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data; bytes, seconds, FLOPs."""
    work, memory = plan.work, plan.memory
    tokens = work.tokens_per_step * work.steps
    return {
        "backbone": work.asked.backbone.name,
        "parameters": work.parameters,
        "gpu": asdict(plan.gpu),
        "layout": asdict(plan.layout),
        "context": work.asked.context,
        "rows_per_gpu": work.asked.rows,
        "accumulate": work.accumulate,
        "recompute": "blocks" if work.asked.recompute else "none",
        "precision": "bf16" if work.bf16 else "32",
        "memory": None if memory is None else {**memory.parts, "total": memory.total},
        "memory_offloaded": 0.0 if memory is None else memory.offloaded,
        "memory_limit": plan.limit,
        "fits": plan.fits,
        "largest_rows_per_gpu": plan.largest,
        "traffic": [asdict(part) for part in plan.traffic],
        "step_model_flops": work.flops,
        "step_rerun_flops": work.rerun_flops,
        "step_optimizer_flops_per_gpu": plan.muon.flops,
        "seconds": asdict(plan.time),
        "utilisation": plan.utilisation,
        "steps": work.steps,
        "tokens": tokens,
        "tokens_per_second": work.tokens_per_step / plan.time.step,
        "gpu_hours": plan.gpu_hours,
        "money": plan.gpu_hours * plan.settings.price if plan.settings.price else None,
        "assumed": asdict(plan.settings),
        "notes": plan.notes,
    }
