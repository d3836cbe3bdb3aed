"""Settings of a whole run: one root, made of dataclasses that stand beside their consumers."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch

from data.config import DataConfig
from eval.config import EvalConfig, TaskEval
from eval.fill import check_budgets
from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.listing import DEPTHS
from models.latent.listing import LATENTS
from models.mixers.listing import MIXERS
from models.mlps.listing import MLPS
from models.sizing import resolve

from .chunking import check_bytes
from .concepts_config import ConceptsConfig
from .fill import check_fill
from .logging import LoggerConfig
from .optim import OptimConfig
from .parallel_config import ParallelConfig
from .precision import PRECISIONS
from .returns import check_returns
from .spike_history import SPIKES, SpikeConfig
from .stage import StageConfig, StagePlan, set_trainable
from .thinking import check_thinking


@dataclass
class TrainerConfig:
    """How long and how a run trains.

    Attributes:
        max_steps: optimiser steps of the run.
        rows_per_step: rows of a global batch, each data.context tokens long.
        gradient_clip: largest gradient norm; 0 is no clipping.
        precision: 32, bf16 (autocast), or auto: bf16 where the hardware is fast at it.
        compile: compile each block with torch.compile.
        checkpoint_every: steps between checkpoints.
        keep_last: newest checkpoints to keep; spike=rewind also keeps those that it may go back to.
        keep_best: further ones to keep: of those that were scored, those of the smallest validation
            losses.
        validate_every: steps between validations; 0 is none.
        validation_rows: rows of the validation split to score.
        log_every: steps between update ratios, throughput and energy in metrics.csv; 0 is at each
            validation.
        stall_seconds: a process in which no step has moved on for so long ends itself, and says
            where everyone stands; longer than a validation and a save take. 0 is never.
        spike: none; skip: leave out the update of a step that spikes or is no number; or rewind: go
            back to a checkpoint before it, and leave out the batches that were read since.
        spike_factor: a gradient norm above so many times the median of those before is a spike.
        spike_loss: so is a loss so many nats above their median; null lets losses be.
        spike_window: steps of a stage that the medians are over; before so many only what is no
            number is a spike.
        rewind_steps: steps before the spike that spike=rewind does again, at least.
    """

    max_steps: int = 1000
    rows_per_step: int = 8
    gradient_clip: float = 1.0
    precision: str = "auto"
    compile: bool = False
    checkpoint_every: int = 250
    keep_last: int = 2
    keep_best: int = 0
    validate_every: int = 250
    validation_rows: int = 64
    log_every: int = 0
    stall_seconds: float = 1800.0
    spike: str = "none"
    spike_factor: float = 10.0
    spike_loss: float | None = 1.0
    spike_window: int = 100
    rewind_steps: int = 100

    @property
    def spikes(self) -> SpikeConfig:
        """What is a spike, and what becomes of it."""
        return SpikeConfig(
            *(self.spike, self.spike_factor, self.spike_loss),
            *(self.spike_window, self.rewind_steps),
        )

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        for name, least in (
            ("max_steps", 1),
            ("rows_per_step", 1),
            ("checkpoint_every", 1),
            ("keep_last", 1),
            ("keep_best", 0),
            ("validate_every", 0),
            ("validation_rows", 0),
            ("gradient_clip", 0),
            ("log_every", 0),
            ("stall_seconds", 0),
            ("spike_factor", 1),
            ("spike_window", 1),
            ("rewind_steps", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be at least {least}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={self.precision} is not known: choose {', '.join(PRECISIONS)}"
            )
        if self.spike not in SPIKES:
            raise ValueError(f"trainer.spike={self.spike} is not known: choose {', '.join(SPIKES)}")
        if self.spike_loss is not None and not self.spike_loss > 0:
            raise ValueError(
                f"trainer.spike_loss={self.spike_loss} must be above 0 nats, or null, which lets "
                "losses be"
            )


@dataclass
class StudyConfig:
    """Several runs, evaluated and drawn in one report (`python -m train.study`).

    Attributes:
        runs: overrides of each run, by a name for people.
        jobs: runs trained side by side, one thread each.
        seeds: seeds that each of them is trained with; empty is `seed` alone.
    """

    runs: dict[str, list[str]] = field(default_factory=dict)
    jobs: int = 2
    seeds: list[int] = field(default_factory=list)

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.jobs < 1:
            raise ValueError(f"study.jobs={self.jobs} must be at least 1")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"study.seeds={self.seeds} names a seed twice: name each once")


@dataclass
class RunConfig:
    """Everything that makes a run.

    Attributes:
        experiment_name: folder under `runs` that the run's folder stands in.
        runs: where experiments are kept.
        seed: keys initialisation, batch order and every draw.
        deterministic: use only deterministic kernels, and fail where there is none.
        backbone: the architecture.
        data: the corpus.
        optim: the optimiser.
        stages: the stretches of the run.
        trainer: how long and how it trains.
        parallel: where it trains.
        logger: who is told.
        eval: what is asked of the finished backbone.
        study: several runs as one.
        returns: what a search over runs is told of this one: accuracy, validation_loss, or a cost,
            such as model_flops.
        concepts: the autoencoder of a teacher's concepts.
    """

    experiment_name: str = "default"
    runs: str = "runs"
    seed: int = 0
    deterministic: bool = False
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    stages: list[StageConfig] = field(default_factory=lambda: [StageConfig()])
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    returns: list[str] = field(default_factory=list)
    concepts: ConceptsConfig = field(default_factory=ConceptsConfig)

    def tasks_of_corpus(self) -> dict[str, TaskEval]:
        """Return what to ask where nothing is said: the corpus's tasks, at their own levels."""
        return {task: TaskEval() for task in self.data.tasks}

    def validate(self) -> None:
        """Raise ValueError, naming the key, before any work, on whatever can't be run."""
        if not re.fullmatch(r"\w[\w.-]*", self.experiment_name):
            raise ValueError(
                f"experiment_name={self.experiment_name} must be a folder name of letters, digits, "
                "`.`, `_` and `-`"
            )
        if not self.runs:
            raise ValueError("runs is empty: name the folder that experiments are kept in")
        for part in (
            *(self.data, self.optim, self.trainer, self.parallel),
            *(self.logger, self.eval, self.study, self.concepts),
        ):
            part.validate()
        check_returns(self.returns, self.eval.after_training)
        self._validate_cutting()
        StagePlan(self.stages, self.trainer.max_steps)
        for index, stage in enumerate(self.stages):
            stage.validate(f"stages[{index}]")
        self._validate_kinds()
        self._validate_backbone()

    def _validate_cutting(self) -> None:
        parts = self.parallel.processes * self.parallel.accumulate
        if self.trainer.rows_per_step % parts:
            raise ValueError(
                f"trainer.rows_per_step={self.trainer.rows_per_step} can't be cut into parallel."
                f"devices={self.parallel.devices} x parallel.nodes={self.parallel.nodes} x "
                f"parallel.accumulate={self.parallel.accumulate} equal parts: choose a multiple of "
                f"{parts}"
            )

    def _validate_kinds(self) -> None:
        """A part's settings belong to its kind: the two are chosen together, by the group."""
        group = "mixer@backbone.mixers"
        parts: list[tuple[str, Any, Any]] = [
            (f"{group}.{n}", part, MIXERS) for n, part in self.backbone.mixers.items()
        ]
        backbone = self.backbone
        parts += [("mlp", backbone.mlp, MLPS), ("depth", backbone.depth, DEPTHS)]
        for name, part, listing in (*parts, ("latent", backbone.latent, LATENTS)):
            if listing.get(part.kind) is not type(part):
                key = f"backbone.{name}".replace("backbone.mixer@", "")
                raise ValueError(
                    f"{key}.kind={part.kind} can't be set by itself: choose {name}="
                    f"{'|'.join(listing)}"
                )

    def _validate_backbone(self) -> None:
        """Build the backbone where nothing is allocated."""
        for name, mixer in self.backbone.mixers.items():
            window = getattr(mixer, "window", None)
            if window is not None and window > self.data.context:
                raise ValueError(
                    f"backbone.mixers.{name}.window={window} is larger than data.context="
                    f"{self.data.context}: shrink the window, or set it to null for all"
                )
        tokenizer = self.data.build_tokenizer()
        check_bytes(self.backbone.latent, tokenizer, self.data.tokenizer.kind)
        self.eval.check_words(tokenizer)
        with torch.device("meta"):
            backbone = Backbone(resolve(self.backbone, tokenizer.vocab_size))
        for index, stage in enumerate(self.stages):
            try:
                set_trainable(backbone, stage.trainable)
            except ValueError as error:
                raise ValueError(f"stages[{index}].{error}") from None
            stage.objective.check(backbone, f"stages[{index}].objective")
        self._validate_thoughts(backbone)
        self._validate_fill(backbone)

    def _validate_thoughts(self, backbone: Backbone) -> None:
        check_thinking([stage.thinking for stage in self.stages], self.backbone.latent, self.data)
        kind = self.backbone.latent.kind
        if kind == "none":
            return
        if any(stage.objective.fill for stage in self.stages):
            raise ValueError(
                f"stages.objective.fill=true fills all in at once, and latent={kind} goes word by "
                "word: choose latent=none, or leave fill out"
            )
        self._validate_fitting(backbone)
        try:
            backbone.init_state(1, 1, "meta")
        except ValueError as error:
            raise ValueError(
                f"latent={kind} goes on from a state, and depth={self.backbone.depth.kind} keeps "
                f"none here ({error}): choose another depth, or latent=none"
            ) from None

    def _validate_fitting(self, backbone: Backbone) -> None:
        """What is inferred from a question can't be scored on it."""
        if backbone.latent.sees_ahead and self.data.loss.question:
            raise ValueError(
                f"data.loss.question={self.data.loss.question}: latent={self.backbone.latent.kind} "
                "reads a question's tokens given vectors that were fitted to all of it, so its "
                "loss there would flatter it: set data.loss.question=0"
            )

    def _validate_fill(self, backbone: Backbone) -> None:
        fills = [stage.objective.fill for stage in self.stages]
        check_fill(backbone, fills, self.data.loss.question, self.data.texts)
        if fills[-1]:
            check_budgets(self.eval, backbone)
