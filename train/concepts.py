"""`python -m train.concepts`: train a teacher and the autoencoder of its concepts."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from data.corpus import Corpus
from data.errors import one_line_errors
from data.make import make_corpus
from eval.checkpoint import load_trained
from models.depth.fixed import FixedDepthConfig
from models.latent.none import NoLatentConfig
from train.autoencoder import Autoencoder
from train.concept_files import concepts_folder, read_facts, save_autoencoder
from train.concept_training import (
    autoencoder_flops,
    fit_autoencoder,
    measure,
    validation_states,
)
from train.config import RunConfig
from train.interrupts import Interrupted
from train.lock import is_first_process, locked
from train.precision import resolve_accelerator
from train.pretrain import pretrain
from train.schema import check_command_line, register_schemas, to_config
from train.teacher import Teacher

HELP = """\
Train a teacher, and a sparse autoencoder that finds concepts in its hidden states; the last line
printed is `concepts: FOLDER`, from which `latent=concept` learns.

  python -m train.concepts experiment=smoke
  python -m train experiment=smoke latent=concept backbone.latent.teacher=FOLDER

The teacher is a run like any other, with latent=none: one that is finished is used as it is. What
stands on the command line makes it smaller than the student. The same command again returns at
once where all is finished; an autoencoder that was stopped half-way begins anew.

  backbone.dim=N              the teacher's width; also backbone.num_layers=N, trainer.max_steps=N
  concepts.num_concepts=N     concepts; the student's backbone.latent.num_concepts is the same
  concepts.active=N           concepts that stand for one hidden state, at most
  concepts.layer=N            layers of the teacher below what is encoded (default: half of them)
  concepts.steps=N            length of the autoencoder's training; concepts.rows=N rows a step
"""


def teacher_run(config: RunConfig, plain: dict[str, Any]) -> tuple[RunConfig, dict[str, Any]]:
    """Return the teacher's settings: the command's, without latent thought.

    Raises:
        ValueError: it can't be, or has no such layer; the line names the key.
    """
    latent = NoLatentConfig()
    backbone = dict(plain["backbone"], latent=asdict(latent))
    config = replace(config, backbone=replace(config.backbone, latent=latent))
    config.validate()
    config.concepts.resolve_layer(backbone["num_layers"])
    if not isinstance(config.backbone.depth, FixedDepthConfig):
        raise ValueError(
            f"depth={config.backbone.depth.kind} has no one layer to encode: a teacher of concepts "
            "is a stack of layers that run once each, so choose depth=fixed"
        )
    return config, dict(plain, backbone=backbone)


def make_concepts(config: RunConfig, plain: dict[str, Any]) -> Path:
    """Train what is not finished yet; return the autoencoder's folder.

    Raises:
        ValueError: on settings that can't be run.
        Interrupted: where the teacher was stopped, once its step is saved.
    """
    config, plain = teacher_run(config, plain)
    run = pretrain(config, plain)
    folder = concepts_folder(run, config.concepts, config.seed)
    if not is_first_process():
        return folder
    with locked(run):
        if not _is_finished(folder, run):
            _train_autoencoder(config, run, folder)
    return folder


def _is_finished(folder: Path, run: Path) -> bool:
    """Whether the folder holds an autoencoder of the run's weights as they are now."""
    try:
        return read_facts(folder).teacher == load_trained(run).identity
    except ValueError:
        return False


def _train_autoencoder(config: RunConfig, run: Path, folder: Path) -> None:
    if config.parallel.threads:
        torch.set_num_threads(config.parallel.threads)
    device, settings = resolve_accelerator(config.parallel.accelerator), config.concepts
    trained = load_trained(run)
    layer = settings.resolve_layer(config.backbone.num_layers)
    dim = trained.backbone.config.dim
    autoencoder = Autoencoder(dim, settings.num_concepts, settings.active).to(device)
    teacher = Teacher(trained.backbone.to(device), autoencoder, layer)
    print(f"training {settings.num_concepts} concepts -> {folder}", file=sys.stderr)
    corpus = Corpus.open(make_corpus(config.data), verify=config.data.verify)
    positions = fit_autoencoder(teacher, corpus, settings, config.seed, device)
    quality = measure(autoencoder, validation_states(teacher, corpus, settings, device))
    lengths = corpus.split("train").document_lengths.tolist()
    facts = {
        "teacher": trained.identity,
        "tokenizer": corpus.tokenizer.fingerprint,
        "layer": layer,
        "dim": dim,
        "num_concepts": settings.num_concepts,
        "active": settings.active,
        **asdict(quality),
        "positions": positions,
        "train_flops": autoencoder_flops(teacher, settings, lengths) * positions / sum(lengths),
        "teacher_train_flops": json.loads((run / "cost.json").read_text())["train_flops"],
        "settings": asdict(settings) | {"seed": config.seed},
    }
    save_autoencoder(folder, autoencoder, facts)
    print(
        f"explained variance {quality.explained_variance:.3f}, dead concepts "
        f"{quality.dead_share:.1%} on held-out documents",
        file=sys.stderr,
    )


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Train both and print `concepts: <folder>` last."""
    with one_line_errors("concepts"):
        try:
            folder = make_concepts(*to_config(composed))
        except Interrupted as stop:
            print(f"concepts: {stop}", file=sys.stderr)
            raise SystemExit(128 + stop.signum) from None
        except KeyboardInterrupt:
            print("concepts: stopped; the same command begins this step anew", file=sys.stderr)
            raise SystemExit(130) from None
    if is_first_process():
        print(f"concepts: {folder}", flush=True)


if __name__ == "__main__":
    if {"-h", "--help", "help"} & set(sys.argv[1:]):
        print(HELP, end="")
        sys.exit()
    register_schemas()
    with one_line_errors("concepts"):
        check_command_line(sys.argv[1:])
        main()
