"""Filling in: which tokens are masked, where targets go, and what is refused, by hand."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batch import Batch
from data.corpus import Corpus
from data.document import LossWeights
from data.roles import Role
from data.source_config import SourceConfig
from eval.budget import BudgetConfig
from eval.checkpoint import load_trained
from eval.config import EvalConfig, TaskEval
from eval.evaluate_run import evaluate_run
from eval.ledger import read_ledger
from models.backbone import Backbone
from models.depth.nested import NestedDepthConfig
from models.mixers.attention import AttentionConfig
from tests.train.runs import losses, small_backbone, small_data, train, with_trainer
from train.config import RunConfig
from train.fill import check_fill, fill_in
from train.objective import Objective
from train.objective_config import ObjectiveConfig
from train.optim import OptimConfig
from train.stage import StageConfig

MASK = 99
P, Q, T, A, X = Role.PAD, Role.QUESTION, Role.TRACE, Role.ANSWER, Role.TEXT
FILL = [StageConfig(objective=ObjectiveConfig(fill=True))]
WHOLE = {"attn": AttentionConfig(causal=False)}


def batch_of(
    tokens: list[int],
    roles: list[Role],
    segments: list[int],
    loss: list[float],
    targets: list[int] | None = None,
) -> Batch:
    """One row; targets are the next tokens unless they are given."""
    tokens_BT = torch.tensor([tokens])
    return Batch(
        tokens_BT,
        tokens_BT.roll(-1, dims=1) if targets is None else torch.tensor([targets]),
        torch.tensor([segments]),
        torch.tensor([[int(role) for role in roles]]),
        torch.tensor([loss]),
        torch.tensor(sum(loss)),
        torch.zeros(1, dtype=torch.long),
    )


def weighted(batch: Batch) -> dict[int, tuple[int, float]]:
    """Target and weight of each place of the first row that has a weight."""
    places = batch.loss_BT[0].nonzero()[:, 0].tolist()
    return {i: (int(batch.targets_BT[0, i]), float(batch.loss_BT[0, i])) for i in places}


def test_an_answer_is_masked_and_predicted_in_its_place() -> None:
    batch = batch_of([1, 2, 3, 4, 5], [Q, Q, A, A, A], [0] * 5, [0, 0.5, 1, 2, 0])
    filled = fill_in(batch, MASK)
    assert filled.tokens_BT.tolist() == [[1, 2, MASK, MASK, MASK]]
    assert weighted(filled) == {2: (3, 0.5), 3: (4, 1.0), 4: (5, 2.0)}


def test_packed_documents_and_padding_stay_apart() -> None:
    batch = batch_of(
        [1, 2, 3, 4, 5, 6, 7, 0, 0],
        [Q, Q, A, A, Q, A, A, P, P],
        [0, 0, 0, 0, 1, 1, 1, -1, -1],
        [0, 1, 1, 0, 1, 1, 0, 0, 0],
    )
    filled = fill_in(batch, MASK)
    assert filled.tokens_BT.tolist() == [[1, 2, MASK, MASK, 5, MASK, MASK, 0, 0]]
    assert weighted(filled) == {2: (3, 1.0), 3: (4, 1.0), 5: (6, 1.0), 6: (7, 1.0)}
    assert torch.equal(filled.segments_BT, batch.segments_BT)
    assert torch.equal(filled.roles_BT, batch.roles_BT)


def test_labels_of_a_question_stay_where_they_are() -> None:
    """A dense document: header, three symbols with their labels, the answer, the end."""
    tokens, roles = [1, 10, 11, 12, 22, 5], [Q, Q, Q, Q, A, A]
    # The label 11 is by chance the next token: it is a label all the same.
    targets = [10, 11, 21, 22, 5, 0]
    filled = fill_in(batch_of(tokens, roles, [0] * 6, [0, 0.4, 0.4, 1, 1, 0], targets), MASK)
    assert filled.tokens_BT.tolist() == [[1, 10, 11, 12, MASK, MASK]]
    assert {i: target for i, (target, _) in weighted(filled).items()} == {1: 11, 2: 21, 4: 22, 5: 5}


def test_plain_text_is_predicted_as_ever() -> None:
    batch = batch_of([9, 5, 6, 7, 9], [X] * 5, [0] * 5, [1, 1, 1, 1, 0])
    filled = fill_in(batch, MASK)
    assert torch.equal(filled.tokens_BT, batch.tokens_BT)
    assert weighted(filled) == weighted(batch)


def test_a_trace_is_masked_too() -> None:
    filled = fill_in(batch_of([1, 2, 3, 4], [Q, T, T, A], [0] * 4, [1, 1, 1, 0]), MASK)
    assert filled.tokens_BT.tolist() == [[1, MASK, MASK, MASK]]
    assert weighted(filled) == {1: (2, 1.0), 2: (3, 1.0), 3: (4, 1.0)}


def test_answers_without_weight_are_masked_without_weight() -> None:
    filled = fill_in(batch_of([1, 2, 3], [Q, A, A], [0] * 3, [0, 0, 0]), MASK)
    assert filled.tokens_BT.tolist() == [[1, MASK, MASK]]
    assert weighted(filled) == {}


def test_a_piece_that_begins_within_an_answer_loses_that_tokens_weight() -> None:
    """A document longer than a row: one piece ends in the answer, the next goes on with it."""
    pieces = batch_of([1, 2, 3, 4], [Q, A, A, A], [0, 0, 1, 1], [1, 1, 1, 0])
    filled = fill_in(pieces, MASK)
    assert filled.tokens_BT.tolist() == [[1, MASK, MASK, MASK]]
    assert weighted(filled) == {1: (2, 1.0), 3: (4, 1.0)}


def test_the_batch_given_is_left_as_it_was() -> None:
    batch = batch_of([1, 2, 3], [Q, A, A], [0] * 3, [1, 1, 0])
    held = {f.name: getattr(batch, f.name) for f in fields(batch)}
    before = {name: x.clone() for name, x in held.items() if x is not None}
    fill_in(batch, MASK)
    assert all(torch.equal(getattr(batch, name), x) for name, x in before.items())


@pytest.fixture(scope="module")
def batch(corpus_path: Path) -> Batch:
    rows = Corpus.open(corpus_path).split("train")
    indices = np.arange(min(16, rows.num_rows))
    return Batch.from_rows(rows.read(indices), rows.loss_sum(indices))


def test_of_a_corpus_the_weights_are_kept_and_targets_are_what_is_masked(batch: Batch) -> None:
    filled = fill_in(batch, MASK)
    assert filled.loss_BT.sum() == batch.loss_BT.sum() == batch.denominator
    masked = (filled.tokens_BT == MASK) & (filled.loss_BT > 0)
    assert masked.sum() > 0
    assert torch.equal(filled.targets_BT[masked], batch.tokens_BT[masked])


def objective(corpus_path: Path) -> tuple[Objective, int]:
    tokenizer = Corpus.open(corpus_path).tokenizer
    torch.manual_seed(0)
    config = small_backbone(mixers=WHOLE, vocab_size=tokenizer.vocab_size, mlp_hidden=8)
    net = Objective(Backbone(config), tokenizer.pad_id)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return net.double(), tokenizer.pad_id


def test_what_is_to_be_written_changes_no_prediction(corpus_path: Path, batch: Batch) -> None:
    """Nothing leaks: other answers in the inputs, the same targets, the same loss."""
    net, _ = objective(corpus_path)
    written = batch.roles_BT > Role.QUESTION
    changed = replace(batch, tokens_BT=torch.where(written, 7, batch.tokens_BT))

    def loss(batch: Batch, fill: bool) -> Tensor:
        return net(batch, ObjectiveConfig(fill=fill), None)

    assert torch.equal(loss(batch, True), loss(changed, True))
    assert not torch.equal(loss(batch, False), loss(changed, False))


def test_a_non_causal_backbone_must_fill_in(corpus_path: Path) -> None:
    whole, _ = objective(corpus_path)
    check_fill(whole.backbone, [True, True], 0.0)
    with pytest.raises(ValueError, match=r"stages\[1\].objective.fill=false: .*is non-causal"):
        check_fill(whole.backbone, [True, False], 0.0)
    with pytest.raises(ValueError, match=r"data.loss.question=0.5: .*nothing in it to predict"):
        check_fill(whole.backbone, [True], 0.5)
    with pytest.raises(ValueError, match=r"data.sources.book.text: .*would read a text"):
        check_fill(whole.backbone, [True], 0.0, ["book"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [StageConfig()]}, r"stages\[0\].objective.fill=false"),
        ({"eval": BudgetConfig(traces=["none", "full"])}, r"eval.budgets.traces=\[none, full\]"),
        ({"data": LossWeights(question=1.0)}, "data.loss.question=1.0"),
    ],
    ids=["no fill", "a trace", "the question"],
)
def test_a_run_that_can_not_be_is_refused_before_any_work(
    changes: dict[str, object], message: str, run_at: Callable[..., RunConfig]
) -> None:
    config = run_at(backbone=small_backbone(mixers=WHOLE), stages=FILL)
    config.eval.tasks = {"s3_swaps": TaskEval([4])}
    config.validate()
    if "eval" in changes:
        config.eval.budgets = changes["eval"]  # type: ignore[assignment]
    elif "data" in changes:
        config.data = replace(config.data, loss=changes["data"])  # type: ignore[arg-type]
    else:
        config.stages = changes["stages"]  # type: ignore[assignment]
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize("causal", [True, False])
def test_a_run_that_fills_in_learns_and_is_asked_to(
    causal: bool, run_at: Callable[..., RunConfig], corpora: Path
) -> None:
    """Its checkpoint says so, a causal one's too; its ledger counts one pass."""
    source = SourceConfig("selective_copy", "none", [1, 2])
    backbone = small_backbone(
        mixers={"attn": AttentionConfig(causal=causal)},
        depth=NestedDepthConfig(loops=2, low_loops=1),
    )
    data = small_data(corpora, name="copy", sources={"direct": source})
    optim = OptimConfig("adamw", lr=0.01)
    config = run_at(backbone=backbone, stages=FILL, data=data, optim=optim)
    run = train(with_trainer(config, max_steps=24))
    seen = losses(run)
    assert sum(seen[-3:]) / 3 < seen[0] - 1
    assert load_trained(run).fills
    asked = EvalConfig({"selective_copy": TaskEval([2])}, items=5, latency_items=1)
    row = read_ledger(evaluate_run(run, asked, "cpu")).to_dicts()[0]
    # Three tokens of a header, eight symbols, and places for two tokens and the end.
    assert row["prompt_tokens"] == 11
    assert row["block_calls"] == (11 + 3) * 4
    assert (row["serial_steps"], row["state_bytes"], row["latent_steps"]) == (4, 0, 0)
