"""One run from its settings to its folder: corpus, backbone, stages, checkpoints, records."""

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from data.atomic import write_atomically
from data.corpus import Corpus
from data.make import make_corpus
from data.module import CorpusModule
from eval.checkpoint import CORPUS_FILE, checkpoint_step
from eval.evaluate_run import evaluate_run, is_evaluated
from models.backbone import Backbone
from models.config import to_dict
from models.sizing import resolve

from .artifacts import keep_artifacts
from .callbacks import Checkpointer, ProgressBar, Recorder
from .checkpoints import (
    CheckpointSaver,
    is_finished,
    latest_checkpoint,
    refuse_other_corpus,
    remove_temporaries,
)
from .config import RunConfig
from .folder import environment, run_folder, write_json
from .gauges import Gauges
from .heartbeat import Heartbeat
from .interrupts import StopRequest, watch_signals
from .launch import is_worker
from .lock import is_first_process, locked
from .logging import alert_of, loggers_of
from .module import PretrainModule
from .precision import resolve_accelerator, resolve_precision
from .rewinds import Rewind, Rewinds, Rewound, drop_newer, with_rewinds
from .spending import training_cost
from .spikes import SpikeGuard
from .stage import StagePlan
from .strategy import ShardedStrategy, strategy_of
from .teacher import Teacher, check_taught, teacher_of, without_teacher
from .thinking import check_read_thinking, thinking_of


@dataclass
class Run:
    """A run that is ready to train.

    Attributes:
        config: its settings, with derived values filled in.
        folder: where it lives.
        corpus: what it reads.
        plan: its stages.
        teacher: what teaches its latent scheme; None where nothing does.
        rewinds: where it went back before a spike.
    """

    config: RunConfig
    folder: Path
    corpus: Corpus
    plan: StagePlan
    teacher: Teacher | None = None
    rewinds: Rewinds = field(default_factory=Rewinds)


def pretrain(config: RunConfig, plain: dict[str, Any]) -> Path:
    """Train a run to its end, evaluate it where asked to, and return its folder.

    What is finished is not done again.

    Args:
        config: checked settings.
        plain: the same as plain data, for config.yaml.

    Raises:
        ValueError: on settings that can't be run, or a checkpoint of another corpus.
        Interrupted: after SIGTERM or SIGINT, once the step is saved.
    """
    check_taught(config.backbone.latent)
    config = _derived(config)
    folder = run_folder(config)
    if not is_finished(folder, config.trainer.max_steps):
        _train(config, plain, folder)
    if config.eval.after_training and is_first_process():
        _evaluate(config, folder)
    if is_first_process():
        keep_artifacts(config.logger, folder, config.experiment_name)
    return folder


def _train(config: RunConfig, plain: dict[str, Any], folder: Path) -> None:
    run = _prepare(config, folder)
    if config.parallel.processes > 1 and not is_first_process():
        _fit_to_end(run, plain, latest_checkpoint(folder))
        return
    with locked(folder):
        remove_temporaries(folder)
        latest = latest_checkpoint(folder)
        if latest is not None:
            refuse_other_corpus(latest, run.corpus.hash)
        _describe(run, plain)
        _fit_to_end(run, plain, latest)


def _fit_to_end(run: Run, plain: dict[str, Any], latest: Path | None) -> None:
    """Train, and begin again from an earlier step as often as a spike asks for it."""
    while True:
        try:
            _fit(run, latest)
            return
        except Rewound as rewound:
            rewind = rewound.rewind
        gc.collect()  # the trainer, its module and the optimiser hold one another
        run = replace(run, rewinds=run.rewinds.after(rewind))
        latest = _gone_back(run, plain, rewind)


def _gone_back(run: Run, plain: dict[str, Any], rewind: Rewind) -> Path | None:
    """Put the folder back to the step that all processes go on from; return its checkpoint."""
    if is_first_process():
        print(f"train: {Rewound(rewind)}", file=sys.stderr)
        drop_newer(run.folder, rewind.to)
        latest = latest_checkpoint(run.folder)
        if latest is not None:
            refuse_other_corpus(latest, run.corpus.hash)
        run.rewinds.write(run.folder)
        _describe(run, plain)
    if run.config.parallel.processes > 1:
        torch.distributed.barrier()
    return latest_checkpoint(run.folder)


def _evaluate(config: RunConfig, folder: Path) -> None:
    if is_evaluated(folder, config.eval):
        return
    if config.parallel.threads:
        torch.set_num_threads(config.parallel.threads)
    evaluate_run(folder, config.eval, config.parallel.accelerator)


def _derived(config: RunConfig) -> RunConfig:
    """Fill in what follows from the machine: accelerator and precision."""
    accelerator = resolve_accelerator(config.parallel.accelerator)
    precision = resolve_precision(config.trainer.precision, accelerator)
    parallel = replace(config.parallel, accelerator=accelerator)
    parallel.validate()
    return replace(
        config,
        parallel=parallel,
        trainer=replace(config.trainer, precision=precision),
    )


def _prepare(config: RunConfig, folder: Path) -> Run:
    """Make or open the corpus, and derive the backbone's sizes from it."""
    corpus = Corpus.open(make_corpus(config.data), verify=config.data.verify)
    if config.data.texts:
        check_read_thinking([stage.thinking for stage in config.stages], corpus.split("train"))
    backbone = resolve(config.backbone, corpus.tokenizer.vocab_size)
    plan = StagePlan(config.stages, config.trainer.max_steps)
    teacher = teacher_of(backbone.latent, corpus.tokenizer.fingerprint)
    rewinds = Rewinds.read(folder)
    return Run(replace(config, backbone=backbone), folder, corpus, plan, teacher, rewinds)


