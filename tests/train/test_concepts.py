"""Concepts from end to end: a teacher, its autoencoder, a student that learns from them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data.batch import Batch
from data.corpus import Corpus
from eval.budget import Budget
from eval.checkpoint import checkpoints, load_trained, read_checkpoint
from eval.generate import Request, generate
from models.backbone import Backbone
from models.config import backbone_from_dict
from models.depth.draws import Draws
from models.depth.looped import LoopedDepthConfig
from models.latent.concept import ConceptConfig
from tests.train.runs import Killed, losses, metrics, small_backbone, small_run, snapshot, train
from train.concept_files import FACTS, WEIGHTS, read_facts
from train.concepts import make_concepts
from train.concepts_config import ConceptsConfig
from train.config import RunConfig
from train.folder import loss_hash, run_folder
from train.module import PretrainModule
from train.objective import Objective
from train.objective_config import ObjectiveConfig
from train.teacher import Teacher, teacher_of

SETTINGS = ConceptsConfig(num_concepts=24, active=4, steps=12, rows=4, dead_after=4)


def concepts_of(config: RunConfig) -> Path:
    config.eval.tasks = config.tasks_of_corpus()
    return make_concepts(config, asdict(config))


@pytest.fixture(scope="module")
def teaching(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> RunConfig:
    """Settings of a teacher; what it makes is kept for all tests of this file."""
    runs = tmp_path_factory.mktemp("teaching")
    backbone = small_backbone(num_layers=2)
    return small_run(runs, corpora, backbone=backbone, concepts=SETTINGS)


@pytest.fixture(scope="module")
def folder(teaching: RunConfig) -> Path:
    return concepts_of(teaching)


def latent(folder: Path | None, **changes: Any) -> ConceptConfig:
    settings: dict[str, Any] = {"num_concepts": 24, "active": 3, "num_labels": 2}
    return ConceptConfig(**{**settings, **changes}, teacher=None if folder is None else str(folder))


def student(run_at: Callable[..., RunConfig], folder: Path | None, **changes: Any) -> RunConfig:
    backbone = small_backbone(num_layers=3, latent=latent(folder, **changes))
    return run_at(backbone=backbone)


def teacher(folder: Path, corpus_path: Path, **changes: Any) -> Teacher:
    fingerprint = Corpus.open(corpus_path).tokenizer.fingerprint
    made = teacher_of(latent(folder, **changes), fingerprint)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def batch(corpus_path: Path) -> Batch:
    rows = Corpus.open(corpus_path).split("train")
    indices = np.linspace(0, rows.num_rows - 1, 4, dtype=int)
    return Batch.from_rows(rows.read(indices), rows.loss_sum(indices))


def test_the_folder_says_what_it_holds(teaching: RunConfig, folder: Path) -> None:
    facts = read_facts(folder)
    assert (facts.num_concepts, facts.active, facts.dim, facts.layer) == (24, 4, 16, 1)
    assert facts.teacher == load_trained(folder.parents[1]).identity
    assert 0 < facts.explained_variance <= 1 and 0 <= facts.dead_share < 1
    assert facts.positions > 0 and facts.train_flops > 0 and facts.teacher_train_flops > 0
    assert folder.parents[1] == run_folder(teaching), "the teacher is a run like any other"
    before = snapshot(folder.parents[1])
    assert concepts_of(teaching) == folder
    kept = {name for name in before if name != ".lock"}
    after = snapshot(folder.parents[1])
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_other_settings_have_their_own_folder(teaching: RunConfig, folder: Path) -> None:
    other = concepts_of(replace(teaching, concepts=replace(SETTINGS, active=3)))
    assert other.parent == folder.parent and other != folder
    assert read_facts(other).hash != read_facts(folder).hash


def test_a_student_learns_resumes_and_writes(
    folder: Path,
    corpora: Path,
    tmp_path: Path,
    corpus_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = small_backbone(num_layers=3, latent=latent(folder))
    made = [small_run(tmp_path / name, corpora, backbone=backbone) for name in "ab"]
    whole = train(made[0])
    original = PretrainModule.training_step
    with monkeypatch.context() as patched:

        def training_step(self: PretrainModule, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 6:
                raise Killed
            return original(self, batch, batch_idx)

        patched.setattr(PretrainModule, "training_step", training_step)
        with pytest.raises(Killed):
            train(made[1])
    resumed = train(made[1])
    assert metrics(resumed) == metrics(whole) and len(losses(whole)) == 12
    taught = [float(row["auxiliary_loss"]) for row in metrics(whole)]
    assert taught[0] == pytest.approx(0.1 * np.log(24), rel=0.4)
    assert taught[-1] < taught[0]

    content = read_checkpoint(checkpoints(whole)[-1])
    assert content["pauca"]["backbone"]["latent"]["teacher"] is None
    assert not any("teacher" in name or "encoder" in name for name in content["state_dict"])
    shutil.move(folder, folder.with_name("away"))
    try:
        trained = load_trained(whole)
    finally:
        shutil.move(folder.with_name("away"), folder)
    tokenizer = Corpus.open(corpus_path).tokenizer
    prompt = Corpus.open(corpus_path).split("train").read(np.arange(1)).tokens[0, :4].tolist()
    request = Request(prompt, 0, 4, 4)
    ((answer,),) = generate(trained.backbone, [request], Budget(), tokenizer, 1)
    assert answer.tokens


def test_the_cost_of_labels_is_the_teachers(
    run_at: Callable[..., RunConfig], folder: Path, corpus_path: Path
) -> None:
    """By hand: one pass, its part above again for the gradient, and two products of concepts."""
    config = student(run_at, folder)
    run = train(replace(config, trainer=replace(config.trainer, max_steps=2)))
    cost = json.loads((run / "cost.json").read_text())
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["backbone"]["latent"]["teacher"] == str(folder)
    own = Backbone(backbone_from_dict(written["backbone"]))
    other = load_trained(folder.parents[1]).backbone
    rows = Corpus.open(corpus_path).split("train")
    labelling = training = 0.0
    for length in rows.document_lengths.tolist():
        labelling += other.prefill_cost(length, readouts=length).flops
        labelling += other.depth.block(1).prefill_cost(length).flops
        labelling += length * (other.readout_flops + 2 * 2 * 16 * 24)
        training += 3 * own.prefill_cost(length, readouts=length).flops
    share = 2 * 4 / rows.num_rows
    assert cost["teacher_flops"] == pytest.approx(share * labelling)
    assert cost["train_flops"] == pytest.approx(share * (labelling + training))


def test_labels_by_attribution_follow_the_gradient(
    folder: Path, corpus_path: Path, batch: Batch
) -> None:
    """The gradient by activations that stand in the teacher's stream."""
    found = teacher(folder, corpus_path)
    labels = found.labels(batch)
    active_BTC = found.autoencoder.encode(found.hidden(batch)).detach().requires_grad_()

    def add(module: torch.nn.Module, given: Any, output: tuple[torch.Tensor, Any]) -> Any:
        made = found.autoencoder.decode(active_BTC)
        return output[0] + made - made.detach(), output[1]

    hook = found.backbone.depth.blocks[0].register_forward_hook(add)
    loss = Objective(found.backbone)(batch, ObjectiveConfig(), None)
    (gradient_BTC,) = torch.autograd.grad(loss, active_BTC)
    hook.remove()
    expected = (active_BTC.detach() * gradient_BTC).topk(2, dim=-1)
    real_BT = (batch.segments_BT >= 0)[..., None]
    wanted = torch.where((expected.values > 1e-9) & real_BT, expected.indices, -1)
    agree = (wanted == labels)[real_BT[..., 0]].double().mean()
    assert float(agree) > 0.99, "but for ties"
    assert bool((labels[batch.segments_BT < 0] == -1).all())
    assert bool((labels >= 0).any(dim=-1).float().mean() > 0.2)


