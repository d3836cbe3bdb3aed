"""Bad input of every kind is counted, shown with its place, and refused or skipped."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.texts import readers
from data.texts.config import TextConfig
from data.texts.normalise import records_of
from data.texts.readers import Raw, read_file
from data.texts.records import Bad, Record
from data.texts.staging import StagedText, stage

GOOD = {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def parquet(folder: Path, **columns: list[Any]) -> bytes:
    pl.DataFrame(columns).write_parquet(folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


def staged(folder: Path, **settings: Any) -> StagedText:
    return stage(TextConfig(**settings), folder / "corpora", "data.sources.a.text", progress=False)


@dataclass(frozen=True)
class Case:
    """A file with one fault among good records: its name, content, kind of fault and place."""

    name: str
    content: Callable[[Path], bytes]
    kind: str
    place: str
    shows: str = ""
    recipe: str | None = None


X = lines({"text": "x"})
CUT_OFF = gzip.compress(lines(*[{"text": f"{i}" * 99} for i in range(999)]))[:-900]
CASES = [
    Case("a.jsonl", lambda _: X + lines({"body": 1}), "no field 'text'", ":2", "body"),
    Case("a.jsonl", lambda _: X + lines({"text": ["y"]}), "no text but list", ":2", "y"),
    Case("a.jsonl", lambda _: X + lines({"text": None}), "no text but None", ":2"),
    Case("a.jsonl", lambda _: X + lines({"text": " \n"}), "is empty", ":2"),
    Case("a.jsonl", lambda _: X + lines({"text": "\ud800"}), "half a character", ":2"),
    Case("a.jsonl", lambda _: X + lines([1]), "no JSON object", ":2", "[1]"),
    Case("a.jsonl", lambda _: X + b'{"text": "y', "not JSON", ":2", "interrupted"),
    Case("a.jsonl", lambda _: X + b'{"text":"y\xff"}\n', "invalid UTF-8", ":2", "byte 10"),
    Case("a.json", lambda _: X + b"[" * 9**5, "not JSON", ":2", "[[["),
    Case("a.txt", lambda _: b"x\n\nb\xe9d\ny\n\nz\n", "invalid UTF-8", ":3", "byte 1"),
    Case("a.jsonl.gz", lambda _: CUT_OFF, "cut off or damaged", ".jsonl.gz:", "ended before"),
    Case("a.parquet", lambda at: parquet(at, text=["x", None]), "no text but None", "row 1"),
    *(
        Case("a.jsonl", lambda _, bad=bad: lines(GOOD, bad), kind, ":2", shows, "gsm8k")
        for bad, kind, shows in (
            ({"question": "?"}, "no field 'answer'", "?"),
            ({**GOOD, "answer": "4"}, "no `####`", "4"),
            ({**GOOD, "answer": "so\n#### four"}, "its own verifier rejects", "four"),
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.kind}")
def test_a_fault_is_refused_with_its_place(tmp_path: Path, case: Case) -> None:
    (tmp_path / case.name).write_bytes(case.content(tmp_path))
    with pytest.raises(ValueError) as caught:
        staged(tmp_path, files=[str(tmp_path / case.name)], recipe=case.recipe)
    message = str(caught.value)
    assert message.startswith("data.sources.a.text: ") and "\n" not in message
    assert case.kind in message and case.place in message and case.shows in message
    assert "data.sources.a.text.on_bad=skip" in message


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.kind}")
def test_a_fault_is_skipped_and_counted(tmp_path: Path, case: Case) -> None:
    (tmp_path / case.name).write_bytes(case.content(tmp_path))
    file = str(tmp_path / case.name)
    facts = staged(tmp_path, files=[file], recipe=case.recipe, on_bad="skip").facts
    [(kind, entry)] = facts["bad"].items()
    assert case.kind in kind and entry["count"] == 1
    assert case.place in entry["examples"][0]["place"]
    assert case.shows in entry["examples"][0]["begins"]
    assert facts["kept"] == facts["read"] - 1 > 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.txt", b"\n \n\n"),
        ("a.jsonl.gz", b""),
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 half a download"),
        ("a.jsonl.gz", b"no gzip at all"),
    ],
)
@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_a_file_without_records_is_no_text(
    tmp_path: Path, name: str, content: bytes, on_bad: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.\w+.*(empty file|cut off|none of)"):
        staged(tmp_path, files=[str(tmp_path / name)], on_bad=on_bad)


def test_a_parquet_file_that_is_cut_off_is_named_beside_whole_ones(tmp_path: Path) -> None:
    content = parquet(tmp_path, text=["x", "y"])
    (tmp_path / "b.parquet").write_bytes(content[:-12])
    text = staged(tmp_path, files=[str(tmp_path / "*.parquet")], on_bad="skip")
    [(kind, entry)] = text.facts["bad"].items()
    assert "interrupted download" in kind and entry["examples"][0]["place"] == "b.parquet"
    assert text.facts["kept"] == 2


def test_faults_of_a_kind_are_counted_together(tmp_path: Path) -> None:
    """Where each stands is in the examples, of which a few are kept; the counts don't grow."""
    bad = b"".join(b'{"text":"%s\xff"}\n' % (b"y" * i) for i in range(50))
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "x"}) + bad)
    facts = staged(tmp_path, files=[str(tmp_path / "a.jsonl")], on_bad="skip").facts
    assert [(kind, entry["count"]) for kind, entry in facts["bad"].items()] == [
        ("invalid UTF-8", 50)
    ]
    assert len(facts["bad"]["invalid UTF-8"]["examples"]) == 3


