"""The manifest of a corpus: what it was made from, what it holds, and the hash of all that.

A checkpoint carries the manifest's hash, so that a run is never resumed on another corpus.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .atomic import write_atomically
from .config import DataConfig
from .mixture import phase_starts
from .shards import CorpusError, record_dtype
from .source_config import SourceConfig
from .task_list import find_task
from .texts.staging import StagedText
from .tokenizer import Tokenizer

FORMAT = 1  # of the files; older ones are refused
# Raise it with any change of the tasks or of the layout of documents that changes a corpus's bytes:
# otherwise a corpus that was made before the change would be taken for a new one.
GENERATOR_VERSION = 2
MANIFEST = "manifest.json"

Json = dict[str, Any]
Texts = Mapping[str, StagedText]


def corpus_definition(config: DataConfig, tokenizer: Tokenizer, texts: Texts) -> Json:
    """All that determines the bytes of a corpus: not its name, its place or the workers.

    A text enters by the hash of its staged records, so that it doesn't matter where its files lay.
    """
    return {
        "generator_version": GENERATOR_VERSION,
        "format": FORMAT,
        "context": config.context,
        "seed": config.seed,
        "num_documents": config.num_documents,
        "num_validation_documents": config.num_validation_documents,
        "documents_per_shard": config.documents_per_shard,
        "tokenizer": tokenizer.fingerprint,
        "loss": _loss_definition(config),
        "sources": {
            name: source_definition(source, texts.get(name))
            for name, source in config.named_sources()
        },
        **_unless("weigh_by", config.weigh_by, "problems"),
        **_unless("temperature", float(config.temperature), 1.0),
    }


def _loss_definition(config: DataConfig) -> Json:
    weights = {role: float(weight) for role, weight in vars(config.loss).items()}
    return weights if config.texts else {k: v for k, v in weights.items() if k != "text"}


def source_definition(source: SourceConfig, text: StagedText | None) -> Json:
    """What a source is; settings that change nothing are left out, so that old hashes stay."""
    schedule = [asdict(step) for step in source.schedule]
    return {
        "task": source.task,
        "trace": source.trace,
        "levels": [int(level) for level in source.levels],
        "weight": float(source.weight),
        "dense": bool(source.dense),
        **_unless("schedule", schedule, []),
        **_unless("max_epochs", source.max_epochs and float(source.max_epochs), None),
        **({} if text is None else {"text": text.hash}),
        **_package(source),
    }


def _package(source: SourceConfig) -> Json:
    """Name and version of the package that makes a borrowed task's problems."""
    package = getattr(find_task(source.task), "package", None) if source.task else None
    return {} if package is None else {"package": package}


def _unless(key: str, value: Any, default: Any) -> Json:
    return {} if value == default else {key: value}


def json_hash(value: Any) -> str:
    """sha256 of the canonical JSON: sorted keys, no spaces, ASCII, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build_manifest(
    config: DataConfig, tokenizer: Tokenizer, texts: Texts, shards: dict[str, list[Json]]
) -> Json:
    """The manifest of a finished corpus.

    Args:
        config: its configuration.
        tokenizer: its tokenizer.
        texts: its staged texts.
        shards: the entries of the shards of each split, as `data.make` wrote them beside the files.
    """
    definition = corpus_definition(config, tokenizer, texts)
    manifest: Json = {
        "definition": definition,
        "definition_hash": json_hash(definition),
        "tokenizer": {"spec": tokenizer.spec(), "fingerprint": tokenizer.fingerprint},
        "context": config.context,
        "record": [list(field) for field in record_dtype(tokenizer.vocab_size).descr],
        "sources": {
            name: _source_facts(number, source, texts.get(name))
            for number, (name, source) in enumerate(config.named_sources())
        },
        "splits": {
            split: _split_facts(entries, config.context) for split, entries in shards.items()
        },
    }
    if len(phase_starts(config)) > 1:
        manifest["phases"] = _phase_facts(config, shards["train"])
    return {**manifest, "hash": json_hash(manifest)}


def _source_facts(number: int, source: SourceConfig, text: StagedText | None) -> Json:
    shared = {**source_definition(source, text), "id": number}
    if text is not None:
        facts = {"origins": [list(origin) for origin in text.origins], "text_facts": text.facts}
        return {**shared, **facts, "in_validation": text.num_records("validation") > 0}
    train_only = source.train_only_levels
    return {
        **shared,
        "licence": find_task(source.task).licence,
        "source": find_task(source.task).source,
        "train_only_levels": train_only,
        # Validation problems never occur in training; where no level allows that, there are none.
        "in_validation": set(source.levels) != set(train_only),
    }


def _phase_facts(config: DataConfig, entries: list[Json]) -> list[Json]:
    """Until which share of training each phase goes, and how many rows of the split it has."""
    untils = [*phase_starts(config)[1:], 1.0]
    rows = [0 for _ in untils]
    for entry in entries:
        rows[entry["phase"]] += entry["rows"]
    return [{"until": until, "rows": count} for until, count in zip(untils, rows, strict=True)]


def _split_facts(entries: list[Json], context: int) -> Json:
    def total(key: str) -> int:
        return sum(entry[key] for entry in entries)

    rows, tokens = total("rows"), total("tokens")
    return {
        "documents": total("documents"),
        "split_documents": total("split_documents"),
        "rows": rows,
        "tokens": tokens,
        "utilisation": tokens / (rows * context) if rows else 0.0,
        "sources": _source_counts([entry["sources"] for entry in entries]),
        "shards": [
            {key: value for key, value in entry.items() if key != "sources"} for entry in entries
        ],
    }


def _source_counts(per_shard: list[dict[str, Json]]) -> dict[str, Json]:
    """Documents, tokens, documents per level and share of the loss weights of each source."""
    counts: dict[str, Json] = {}
    for name, shard in (item for sources in per_shard for item in sources.items()):
        count = counts.setdefault(name, {"documents": 0, "tokens": 0, "loss": 0.0, "levels": {}})
        for key, value in shard.items():
            if isinstance(value, dict):
                _add(count.setdefault(key, {}), value)
            else:
                count[key] = count.get(key, 0) + value
    whole = sum(count["loss"] for count in counts.values())
    for count in counts.values():
        count["loss_share"] = count["loss"] / whole if whole else 0.0
    return counts


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for key, value in more.items():
        counts[key] = counts.get(key, 0) + value


def write_json(path: Path, value: Json) -> None:
    """Write a JSON file for people to read: sorted keys, one entry a line, complete or absent."""
    write_atomically(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Json:
    """The manifest of the corpus in `folder`, checked against its own hash.

    Raises:
        CorpusError: there is no such folder or manifest, or it is damaged or of another format.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CorpusError(f"{folder}: there is no such corpus; make it with `python -m data`")
    if not path.is_file():
        raise CorpusError(
            f"{path}: the corpus is not complete (interrupted?); "
            "run `python -m data` with the same settings to go on"
        )
    manifest = _parsed(path)
    if manifest["definition"]["format"] != FORMAT:
        raise CorpusError(
            f"{path}: format {manifest['definition']['format']}, not {FORMAT}; make it again"
        )
    return manifest


def _parsed(path: Path) -> Json:
    try:
        manifest = json.loads(path.read_bytes())
        claimed = manifest.pop("hash")
    except (ValueError, KeyError, AttributeError, TypeError):
        manifest, claimed = {}, None
    if not manifest or claimed != json_hash(manifest):
        raise CorpusError(
            f"{path}: the manifest is damaged; "
            "run `python -m data` with the same settings to write it again"
        )
    return {**manifest, "hash": claimed}
