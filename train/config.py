"""Settings of a whole run: one root, made of dataclasses that stand beside their consumers."""

from dataclasses import dataclass, field

from data.config import DataConfig
from data.tokenizer import tokenizer_from_config
from eval.config import EvalConfig, TaskEval
from models.config import BackboneConfig
from models.sizing import count_parameters, resolve

from .logging import LoggerConfig
from .optim import OptimConfig
from .precision import PRECISIONS
from .stage import StageConfig, StagePlan


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
        keep_last: checkpoints to keep.
        validate_every: steps between validations; 0 is none.
        validation_rows: rows of the validation split to score.
    """

    max_steps: int = 1000
    rows_per_step: int = 8
    gradient_clip: float = 1.0
    precision: str = "auto"
    compile: bool = False
    checkpoint_every: int = 250
    keep_last: int = 2
    validate_every: int = 250
    validation_rows: int = 64

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        for name, least in (
            ("max_steps", 1),
            ("rows_per_step", 1),
            ("checkpoint_every", 1),
            ("keep_last", 1),
            ("validate_every", 0),
            ("validation_rows", 0),
            ("gradient_clip", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be at least {least}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={self.precision} is not known: choose {', '.join(PRECISIONS)}"
            )


@dataclass
class ParallelConfig:
    """Where a run trains; nothing here changes what is learnt, but for rounding.

    Attributes:
        accelerator: auto, cpu or cuda.
        devices: processes on this machine, one device each.
        accumulate: micro-batches that make up a step.
        threads: CPU threads of each process; 0 leaves torch's choice.
    """

    accelerator: str = "auto"
    devices: int = 1
    accumulate: int = 1
    threads: int = 0

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"parallel.accelerator={self.accelerator} is not known: choose auto, cpu or cuda"
            )
        for name, least in (("devices", 1), ("accumulate", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"parallel.{name}={getattr(self, name)} must be at least {least}")


@dataclass
class StudyConfig:
    """Several runs, evaluated and drawn in one report (`python -m train.study`).

    Attributes:
        runs: overrides of each run, by a name for people.
        jobs: runs trained side by side, one thread each.
    """

    runs: dict[str, list[str]] = field(default_factory=dict)
    jobs: int = 2


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

    def tasks_of_corpus(self) -> dict[str, TaskEval]:
        """Return what to ask where nothing is said: the corpus's tasks, at their own levels."""
        return {source.task: TaskEval() for source in self.data.sources.values()}

    def validate(self) -> None:
        """Raise ValueError, naming the key, before any work, on whatever can't be run."""
        for part in (self.data, self.optim, self.trainer, self.parallel, self.logger, self.eval):
            part.validate()
        StagePlan(self.stages, self.trainer.max_steps)
        for index, stage in enumerate(self.stages):
            stage.schedule.validate(f"stages[{index}].schedule")
        for name, mixer in self.backbone.mixers.items():
            window = getattr(mixer, "window", None)
            if window is not None and window > self.data.context:
                raise ValueError(
                    f"backbone.mixers.{name}.window={window} is larger than data.context="
                    f"{self.data.context}: shrink the window, or set it to null for all"
                )
        vocab_size = tokenizer_from_config(self.data.tokenizer).vocab_size
        count_parameters(resolve(self.backbone, vocab_size))  # builds on the meta device