# Length


@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_a_long_document_is_refused_skipped_or_cut(tmp_path: Path, on_bad: str) -> None:
    long = "wörter " * 40
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "short"}, {"text": long}))
    given = {"files": [str(tmp_path / "a.jsonl")], "max_bytes": 100, "on_bad": on_bad}
    with pytest.raises(ValueError, match=r"a\.jsonl:2: too long \(320 bytes.*too_long=skip"):
        staged(tmp_path, **given, too_long="refuse")
    skipped = staged(tmp_path, **given, too_long="skip").facts
    assert skipped["kept"] == 1 and skipped["bad"]["too long"]["count"] == 1
    assert skipped["bad"]["too long"]["examples"][0]["place"] == "a.jsonl:2"
    cut = staged(tmp_path, **given, too_long="cut", deduplicate=False)
    assert cut.facts["cut"] == 1 and not cut.facts["bad"]
    parts = texts_of(cut)
    assert all(len(part.encode()) <= 100 for part in parts)
    assert "".join(sorted(parts, key=len, reverse=True)).replace("short", "") == long


def test_a_question_is_never_cut(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "x"}, {"question": "q" * 200, "answer": "1"}))
    text = staged(tmp_path, files=[str(tmp_path / "a.jsonl")], max_bytes=100, too_long="cut")
    assert text.facts["bad"]["too long"]["count"] == 1 and text.facts["cut"] == 0


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_no_line_is_held_in_memory_whatever_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    monkeypatch.setattr(readers, "_LONGEST", 1_000)
    (tmp_path / "a.txt").write_bytes(b"first\n\n" + b"x" * 4_321 + b"\n\nlast\n")
    found = list(read_file(tmp_path / "a.txt", "text", document, lambda done: None))
    [bad] = [record for record in found if isinstance(record, Bad)]
    assert bad.kind == "too long" and "1,000" in bad.excerpt
    kept = [record.values["text"] for record in found if isinstance(record, Raw)]
    assert kept == ([] if document == "file" else ["first", "last"])


def test_a_paragraph_of_many_lines_is_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_LONGEST", 1_000)
    (tmp_path / "a.txt").write_bytes(b"x\n" * 600 + b"\nlast\n")
    bad, last = read_file(tmp_path / "a.txt", "text", "paragraph", lambda done: None)
    assert isinstance(bad, Bad) and bad.place == "a.txt:1"
    assert isinstance(last, Raw) and last.place == "a.txt:602"