def _describe(run: Run, plain: dict[str, Any]) -> None:
    """Write what the run is; what it costs is counted on meta."""
    config = run.config
    with torch.device("meta"):
        backbone = Backbone(config.backbone)
    resolved = dict(plain, backbone=to_dict(config.backbone))
    resolved["trainer"] = dict(plain["trainer"], precision=config.trainer.precision)
    resolved["corpus"] = str(run.corpus.path)
    text = yaml.safe_dump(resolved, sort_keys=False)
    write_atomically(run.folder / "config.yaml", text.encode())
    write_json(run.folder / CORPUS_FILE, run.corpus.manifest)
    write_json(
        run.folder / "environment.json",
        environment(config.trainer.precision, config.parallel.accelerator),
    )
    cost = training_cost(backbone, config, run.corpus, run.plan, run.teacher)
    write_json(run.folder / "cost.json", with_rewinds(cost, run.rewinds))


def _fit(run: Run, latest: Path | None) -> None:
    config = run.config
    if config.parallel.threads:
        torch.set_num_threads(config.parallel.threads)
    strategy = strategy_of(config.parallel)
    module = PretrainModule(
        to_dict(without_teacher(config.backbone)),
        config.optim,
        run.plan,
        config.seed,
        config.trainer.compile,
        run.corpus.hash,
        config.trainer.rows_per_step,
        run.corpus.tokenizer.pad_id,
        run.teacher,
        config.parallel.recompute == "blocks",
        strategy.shard if isinstance(strategy, ShardedStrategy) else None,
    )
    told = loggers_of(
        config.logger, run.folder, config.experiment_name, {"folder": str(run.folder)}
    )
    alone = config.parallel.processes == 1
    with watch_signals(at_once=alone) as request, _quiet(), told as loggers:
        trainer = _trainer(run, strategy, loggers, _callbacks(run, request, latest, loggers))
        _say(run, latest)
        trainer.fit(module, datamodule=_data(run))


def _callbacks(
    run: Run, request: StopRequest, latest: Path | None, loggers: list[Logger]
) -> list[L.Callback]:
    """In this order: a step is measured, recorded and checked before it is saved."""
    trainer, alert = run.config.trainer, alert_of(loggers)
    every = trainer.checkpoint_every
    back = trainer.rewind_steps if trainer.spike == "rewind" else None
    saver = CheckpointSaver(run.folder, trainer.keep_last, trainer.keep_best, back, every)
    recorder = Recorder(run.folder, trainer.validate_every, saver)
    return [
        Heartbeat(run.folder, trainer.stall_seconds, alert),
        Gauges(run.folder, trainer.log_every or trainer.validate_every, recorder),
        recorder,
        SpikeGuard(run.folder, trainer.spikes, every, recorder, run.rewinds, alert),
        Checkpointer(saver, every, request, recorder, latest),
        ProgressBar(f"{run.config.backbone.name} s{run.config.seed}"),
    ]


def _data(run: Run) -> CorpusModule:
    def place(step: int) -> tuple[int, int, int]:
        found = run.plan.place(step)
        return found.stage, found.step, found.steps

    def moved(step: int) -> int:
        found = run.plan.place(step)
        return run.rewinds.moved(found.stage, step)

    config = run.config
    thinking = thinking_of([stage.thinking for stage in config.stages], config.backbone.latent)
    return CorpusModule(
        run.corpus,
        config.trainer.rows_per_step,
        config.trainer.validation_rows,
        config.seed,
        place,
        config.trainer.max_steps,
        config.parallel.accumulate,
        lambda step: thinking[run.plan.place(step).stage],
        moved,
    )


def _trainer(
    run: Run, strategy: str | Strategy, loggers: list[Logger], callbacks: list[L.Callback]
) -> L.Trainer:
    config, trainer, parallel = run.config, run.config.trainer, run.config.parallel
    return L.Trainer(
        accelerator=parallel.accelerator,
        devices=parallel.devices,
        num_nodes=parallel.nodes,
        strategy=strategy,
        precision="bf16-mixed" if trainer.precision == "bf16" else "32-true",
        max_steps=trainer.max_steps,
        accumulate_grad_batches=parallel.accumulate,
        gradient_clip_val=trainer.gradient_clip or None,
        deterministic=config.deterministic,
        logger=loggers,
        callbacks=callbacks,
        # Not what Lightning would find: under SLURM it would take a job's one task for its world.
        plugins=[TorchElasticEnvironment() if is_worker() else LightningEnvironment()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=run.folder,
    )


def _say(run: Run, latest: Path | None) -> None:
    if not is_first_process():
        return
    start = f"from step {checkpoint_step(latest)}" if latest else "from the beginning"
    print(
        f"training {run.config.backbone.name}, seed {run.config.seed}, {start} to step "
        f"{run.config.trainer.max_steps}, {run.config.trainer.precision} bit"
        f" -> {run.folder}".replace("bf16 bit", "bf16 autocast"),
        file=sys.stderr,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's hints about choices that are ours: no workers, an endless loader."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__`.*")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield
