"""The model card of a published run: what it is, how to load it, what it did, how it was made."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.card_lines import licence, what
from eval.card_results import CardResults, card_results
from eval.checkpoint import corpus_manifest
from eval.currencies import scaled

from .export import Export
from .folder import git_revision
from .redaction import redacted

CARD_FILE, PICTURE = "README.md", "frontier.png"
_COSTS = {
    "parameters": "Parameters",
    "non_embedding_parameters": "Parameters without embedding",
    "layout": "Layout",
    "train_tokens": "Training tokens",
    "train_steps": "Training steps",
    "train_flops": "Training FLOPs",
    "mean_train_loops": "Loops in training (mean)",
    "model_flops_per_token": "Model FLOPs per token, at the training context",
    "block_calls_per_position": "Block calls per position",
    "state_bytes": "State at the training context, bytes",
    "weight_bytes": "Weights in float32, bytes",
    "seed": "Seed",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is about.

    Attributes:
        run: the run's folder.
        export: what is published.
        step: steps that it was trained for.
        checkpoint: identity of the weights.
        name: what `from_pretrained` is given, in the example.
        licence: the licence that its maker chose for it, in the hub's spelling; empty for none.
    """

    run: Path
    export: Export
    step: int
    checkpoint: str
    name: str
    licence: str = ""


def card_files(facts: CardFacts) -> dict[str, bytes]:
    """Return the card and its picture, by file name; secrets are taken out of the text.

    Raises:
        ValueError: the run's files are damaged.
    """
    results = card_results(facts.run, facts.checkpoint)
    text = redacted("\n".join(_lines(facts, results)) + "\n")
    picture = {PICTURE: results.frontier} if results and results.frontier else {}
    return {CARD_FILE: text.encode(), **picture}


def _lines(facts: CardFacts, results: CardResults | None) -> Iterator[str]:
    title = " ".join(facts.export.backbone.config.name.split())
    yield from _head(facts.licence, facts.export.fills_in)
    yield from (f"# {title}", "", _summary(facts), "")
    yield from ("## Load it", "", *_loading(facts), "")
    yield from _behaviour(facts.export)
    yield from _results(results)
    costs, manifest = _read(facts.run / "cost.json"), corpus_manifest(facts.run)
    yield from ("## What it costs", "", "| | |", "|:--|--:|", *_cost_rows(costs), "")
    yield from ("## Data", "", *_data(manifest), "")
    yield from ("## How it was made", "", *_making(_read(facts.run / "environment.json")))


def _head(chosen: str, fills: bool) -> list[str]:
    """What the hub reads."""
    kind = [] if fills else ["pipeline_tag: text-generation"]
    lines = ["library_name: transformers", *kind, "tags:", "- pauca", "- custom_code"]
    return ["---", *([f"license: {chosen}"] if chosen else []), *lines, "---", ""]


def _summary(facts: CardFacts) -> str:
    config = facts.export.backbone.config
    thinks = "" if config.latent.kind == "none" else f", latent thought `{config.latent.kind}`"
    return (
        f"A small language model pretrained with Pauca for research on what a correct answer costs:"
        f" layout `{config.layout}`, {config.num_layers} layers of width {config.dim}, depth "
        f"`{config.depth.kind}`{thinks}; {facts.step:,} steps. It knows the tasks below and nothing"
        " else."
    )


def _loading(facts: CardFacts) -> list[str]:
    return [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"name = {json.dumps(facts.name)}",
        "model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)",
        "tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # needs no code",
        "```",
        "",
        "`trust_remote_code` runs the Python files of this folder: read them first. They need only"
        " torch and transformers, and are Apache-2.0 (LICENSE-SOURCE).",
    ]


def _behaviour(export: Export) -> Iterator[str]:
    """What this backbone does that others don't."""
    backbone, latent = export.backbone, export.backbone.config.latent
    said = []
    if export.fills_in:
        said.append(
            "It fills answers in: put padding where the answer and its end go, and take the "
            "likeliest token of the logits there. `generate` refuses."
        )
    if latent.thinks:
        said.append(
            f"After the first `<think>` of a text it thinks {latent.slots()} steps that write "
            "nothing; `thoughts=N` of `generate` changes their number. The logits at `<think>` are "
            "those after the thoughts."
        )
    if backbone.latent.sees_ahead:
        said.append(
            "It infers vectors from the prompt: what is read first with a cache, which `generate` "
            "makes. Logits without a cache are those of the prior; `use_cache=False` is refused."
        )
    if backbone.depth.adjustable:
        said.append(
            f"Its loop count is a choice: `loops=N` of `generate` (its own is "
            f"{backbone.depth.default_loops})."
        )
    if said:
        yield from (*(f"- {line}" for line in said), "")


def _results(results: CardResults | None) -> Iterator[str]:
    yield from ("# Results", "")
    if results is None:
        yield from ("No answer of these weights was evaluated.", "")
        return
    yield from (
        "95% Wilson intervals. No training document holds a question, but of levels marked "
        "train-only, which are too small to be split.",
        "",
    )
    if results.frontier:
        yield from (f"![Accuracy against cost]({PICTURE})", "")
    yield from (results.markdown, "")


def _cost_rows(costs: dict[str, Any]) -> Iterator[str]:
    for key, title in _COSTS.items():
        if (value := costs.get(key)) is not None:
            yield f"| {title} | {_figure(value)} |"


def _figure(value: Any) -> str:
    if isinstance(value, float) and abs(value) >= 1e9:
        return "".join(scaled(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return f"`{value}`"


def _data(manifest: dict[str, Any]) -> Iterator[str]:
    train = manifest["splits"]["train"]
    yield from (
        f"{train['documents']:,} training documents, {train['tokens']:,} tokens; tokenizer "
        f"{manifest['tokenizer']['spec']['kind']}; corpus `{manifest['definition_hash'][:12]}`.",
        "",
        "| source | what | licence | tokens |",
        "|:--|:--|:--|--:|",
    )
    for name, source in manifest["sources"].items():
        tokens = train["sources"].get(name, {}).get("tokens", 0)
        yield f"| {name} | {_cell(what(source))} | {_cell(licence(source))} | {tokens:,} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _making(environment: dict[str, Any]) -> Iterator[str]:
    packages = environment.get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    yield from ("```bash", _one_line(environment.get("command", "unknown")), "```", "")
    trained = environment.get("git", "unknown")
    python, device = (environment.get(key, "unknown") for key in ("python", "device"))
    yield f"- Trained at git revision `{trained}`; the source files are of `{git_revision()}`."
    yield f"- {device}, precision {environment.get('precision', 'unknown')}, Python {python}."
    yield f"- {versions}."


def _one_line(command: str) -> str:
    try:
        return shlex.join(shlex.split(command))
    except ValueError:
        return " ".join(command.split())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: missing or damaged; train the run again") from error
    return content if isinstance(content, dict) else {}