# What is read


def texts_of(text: StagedText) -> list[str]:
    splits = ("train", "validation")
    records = [text.read(split, i) for split in splits for i in range(text.num_records(split))]
    return [str(record.text) for record in records]


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ("file", {"one\ntwo\n\n\nthree"}),
        ("paragraph", {"one\ntwo", "three"}),
        ("line", {"one", "two", "three"}),
    ],
)
def test_documents_of_plain_text(tmp_path: Path, document: str, wanted: set[str]) -> None:
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfone\ntwo\n\n\nthree\n")
    text = staged(tmp_path, files=[str(tmp_path / "a.md")], document=document)
    assert {found.strip("\n") for found in texts_of(text)} == wanted


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"Nr. {i}: schön", "extra": i} for i in range(30)]
    content = {
        "a.jsonl": lambda: lines(*rows),
        "a.jsonl.gz": lambda: gzip.compress(lines(*rows)),
        "a.parquet": lambda: parquet(tmp_path, text=[row["text"] for row in rows]),
    }
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).write_bytes(content[name]())
    text = staged(tmp_path, files=[str(tmp_path / "x" / name)])
    assert set(texts_of(text)) == {row["text"] for row in rows}
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(lines(*rows))
    assert staged(tmp_path, files=[str(plain)]).hash == text.hash


def record_of(values: dict[str, Any], **settings: Any) -> Record | Bad:
    [found] = records_of(Raw("a:1", values), TextConfig(files=["a"], **settings))
    return found


def test_fields_are_mapped_into_nested_columns() -> None:
    values = {
        "problem": {"body": "Why?", "hard": "Level 3"},
        "work": ["a ", "", "b"],
        "result": 7,
        "meta.licence": "CC0",
    }
    fields = {
        "question": "problem.body",
        "level": "problem.hard",
        "trace": "work",
        "answer": "result",
        "licence": "meta.licence",
    }
    record = record_of(values, fields=fields, licence="", origin="a book")
    wanted = Record(None, "Why?", ("a", "b"), "7", 3, "CC0", "a book", "a:1")
    assert record == wanted


def test_a_record_names_its_own_licence_and_source_or_takes_the_default() -> None:
    own = record_of(
        {"text": "x", "licence": "MIT", "source": "there"}, licence="CC0", origin="here"
    )
    assert isinstance(own, Record) and (own.licence, own.source) == ("MIT", "there")
    other = record_of({"text": "x", "licence": None}, licence="CC0", origin="here")
    assert isinstance(other, Record) and (other.licence, other.source) == ("CC0", "here")


def test_a_path_that_is_not_there_is_named() -> None:
    found = record_of({"a": {"b": 1}}, fields={"text": "a.c"})
    assert isinstance(found, Bad) and found.kind == "no field 'a.c'"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["text", "question", "answer", "trace", "level", "solution", "conversations"]
)


@given(
    values=st.dictionaries(NAMES, JSON, max_size=5),
    recipe=st.sampled_from([None, "gsm8k", "openwebmath", "openthoughts"]),
)
@settings(deadline=None, max_examples=200)
def test_no_record_raises(values: dict[str, Any], recipe: str | None) -> None:
    for found in records_of(Raw("a:1", values), TextConfig(recipe, ["a"], max_bytes=20)):
        assert isinstance(found, Record | Bad)
        if isinstance(found, Record):
            assert found.num_bytes <= 20 and json.loads(found.content())


@given(content=st.binary(max_size=60), kind=st.sampled_from(["jsonl", "text", "parquet"]))
@settings(deadline=None, max_examples=150)
def test_no_content_of_a_file_raises(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    for name in ("a", "a.gz"):
        path = tmp_path_factory.mktemp("x") / name
        path.write_bytes(content)
        found = list(read_file(path, kind, "paragraph", lambda done: None))
        assert found and all(isinstance(record, Raw | Bad) for record in found)
