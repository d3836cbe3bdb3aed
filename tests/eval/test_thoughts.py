"""The looking glass: what is read out is what was generated, and the page says what it shows."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from data.split import evaluation_problems, splittable
from data.tokenizer import ByteTokenizer
from eval.budget import Budget
from eval.readout import Look, Place, Word, can_be_looked_into, look, visible
from eval.readout_page import render_looks
from eval.thoughts import HELP, main, parse
from models.depth.depth import DepthConfig
from models.depth.fixed import FixedDepthConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.feedback import FeedbackConfig
from models.latent.latent import LatentConfig
from models.latent.none import NoLatentConfig
from models.latent.ponder import PonderConfig
from models.latent.ponder2 import Ponder2Config
from models.latent.soft import SoftConfig
from tests.eval.scripted import TOKENIZER
from tests.eval.test_faithfulness import SCHEMES
from tests.eval.thinking import thinking_backbone

LOOPED = LoopedDepthConfig(loops=3)
WITHOUT = {
    "none": NoLatentConfig(),
    "ponder": PonderConfig(passes=1, scale=0.3),
    "ponder2": Ponder2Config(),
}
PASSES = {"jacobi": 3, "lotus": 3, "ponder": 2, "ponder2": 2}


def seen(
    latent: LatentConfig,
    depth: DepthConfig | None = None,
    budget: Budget | None = None,
    top: int = 3,
) -> Look:
    (problem,) = evaluation_problems("s3_swaps", 8, "test", 0, 1)
    backbone = thinking_backbone(latent, depth)
    return look(backbone, problem, 0, budget or Budget("full"), TOKENIZER, top)


@pytest.mark.parametrize("scheme", [*SCHEMES, *WITHOUT])
@pytest.mark.parametrize("depth", [FixedDepthConfig(), LOOPED], ids=["fixed", "looped"])
def test_what_is_read_out_is_what_was_written(scheme: str, depth: DepthConfig) -> None:
    """Read again at once, the likeliest word is the written one at every place: greedy decoding."""
    made = seen((SCHEMES | WITHOUT)[scheme], depth)
    assert len(made.thoughts) == (0 if scheme in WITHOUT else 3)
    assert " ".join(place.written for place in made.words) == made.text
    assert [place.says[0].text for place in made.words] == [place.written for place in made.words]
    for place in (*made.thoughts, *made.words):
        loops = 3 if depth is LOOPED and scheme != "ponder2" else 0
        assert [len(loop) for loop in place.loops] == [3] * loops
        assert len(place.passes) == PASSES.get(scheme, 0)
        for last in (*place.loops[-1:], *place.passes[-1:]):
            assert [word.text for word in last] == [word.text for word in place.says]
        shares = [word.share for word in place.says]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.0001
    for thought in made.thoughts:
        assert len(thought.nearest) == 3
        assert all(-1.001 <= word.share <= 1.001 for word in thought.nearest)
    if made.thoughts:
        assert made.thoughts[-1].says == made.words[0].says


def test_what_a_thought_carries_is_named() -> None:
    filler = seen(SCHEMES["filler"]).thoughts
    assert [thought.nearest[0].text for thought in filler] == ["."] * 3
    assert all(abs(thought.nearest[0].share - 1) < 1e-6 for thought in filler)
    # Near temperature zero a soft thought is the likeliest word.
    soft = seen(SoftConfig(thoughts=3, temperature=1e-6)).thoughts
    for before, after in pairwise(soft):
        assert before.says[0].text == after.nearest[0].text
        assert abs(after.nearest[0].share - 1) < 1e-6


def test_budgets_hold() -> None:
    made = seen(FeedbackConfig(thoughts=3), LOOPED, Budget("full", loops=2, latent_steps=1))
    assert len(made.thoughts) == 1 and len(made.words[0].loops) == 2
    stopped = seen(NoLatentConfig(), replace(LOOPED, stop="kl:0.5"), Budget())
    assert all(place.ran is not None and 1 <= place.ran <= 3 for place in stopped.words)


def test_only_steps_can_be_looked_into() -> None:
    assert not can_be_looked_into(thinking_backbone(NoLatentConfig()))
    assert can_be_looked_into(thinking_backbone(NoLatentConfig(), LOOPED))
    assert can_be_looked_into(thinking_backbone(SCHEMES["pause"]))


def test_every_token_can_be_seen() -> None:
    tokenizer = ByteTokenizer()
    assert (visible(" "), visible(""), visible("\n"), visible(" the")) == ("␣", "∅", "\\x0a", "the")
    assert all(visible(tokenizer.decode([token])).strip() for token in range(tokenizer.vocab_size))


# The page


class Tags(HTMLParser):
    """Notes which tags are open, and that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {name for name, _ in attrs} & {"src", "href"}, "the page needs no other file"
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(looks: list[Look]) -> str:
    page = render_looks(looks, "A backbone.", {"run": "folder"})
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return page


