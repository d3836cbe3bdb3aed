"""The lines that both forms of a corpus's card say."""

from typing import Any

from .card_facts import Facts, Sampled
from .corpus import Corpus


def tokenizer_line(corpus: Corpus) -> str:
    """Which tokenizer, of how many tokens."""
    spec = corpus.manifest["tokenizer"]["spec"]
    size = corpus.tokenizer.vocab_size
    return f"{spec['kind']}, {size:,} tokens, `{corpus.manifest['tokenizer']['fingerprint'][:12]}`"


def source_row(corpus: Corpus, facts: Facts, name: str) -> list[str]:
    """A source in one line: what, whose, how much, how long."""
    source = corpus.manifest["sources"][name]
    train = corpus.manifest["splits"]["train"]
    counts = train["sources"].get(name, {"documents": 0, "tokens": 0})
    lengths = sorted(facts.sources[name].lengths) or [0]
    return [
        name,
        what(source),
        licence(source),
        f"{counts['documents']:,}",
        f"{counts['tokens']:,}",
        f"{100 * counts['tokens'] / train['tokens']:.1f}%",
        epochs(source, counts["documents"]),
        f"{lengths[len(lengths) // 2]:,}",
        f"{lengths[-1]:,}",
    ]


def what(source: dict[str, Any]) -> str:
    """A task with its trace and levels, or a text."""
    if not source["task"]:
        return f"text, trace {source['trace']}"
    scheduled = [level for step in source.get("schedule", []) for level in step["levels"] or []]
    levels = ", ".join(map(str, sorted({*source["levels"], *scheduled})))
    when = " by a schedule" if "schedule" in source else ""
    return f"{source['task']}, trace {source['trace']}, levels {levels}{when}"


def licence(source: dict[str, Any]) -> str:
    """The licence and origin of a task, or of the records of a text."""
    if "origins" in source:
        return "; ".join(f"{licence} ({origin})" for licence, origin in source["origins"][:5])
    return f"{source['licence']} ({source['source']})"


def epochs(source: dict[str, Any], documents: int) -> str:
    """How often a text was read through; tasks make ever new problems."""
    records = source.get("text_facts", {}).get("splits", {}).get("train")
    return f"{documents / records:.2f}" if records else "–"


def text_lines(source: dict[str, Any]) -> list[str]:
    """What became of the records of a text."""
    facts = source.get("text_facts")
    if facts is None:
        return []
    lines = [
        f"{facts['read']:,} records read, {facts['kept']:,} kept, {facts['duplicates']:,} copies"
    ]
    for kind, bad in facts["bad"].items():
        example = bad["examples"][0]
        lines.append(f"{bad['count']:,} left out: {kind}; first at {example['place']}")
    return lines


def overlap_lines(facts: Facts) -> list[str]:
    """What was compared with what, and what was found."""
    whom = ", ".join(facts.compared_with) or "nothing (no task, and no test set is here)"
    found = facts.overlaps.found
    lines = [
        f"{facts.looked_at:,} training documents were compared with the held-out questions of"
        f" {whom}."
    ]
    if not found:
        return [*lines, "None of them is among these documents."]
    lines += [f"- {count:,} documents share a question of {name}" for name, count in found.items()]
    return [*lines, *(f"- {place}: {text}" for place, _, text in facts.overlaps.examples)]


def repeats(sampled: Sampled) -> str:
    """How many of the documents that were looked at are copies."""
    return f"{sampled.repeated:,} of {len(sampled.lengths):,} looked at are copies of another"
