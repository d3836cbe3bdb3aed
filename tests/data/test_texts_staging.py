"""Staging: each text once, the same wherever its files lie, in bounded memory."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shards import CorpusError
from data.texts.config import TextConfig
from data.texts.records import Record
from data.texts.staging import StagedText, open_staged, stage
from data.texts.store import RecordStore, RecordWriter

ROOT = Path(__file__).parents[2]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def staged(root: Path, *files: str, **settings: Any) -> StagedText:
    return stage(TextConfig(files=list(files), **settings), root, "text", progress=False)


def records(text: StagedText, split: str) -> list[Record]:
    return [text.read(split, index) for index in range(text.num_records(split))]


ROWS = [{"text": f"page {i}", "licence": "MIT" if i % 3 else "CC0"} for i in range(400)]


def test_a_text_is_the_same_wherever_its_files_lie(tmp_path: Path) -> None:
    here = staged(tmp_path / "1", write(tmp_path / "here" / "a.jsonl", ROWS))
    there = staged(tmp_path / "2", write(tmp_path / "there" / "b.jsonl", ROWS))
    parts = [write(tmp_path / f"{n}.jsonl", ROWS[n * 200 : n * 200 + 200]) for n in range(2)]
    apart = staged(tmp_path / "3", *parts)
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "here" / "a.jsonl").read_bytes()))
    assert here.hash == there.hash == apart.hash == staged(tmp_path / "4", str(packed)).hash
    assert here.folder.name == there.folder.name
    changed = [{**ROWS[0], "text": "another"}, *ROWS[1:]]
    assert staged(tmp_path / "5", write(tmp_path / "d.jsonl", changed)).hash != here.hash


def test_records_come_back_with_their_places_and_origins(tmp_path: Path) -> None:
    text = staged(tmp_path, write(tmp_path / "a.jsonl", ROWS), origin="a test")
    found = [record for split in ("train", "validation") for record in records(text, split)]
    assert sorted(record.text or "" for record in found) == sorted(row["text"] for row in ROWS)
    for record in found:
        row = ROWS[int(record.place.removeprefix("a.jsonl:")) - 1]
        assert (record.text, record.licence) == (row["text"], row["licence"])
        assert text.origins[text.origin_of(record)] == (record.licence, "a test")
    assert {entry["licence"]: entry["records"] for entry in text.facts["origins"]} == {
        "CC0": 134,
        "MIT": 266,
    }
    again = open_staged(text.folder)
    assert records(again, "validation") == records(text, "validation")


def test_duplicates_are_counted_and_only_the_first_is_kept(tmp_path: Path) -> None:
    rows = [{"text": "a", "licence": "MIT"}, {"text": "b"}, {"text": "a", "licence": "CC0"}]
    file = write(tmp_path / "a.jsonl", rows)
    text = staged(tmp_path, file)
    assert (text.facts["kept"], text.facts["duplicates"], text.facts["read"]) == (2, 1, 3)
    counted = {entry["licence"]: entry["records"] for entry in text.facts["origins"]}
    assert counted == {"MIT": 1, "unknown": 1, "CC0": 0}
    assert {record.place for record in records(text, "train")} <= {"a.jsonl:1", "a.jsonl:2"}
    assert staged(tmp_path, file, deduplicate=False).facts["kept"] == 3


def test_answers_to_one_question_are_never_in_two_splits(tmp_path: Path) -> None:
    rows = [
        {"question": f"question {i}", "trace": f"way {j}", "answer": str(j % 2)}
        for i in range(300)
        for j in range(4)
    ]
    text = staged(tmp_path, write(tmp_path / "a.jsonl", rows))
    assert text.facts["duplicates"] == 0  # another way to an answer is another record
    train, validation = ({r.question for r in records(text, s)} for s in ("train", "validation"))
    assert not train & validation and len(train | validation) == 300
    assert 4 <= len(validation) <= 30  # 5% of 300: 15, within three standard deviations


def test_a_text_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    first = staged(tmp_path, file)

    def fail(*arguments: Any) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr("data.texts.staging.read_file", fail)
    monkeypatch.setattr("data.texts.files.file_sha256", fail)
    assert staged(tmp_path, file).hash == first.hash


def test_settings_and_endings_make_another_text(tmp_path: Path) -> None:
    """The same bytes as lines of JSON, or as plain text."""
    as_json, as_text = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "a.txt", ROWS)
    found = [
        staged(tmp_path, as_json),
        staged(tmp_path, as_text, document="line"),
        staged(tmp_path, as_text, document="file"),
        staged(tmp_path, as_json, licence="CC-BY-4.0", origin="elsewhere"),
    ]
    assert len({text.hash for text in found}) == len({text.folder for text in found}) == 4


SCRIPT = """
import sys
from pathlib import Path
from data.texts import staging
from data.texts.config import TextConfig
read, count = staging.read_file, 0
def counted(*arguments):
    print("read", flush=True)
    return read(*arguments)