def test_the_page_shows_thoughts_words_and_verdicts() -> None:
    made = seen(FeedbackConfig(thoughts=3, jacobi=2), LOOPED)
    page = page_of([made, replace(made, correct=True, train_only=True)])
    assert "1 of 2 questions answered right" in page
    assert "s3_swaps, level 8: " in page and "level 8 (train-only: may be learned by heart)" in page
    for text in ("Pass 3", "Loop 3", "Carries", "suggestive, not proof", made.problem.question):
        assert text in page
    assert "Thoughts</h3>" not in page_of([seen(NoLatentConfig(), LOOPED)])


def test_a_page_shows_what_a_model_wrote_and_runs_nothing() -> None:
    made = seen(SCHEMES["pause"])
    bad = Word("<script>alert(1)</script>", 0.5)
    place = Place([bad], loops=[[bad]], nearest=[bad], written=bad.text)
    page = page_of([replace(made, thoughts=[place], words=[place], text=bad.text)])
    assert "<script>" not in page and "&lt;script&gt;" in page


# The verb


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_verb_writes_a_page(
    thinking_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = ask(capsys, f"run={thinking_run}", "questions=2", "top=2")
    assert (status, err) == (0, "")
    assert out == f"page: {thinking_run / 'thoughts.html'}\n"
    page = (thinking_run / "thoughts.html").read_text()
    assert "2 thoughts (feedback), 2 loops" in page and "of 2 questions" in page
    assert page.count("Thoughts</h3>") == 2 and "Loop 2" in page and "Loop 3" not in page
    levels = {int(level) for level in re.findall(r"s3_swaps, level (\d+)", page)}
    assert levels and all(splittable("s3_swaps", level) for level in levels)

    named = tmp_path / "some" / "other.html"
    more = ("level=2", "questions=1", "steps=0", "loops=3", f"out={named}", "seed=4")
    status, out, err = ask(capsys, f"run={thinking_run}", *more)
    assert (status, out, err) == (0, f"page: {named}\n", "")
    page = named.read_text()
    assert "level 2 (train-only" in page and "Thoughts</h3>" not in page and "Loop 3" in page


def test_refusals_say_what_to_do(
    thinking_run: Path, plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(thinking_run / "config.yaml", empty)
    cases = {
        (plain_run,): (1, "it has neither thoughts nor loops to look into; give a run that was"),
        (empty,): (1, "no checkpoint in checkpoints/"),
        (tmp_path / "nowhere",): (2, "is no run folder"),
        (thinking_run, "questions=0"): (2, "questions=0 must be at least 1"),
        (thinking_run, "tops=3"): (2, "tops is not a setting: choose one of run, questions"),
        (thinking_run, "top=many"): (2, "top: Value 'many'"),
        (thinking_run, "trace=long"): (2, "trace=long is not known: choose none, short"),
        (thinking_run, "task=parity"): (2, "task=parity: this run is asked s3_swaps"),
        (thinking_run, "out=page.txt"): (2, "out=page.txt: must be the name of an .html file"),
        (thinking_run, "loops=0"): (1, "loops=0 must be at least 1"),
        (thinking_run, "level=99"): (1, "level"),
        (thinking_run, "trace=none", "steps=2"): (1, "latent_steps=2 with trace=none"),
    }
    for (run, *more), (expected, line) in cases.items():
        status, out, err = ask(capsys, f"run={run}", *more)
        assert (status, out) == (expected, ""), (more, err)
        assert err.startswith("eval.thoughts: ") and line in err and err.count("\n") == 1


def test_help_names_every_switch(thinking_run: Path) -> None:
    verb, config = parse([f"run={thinking_run}"])
    assert config.tasks
    assert all(re.search(rf"\b{name}=", HELP) for name in vars(verb))


def test_nothing_is_differentiated_or_left_changed() -> None:
    backbone = thinking_backbone(SCHEMES["feedback"])
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    (problem,) = evaluation_problems("s3_swaps", 8, "test", 0, 1)
    look(backbone, problem, 0, Budget("full"), TOKENIZER, 3)
    assert all(torch.equal(weight, before[n]) for n, weight in backbone.state_dict().items())