def test_labels_by_activation_are_the_most_active(
    folder: Path, corpus_path: Path, batch: Batch
) -> None:
    found = teacher(folder, corpus_path, labels="activation")
    labels = found.labels(batch)
    active = found.autoencoder.encode(found.hidden(batch))
    real = batch.segments_BT >= 0
    assert torch.equal(labels[real][:, 0], active.argmax(dim=-1)[real])
    assert found.flops(9) < teacher(folder, corpus_path).flops(9)


def test_the_loss_does_not_depend_on_how_a_batch_is_cut(
    folder: Path, corpus_path: Path, batch: Batch
) -> None:
    vocab_size = Corpus.open(corpus_path).tokenizer.vocab_size
    config = small_backbone(
        num_layers=2, vocab_size=vocab_size, mlp_hidden=8, latent=latent(folder)
    )
    net = Objective(Backbone(config), teacher=teacher(folder, corpus_path))
    draws = Draws(0, 0, 0, 1, rows=4)
    names = ("tokens_BT", "targets_BT", "segments_BT", "roles_BT", "loss_BT")
    parts = [
        replace(batch, **{name: getattr(batch, name)[rows] for name in names})
        for rows in (slice(0, 1), slice(1, 4))
    ]
    whole = net(batch, ObjectiveConfig(), draws)
    cut = [
        net(part, ObjectiveConfig(), draws, share=share)
        for part, share in zip(parts, (0.25, 0.75), strict=True)
    ]
    torch.testing.assert_close(cut[0] + cut[1], whole)
    plain = net(batch, ObjectiveConfig(), None)
    assert net.auxiliary is None and float((whole - plain).detach()) > 0


