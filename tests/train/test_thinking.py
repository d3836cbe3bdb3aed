"""A curriculum of thoughts: what each stage reads, minimises, forgets and costs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Tensor

from data.batch import Batch
from data.corpus import Corpus
from data.make import make_corpus
from data.module import StepRows
from data.roles import Role
from data.source_config import SourceConfig
from models.backbone import Backbone
from models.depth.depth import Trajectory
from models.depth.draws import Draws
from models.latent.distilled import DistilledConfig
from models.latent.feedback import FeedbackConfig
from models.latent.latent import LatentConfig
from models.latent.listing import LATENTS
from models.latent.none import NoLatentConfig
from models.latent.pause import PauseConfig
from models.sizing import resolve
from tests.models.cases import randomise
from tests.train.runs import losses, refusal, small_backbone, small_data, small_run, train
from train.distillation import answer_begins, distance
from train.objective import Objective
from train.objective_config import ObjectiveConfig
from train.schema import register_schemas, to_config
from train.spending import training_cost
from train.stage import StageConfig, StagePlan
from train.thinking import ThinkingConfig, check_read_thinking, check_thinking, thinking_of
from train.thought_words import words_of_thoughts

STAGES = [ThinkingConfig(0, 0), ThinkingConfig(1, 2, earlier=0.5), ThinkingConfig(None, 3)]
EVERY = 2
"""Steps of a stage."""


@pytest.fixture(scope="module")
def corpus(corpora: Path) -> Corpus:
    return Corpus.open(make_corpus(small_data(corpora)))


def reader(corpus: Corpus, latent: LatentConfig, rank: int = 0, world: int = 1) -> StepRows:
    thinking = thinking_of(STAGES, latent)

    def place(step: int) -> tuple[int, int, int]:
        return step // EVERY, step % EVERY, EVERY

    steps = range(EVERY * len(STAGES))
    rows = corpus.split("train")
    return StepRows(rows, 4, 7, place, steps, rank, world, 1, lambda step: thinking[step // EVERY])


def thoughts(batch: Batch) -> int:
    return int((batch.roles_BT == Role.THOUGHT).sum())


def documents(batch: Batch) -> int:
    """With a trace, whole in their row."""
    return int(answer_begins(batch).sum())


def test_each_stage_reads_what_it_says(corpus: Corpus) -> None:
    batches = list(reader(corpus, PauseConfig()))
    assert [thoughts(batch) for batch in batches[:2]] == [0, 0]
    for batch in batches[2:4]:
        assert 0 < thoughts(batch) < 2 * documents(batch), "some are still of the stage before"
    for batch in batches[4:]:
        assert thoughts(batch) == 3 * documents(batch)
        traced = (batch.roles_BT == Role.TRACE).sum()
        assert traced == documents(batch), "of the trace nothing but its end is left"


def test_a_scheme_without_thoughts_leaves_the_same_steps_out(corpus: Corpus) -> None:
    pairs = zip(reader(corpus, PauseConfig()), reader(corpus, NoLatentConfig()), strict=True)
    for thinking, plain in pairs:
        assert thoughts(plain) == 0
        kept = thinking.roles_BT[thinking.roles_BT != Role.THOUGHT]
        words = thinking.tokens_BT[thinking.roles_BT != Role.THOUGHT]
        assert words[kept > 0].tolist() == plain.tokens_BT[plain.roles_BT > 0].tolist()
        assert thinking.denominator == plain.denominator


@pytest.mark.parametrize("latent", [PauseConfig(), DistilledConfig()], ids=["pause", "distilled"])
def test_ranks_share_one_batch(corpus: Corpus, latent: LatentConfig) -> None:
    whole = list(reader(corpus, latent))
    parts = [list(reader(corpus, latent, rank, 2)) for rank in range(2)]
    for batch, *mine in zip(whole, *parts, strict=True):
        for name in ("tokens_BT", "targets_BT", "segments_BT", "roles_BT", "loss_BT"):
            together = torch.cat([getattr(part, name) for part in mine])
            assert torch.equal(together, getattr(batch, name)), name
        assert {float(part.denominator) for part in mine} == {float(batch.denominator)}
        assert float(batch.denominator) == pytest.approx(float(batch.loss_BT.sum()))
        if latent.needs_written:
            assert batch.written is not None
            assert documents(batch.written) == documents(batch)
            assert thoughts(batch.written) == 0


@pytest.mark.parametrize("kind", [kind for kind, made in LATENTS.items() if made.thinks])
def test_every_scheme_with_thoughts_learns_from_a_batch(corpus: Corpus, kind: str) -> None:
    """Every weight of the scheme gets a gradient, in the last stage."""
    latent = LATENTS[kind]()
    config = resolve(small_backbone(latent=latent), corpus.tokenizer.vocab_size)
    objective = Objective(Backbone(config), corpus.tokenizer.pad_id)
    randomise(objective.backbone)
    *_, batch = reader(corpus, latent)
    loss = objective(batch, ObjectiveConfig(thoughts=0.5), draws())
    loss.backward()
    for name, weight in objective.backbone.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def draws() -> Draws:
    return Draws(0, 2, 0, 1, 4)


def test_the_words_of_thoughts_are_what_they_replace(corpus: Corpus) -> None:
    pad = corpus.tokenizer.pad_id
    for batch, written in zip(
        reader(corpus, PauseConfig()), reader(corpus, NoLatentConfig()), strict=True
    ):
        del written
        words = words_of_thoughts(batch, 0.5, pad, at_own_place=False)
        own = words_of_thoughts(batch, 0.5, pad, at_own_place=True)
        roles = batch.roles_BT.flatten()
        assert (roles[own.places_N] == Role.THOUGHT).all()
        assert torch.equal(own.places_N, words.places_N + 1)
        assert torch.equal(own.tokens_N, words.tokens_N)
        assert (words.tokens_N != pad).all() and (words.weights_N == 0.5).all()
        assert len(words.places_N) == thoughts(batch)


def test_words_of_thoughts_add_their_cross_entropy(corpus: Corpus) -> None:
    config = resolve(small_backbone(latent=PauseConfig()), corpus.tokenizer.vocab_size)
    backbone = Backbone(config)
    randomise(backbone)
    objective, *_, batch = (
        Objective(backbone, corpus.tokenizer.pad_id),
        *reader(corpus, PauseConfig()),
    )
    without, with_words = (
        objective(batch, ObjectiveConfig(thoughts=weight), draws()) for weight in (0.0, 2.0)
    )
    words = words_of_thoughts(batch, 2.0, corpus.tokenizer.pad_id, at_own_place=False)
    out = backbone(batch.tokens_BT, batch.segments_BT, roles_BT=batch.roles_BT)
    logits = out.readout(out.hidden_BTD).flatten(0, 1)[words.places_N]
    added = torch.nn.functional.cross_entropy(logits, words.tokens_N, reduction="sum")
    expected = without + 2.0 * added / batch.denominator
    torch.testing.assert_close(with_words, expected)


def trajectory(*layers: Tensor) -> Trajectory:
    return Trajectory(1, 1, layers=list(layers))


def pair(rows: list[list[int]]) -> Batch:
    roles = torch.tensor(rows)
    blank = torch.zeros_like(roles)
    one = torch.tensor(1.0)
    return Batch(blank, blank, blank, roles, blank.float(), one, torch.arange(len(rows)))


def test_distance_between_student_and_teacher_by_hand() -> None:
    """Only where the answer begins counts; a row without a trace counts as nothing."""
    q, t, x, a = Role.QUESTION, Role.TRACE, Role.THOUGHT, Role.ANSWER
    student, teacher = pair([[q, x, t, a], [q, q, q, a]]), pair([[q, t, t, a], [q, q, q, a]])
    mine, theirs = torch.zeros(2, 4, 2), torch.randn(2, 4, 2)
    theirs[0, 2] = torch.tensor([1.0, 3.0])  # its standard deviation is sqrt(2)
    expected = (0.5 + 2.5) / 2 / 2**0.5
    apart = distance(trajectory(mine), trajectory(theirs), student, teacher)
    assert float(apart) == pytest.approx(expected / 2)
    same = distance(trajectory(theirs, mine), trajectory(theirs, mine), student, teacher)
    assert float(same) == 0


def test_nothing_is_learnt_through_the_teacher() -> None:
    q, t, a = Role.QUESTION, Role.TRACE, Role.ANSWER
    batch = pair([[q, t, t, a]])
    mine, theirs = (torch.randn(1, 4, 3, requires_grad=True) for _ in range(2))
    distance(trajectory(mine), trajectory(theirs), batch, batch).backward()
    assert mine.grad is not None and mine.grad[0, 2].abs().min() > 0
    assert theirs.grad is None


def test_a_stage_may_forget_the_optimisers_averages(tmp_path: Path, corpora: Path) -> None:
    def stages(fresh: bool) -> list[StageConfig]:
        return [StageConfig("one", 4), StageConfig("two", None, fresh_optimizer=fresh)]

    went_on, forgot = (
        losses(train(small_run(tmp_path / str(fresh), corpora, stages=stages(fresh))))
        for fresh in (False, True)
    )
    assert went_on[:5] == forgot[:5], "up to the border, and the first loss behind it"
    assert went_on[6:] != forgot[6:]


def test_training_costs_what_its_documents_take_up(corpora: Path, corpus: Corpus) -> None:
    """Counted over the documents of every stage as it makes them; Jacobi rounds count again."""
    found = {}
    for name, latent in {
        "pause": PauseConfig(),
        "jacobi": FeedbackConfig(jacobi=2),
        "distilled": DistilledConfig(),
    }.items():
        run = small_run(
            corpora,
            corpora,
            backbone=resolve(small_backbone(latent=latent), corpus.tokenizer.vocab_size),
            stages=[StageConfig("all", thinking=ThinkingConfig(None, 3))],
        )
        with torch.device("meta"):
            backbone = Backbone(run.backbone)
        plan = StagePlan(run.stages, run.trainer.max_steps)
        found[name] = training_cost(backbone, run, corpus, plan), backbone
    lengths = stretched(corpus)
    cost, backbone = found["pause"]
    share = 12 * 4 / corpus.split("train").num_rows
    expected = sum(backbone.prefill_cost(n, readouts=n).flops for n, _ in lengths)
    assert cost["train_flops"] == pytest.approx(3 * share * expected)
    assert cost["train_tokens"] == round(share * sum(n for n, _ in lengths))
    cost, backbone = found["jacobi"]
    again = sum(backbone.depth.prefill_cost(n, 1).flops for n, traced in lengths if traced)
    assert cost["train_flops"] == pytest.approx(3 * share * (expected + 2 * again))
    cost, backbone = found["distilled"]
    written = [int(n) for n in corpus.split("train").document_lengths]
    teacher = sum(backbone.prefill_cost(n, readouts=n).flops for n in written)
    assert cost["train_flops"] == pytest.approx(3 * share * (expected + teacher))


def stretched(corpus: Corpus) -> list[tuple[int, bool]]:
    """Length of each document with all steps replaced by three thoughts, and whether it has any."""
    rows = corpus.split("train")
    read, lengths = rows.read(np.arange(rows.num_rows)), []
    for row in range(rows.num_rows):
        for segment in range(int(read.segments[row].max()) + 1):
            roles = read.roles[row, read.segments[row] == segment]
            traced = bool((roles == Role.TRACE).any())
            steps = int((roles == Role.TRACE).sum()) - 1
            lengths.append((len(roles) + (3 - steps) * traced, traced))
    return lengths


IMPOSSIBLE = [
    (["latent=feedback", "backbone.latent.thoughts=-1"], r"latent.thoughts=-1 must be at least 0"),
    (["latent=feedback", "backbone.latent.jacobi=0"], "latent.jacobi=0 must be at least 1 round"),
    (["latent=feedback", "backbone.latent.projection=conv"], "projection=conv .* none or mlp"),
    (["latent=soft", "backbone.latent.temperature=0"], "latent.temperature=0.* must be above 0"),
    (["latent=lotus", "backbone.latent.loops=0"], "latent.loops=0 must be at least 1"),
    (["latent=ponder", "backbone.latent.passes=-1"], "latent.passes=-1 must be at least 0"),
    (["latent=ponder2", "backbone.latent.latents=0"], "latent.latents=0 must be at least 1"),
    (
        ["latent=pause", "stages.0.thinking.thoughts=2"],
        r"stages\[0\].thinking.thoughts=2, but evaluation .* backbone.latent.thoughts=6: make them",
    ),
    (
        ["latent=ponder", "depth=ouro"],
        "this latent scheme runs positions more than once, and depth.stop=.* fewer loops",
    ),
    (["latent=distilled", "backbone.latent.distill=-1"], "latent.distill=-1.* at least 0"),
    (["stages.0.thinking.steps=-1"], r"stages\[0\].thinking.steps=-1 .* or null for all steps"),
    (["stages.0.thinking.earlier=2"], r"stages\[0\].thinking.earlier=2.* between 0 and 1"),
    (
        ["stages.0.thinking.steps=9"],
        r"stages\[0\].thinking.steps=9: the traces of data.sources have 8 steps at most",
    ),
    (
        ["latent=pause", "~data.sources.written"],
        "backbone.latent.thoughts=6 come before a written trace, and no source of data.sources",
    ),
    (
        ["latent=feedback", "backbone.mixers.attn.causal=false", "stages.0.objective.fill=true"],
        "stages.objective.fill=true fills all in at once, and latent=feedback goes word by word",
    ),
    (
        ["latent=ponder", "depth=trm", "backbone.mixers.attn.causal=false"],
        "latent=ponder goes on from a state, and depth=nested keeps none",
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), IMPOSSIBLE)
def test_what_cannot_be_thought_is_refused(
    overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register_schemas()

    def act() -> None:
        with initialize_config_module(config_module="configs", version_base="1.3"):
            to_config(compose("train", ["data=smoke", *overrides]))

    line = refusal(capsys, "train", act)
    assert re.search(expected, line), line


def test_steps_are_counted_in_problems_and_in_rows(corpora: Path, corpus: Corpus) -> None:
    """Before any work where tasks make the traces; of texts, once they can be read."""
    data = replace(small_data(corpora), sources={"w": SourceConfig("s3_swaps", "full", [2])})
    with pytest.raises(ValueError, match="have 2 steps at most"):
        check_thinking([ThinkingConfig(3)], PauseConfig(), data)
    check_thinking([ThinkingConfig(2)], PauseConfig(), data)
    rows = corpus.split("train")
    check_read_thinking([ThinkingConfig(4)], rows)
    with pytest.raises(ValueError, match=r"stages\[1\].thinking.steps=5: .* have 4 steps at most"):
        check_read_thinking([ThinkingConfig(0), ThinkingConfig(5)], rows)
