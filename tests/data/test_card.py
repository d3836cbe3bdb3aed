"""The card says what is in a corpus, and draws it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.card import MARKDOWN, PAGE, main, write_card
from data.card_facts import documents_of, evaluation_index, facts_of
from data.config import DataConfig
from data.corpus import Corpus
from data.document import prompt_text
from data.make import make_corpus
from data.source_config import SourceConfig
from data.split import evaluation_problems
from data.texts.config import TextConfig
from data.tokenizer import TokenizerConfig

STORY = "Once there was a king who counted his sheep before the sun went down, one by one."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("card")
    lines = [f"{STORY} It was day {day}." for day in range(60)]
    (folder / "story.txt").write_text("\n".join([*lines, lines[0]]))
    settings: dict[str, Any] = {
        "root": str(folder),
        "context": 128,
        "num_documents": 300,
        "num_validation_documents": 20,
        "workers": 1,
        "tokenizer": TokenizerConfig("bytes"),
        "sources": {
            "words": SourceConfig("s3_swaps", "full", [4, 6]),
            "story": SourceConfig(
                text=TextConfig(
                    files=[str(folder / "story.txt")], document="line", licence="CC0-1.0"
                )
            ),
        },
    }
    return Corpus.open(make_corpus(DataConfig(**settings), progress=False))


def test_both_forms_say_what_is_there(corpus: Corpus) -> None:
    page = write_card(corpus.path).read_text()
    text = (corpus.path / MARKDOWN).read_text()
    for said in ("CC0-1.0", "s3_swaps, trace full, levels 4, 6", "61 records read", "1 copies"):
        assert said in text and said in page
    assert STORY[:40] in text and STORY[:40] in page
    assert page.count("<svg") == 2 and page.endswith("</body></html>\n")
    assert "src=" not in page and 'href="http' not in page


def test_every_document_is_looked_at_once(corpus: Corpus) -> None:
    rows = corpus.split("train")
    found = [*documents_of(corpus, 0)]
    assert len(found) == rows.document_lengths.size
    assert sum(document.length for document in found) == rows.num_tokens
    assert {d.source for d in found} == {"words", "story"}
    assert all(d.answer.startswith("e") for d in found if d.source == "words")
    few = [*documents_of(corpus, 40)]
    assert 0 < len(few) < len(found) / 2


def test_training_documents_are_no_evaluation_questions(corpus: Corpus) -> None:
    facts = facts_of(corpus, 0)
    assert facts.overlaps.found == {} and "s3_swaps" in facts.compared_with
    assert sum(facts.sources["words"].levels.values()) == len(facts.sources["words"].lengths)


def test_a_question_that_leaked_would_be_found(corpus: Corpus) -> None:
    _, prompts = evaluation_index(corpus)
    problem = evaluation_problems("s3_swaps", 8, "test", 0, 3)[2]
    assert prompts[prompt_text(problem, "full")] == "s3_swaps"


def test_the_verb_refuses_what_it_does_not_know(corpus: Corpus, capsys: Any) -> None:
    main([f"corpus={corpus.path}", "limit=10"])
    assert capsys.readouterr().out.strip() == f"card: {corpus.path / PAGE}"
    for arguments, message in (
        ([], "corpus=FOLDER is missing"),
        (["corpus=x", "limit=all"], "limit=all is not possible"),
        (["folder=x"], "folder is not a setting"),
    ):
        with pytest.raises(ValueError, match=message):
            main(arguments)


def test_cut_documents_share_their_bytes(corpus: Corpus, tmp_path: Path) -> None:
    """All of a text's bytes are in the table, however its documents were cut."""
    path = tmp_path / "long.txt"
    path.write_text("\n".join(f"{STORY * 5} {i}" for i in range(40)))
    text = TextConfig(files=[str(path)], document="line")
    config = DataConfig(
        root=str(tmp_path),
        context=64,
        num_documents=30,
        num_validation_documents=0,
        workers=1,
        tokenizer=TokenizerConfig("bytes"),
        sources={"long": SourceConfig(text=text, max_epochs=1)},
    )
    made = Corpus.open(make_corpus(config, progress=False))
    counts = made.manifest["splits"]["train"]
    rows = made.split("train")
    table = rows.read(np.arange(rows.num_rows)).document_table
    assert table["bytes"].sum() == counts["sources"]["long"]["bytes"]
    assert counts["tokens"] == counts["sources"]["long"]["bytes"] + 2 * 30
    assert counts["split_documents"] == 30