def test_a_runs_name_depends_on_the_teacher_and_not_on_its_place(
    run_at: Callable[..., RunConfig], teaching: RunConfig, folder: Path, tmp_path: Path
) -> None:
    here = loss_hash(student(run_at, folder))
    shutil.copytree(folder.parents[1], tmp_path / "moved")
    moved = tmp_path / "moved" / "concepts" / folder.name
    assert loss_hash(student(run_at, moved)) == here
    other = concepts_of(replace(teaching, concepts=replace(SETTINGS, steps=11)))
    assert loss_hash(student(run_at, other)) != here


def refused(config: RunConfig, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        train(config)
    assert not Path(config.runs).exists()


def test_what_does_not_fit_is_refused_before_any_work(
    run_at: Callable[..., RunConfig], folder: Path, tmp_path: Path
) -> None:
    refused(student(run_at, None), r"teacher is not set: run `python -m train.concepts`")
    refused(student(run_at, tmp_path / "none"), r"teacher=.*none holds no finished concepts.json")
    refused(student(run_at, folder, num_concepts=32), "num_concepts=32, but .* has 24: set it to")
    refused(student(run_at, folder, num_labels=9), "num_labels=9, but .* no more than 4 are active")


def test_damaged_or_foreign_weights_are_refused(
    run_at: Callable[..., RunConfig], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder.parents[1], tmp_path / "copy")
    copy = tmp_path / "copy" / "concepts" / folder.name
    (copy / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"isn't the file that concepts.json beside it"):
        train(student(run_at, copy))
    shutil.copy(folder / WEIGHTS, copy / WEIGHTS)
    facts = json.loads((copy / FACTS).read_text())
    for key, reason in (("teacher", "holds other weights"), ("tokenizer", "another tokenizer")):
        (copy / FACTS).write_text(json.dumps(facts | {key: "0"}))
        with pytest.raises(ValueError, match=reason):
            train(student(run_at, copy))


def test_without_weight_there_is_no_teacher_and_no_loss(run_at: Callable[..., RunConfig]) -> None:
    config = student(run_at, None, weight=0.0)
    run = train(replace(config, trainer=replace(config.trainer, max_steps=2)))
    assert [row["auxiliary_loss"] for row in metrics(run)] == ["", ""]


def test_a_looped_teacher_is_refused(teaching: RunConfig) -> None:
    looped = small_backbone(depth=LoopedDepthConfig(loops=2))
    with pytest.raises(ValueError, match=r"depth=looped .* choose depth=fixed"):
        concepts_of(replace(teaching, backbone=looped))