staging.read_file = counted
text = staging.stage(TextConfig(files=[sys.argv[1]]), Path(sys.argv[2]), "text")
print(text.hash, text.num_records("train"))
"""


@pytest.mark.multiprocess
def test_two_processes_stage_a_text_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": f"page {i}"} for i in range(20_000)])
    command = [sys.executable, "-c", SCRIPT, file, str(tmp_path / "corpora")]
    runs = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    lines = [output.splitlines() for output, _ in outputs]
    assert lines[0][-1] == lines[1][-1]
    assert sum(line.count("read") for line in lines) == 1


def test_an_interrupted_staging_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    append, seen = RecordWriter.append, 0

    def interrupted(self: RecordWriter, record: Record, origin: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 200:
            raise KeyboardInterrupt
        append(self, record, origin)

    monkeypatch.setattr(RecordWriter, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        staged(tmp_path, file)
    left = [path.name for path in (tmp_path / "texts").rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", "files.json"]
    monkeypatch.setattr(RecordWriter, "append", append)
    assert staged(tmp_path, file).facts["kept"] == 400


@pytest.mark.parametrize("damage", ["records.jsonl", "index.npz"])
def test_a_damaged_text_says_so(tmp_path: Path, damage: str) -> None:
    text = staged(tmp_path, write(tmp_path / "a.jsonl", ROWS))
    path = text.folder / damage
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorpusError, match="the staged text is damaged; delete the folder"):
        open_staged(text.folder)


def test_too_many_origins_are_refused(tmp_path: Path) -> None:
    rows = [{"text": f"page {i}", "source": f"https://a/{i}"} for i in range(1_001)]
    with pytest.raises(ValueError, match=r"more than 1,000 pairs of licence and source.*:1001"):
        staged(tmp_path, write(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": ["gone/*.jsonl"]}, r"text\.files=gone/\*\.jsonl: there is no such file"),
        ({"files": ["{tmp}/a.csv"]}, r"a\.csv: the ending \.csv doesn't tell the format"),
        (
            {"recipe": "gsm8k"},
            r"recipe=gsm8k: no file .*python -m data\.fetch recipe=gsm8k.*answer",
        ),
    ],
)
def test_missing_files_are_named_with_what_would_do(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.csv").write_text("x")
    files = [file.replace("{tmp}", str(tmp_path)) for file in settings.pop("files", [])]
    with pytest.raises(ValueError, match=message) as caught:
        staged(tmp_path, *files, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"recipe": "gsm9k"}, "recipe"),
        ({"files": []}, "files"),
        ({"format": "csv"}, "format"),
        ({"fields": {"body": "text"}}, r"fields\.body"),
        ({"document": "page"}, "document"),
        ({"on_bad": "ignore"}, "on_bad"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"too_long": "keep"}, "too_long"),
        ({"held_out": ["gsm9k"]}, "held_out"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, Any], key: str) -> None:
    config = TextConfig(**{"files": ["a.jsonl"], **change})
    with pytest.raises(ValueError, match=rf"^data\.sources\.a\.text\.{key}=.*allowed: "):
        config.validate("data.sources.a.text")


@given(
    texts=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=30),
    deduplicate=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_store_gives_back_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], deduplicate: bool
) -> None:
    texts = [text for text in texts if text.isprintable()] or ["x"]
    folder = tmp_path_factory.mktemp("store")
    with RecordWriter(folder) as writer:
        for number, text in enumerate(texts):
            writer.append(Record(text=text, place=str(number)), 0)
        kept = writer.finish(deduplicate)
    store = RecordStore(folder)
    numbers = np.concatenate([store.split("train"), store.split("validation")]).tolist()
    found = [store.read(number) for number in sorted(numbers)]
    wanted = list(dict.fromkeys(texts)) if deduplicate else texts
    assert [record.text for record in found] == wanted and kept.records == len(wanted)
    assert all(texts[int(record.place)] == record.text for record in found)


MEMORY = """
import resource, sys
from pathlib import Path
from data.texts.config import TextConfig
from data.texts.staging import stage
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
text = stage(TextConfig(files=[sys.argv[1]]), Path(sys.argv[2]), "text")
print(peak() - before, text.facts["kept"])
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """24 MB of records; what is held of each is 35 bytes, so a tenth of that is room enough."""
    rng, path = np.random.default_rng(0), tmp_path / "a.jsonl"
    with path.open("w") as file:
        for _ in range(6_000):
            file.write(json.dumps({"text": rng.bytes(2_000).hex()}) + "\n")
    command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / "corpora")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    grown, kept = done.stdout.split()
    assert int(kept) == 6_000 and path.stat().st_size > 24e6
    assert float(grown) < 12, f"{grown} MB more than before"
