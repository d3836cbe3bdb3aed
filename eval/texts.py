"""Bits per byte: how well a backbone predicts the held-out text of its corpus.

A text costs -log2 p(text, its end) bits, and bits per byte divide that by its UTF-8 bytes, so that
tokenizers can be compared (The Pile, arXiv 2101.00027, section 3.1, there called BPB). A document
longer than a row is cut; the tokens of a piece see what stands before them in their piece.

Legend: B batch, T time, N positions that predict.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.atomic import write_atomically
from data.batch import Batch
from data.corpus import Corpus, PackedRows
from data.roles import Role
from eval.progress import progress_bar
from models.backbone import Backbone
from models.latent.latent import Readout

TEXTS_FILE = "texts.json"
TOKENS_AT_ONCE = 16_384
READ_AT_ONCE = 2_048
SPLIT = "validation"


@dataclass(frozen=True)
class TextScore:
    """How one text was predicted.

    Attributes:
        source: name of the text among the corpus's sources.
        split: which documents of it.
        pieces: documents, those longer than a row in several.
        tokens: predicted tokens, the end of each document among them.
        bytes: UTF-8 bytes of the documents.
        nats: their cost, -ln p.
        bits_per_byte: the same in bits, per byte.
        low, high: bounds of a 95% bootstrap interval over pieces.
    """

    source: str
    split: str
    pieces: int
    tokens: int
    bytes: int
    nats: float
    bits_per_byte: float
    low: float
    high: float


@dataclass
class _Pieces:
    """Nats, predicted tokens and bytes of each piece of a text, as they come."""

    nats: list[float]
    tokens: list[int]
    bytes: list[int]


def score_texts(backbone: Backbone, corpus: Corpus, device: str) -> list[TextScore]:
    """Predict all held-out text of a corpus.

    Args:
        backbone: on the device, causal; it predicts at its own depth.
        corpus: the one that it was trained on.
        device: where it is.

    Returns:
        A score for each text that has held-out documents.
    """
    names = text_sources(corpus.manifest)
    if not names or not corpus.manifest["splits"][SPLIT]["rows"]:
        return []
    rows = corpus.split(SPLIT)
    found = {number: _Pieces([], [], []) for number in names}
    chosen = rows_of_sources(rows, list(names))
    with torch.inference_mode(), progress_bar(chosen.size) as progress:
        progress.describe("bits per byte")
        for indices in _few(chosen, max(1, TOKENS_AT_ONCE // rows.context)):
            _score(backbone, rows, indices, found, device)
            progress.advance(indices.size)
    return [_total(names[number], pieces) for number, pieces in found.items() if pieces.nats]


def text_sources(manifest: dict[str, Any]) -> dict[int, str]:
    """The names of a corpus's texts, by their id in the document tables."""
    sources = manifest["sources"].items()
    return {source["id"]: name for name, source in sources if "origins" in source}


def rows_of_sources(rows: PackedRows, numbers: Sequence[int]) -> np.ndarray:
    """The rows that hold a document of some sources."""
    return np.flatnonzero(rows.holds(np.asarray(numbers)))


def _few(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, indices.size, size):
        yield indices[first : first + size]


def _score(
    backbone: Backbone,
    rows: PackedRows,
    indices: np.ndarray,
    found: dict[int, _Pieces],
    device: str,
) -> None:
    arrays = rows.read(indices)
    batch = Batch.from_rows(arrays, 1.0).to(device)
    output = backbone(batch.tokens_BT, batch.segments_BT, roles_BT=batch.roles_BT)
    predicts_BT = (batch.roles_BT == Role.TEXT) & (batch.targets_BT != rows.pad_id)
    places_N = predicts_BT.flatten().nonzero()[:, 0]
    hidden_ND, targets_N = output.hidden_BTD.flatten(0, 1)[places_N], batch.targets_BT.flatten()
    losses_N = _losses(hidden_ND, targets_N[places_N], output.readout)
    documents = _documents_at(arrays.segments, places_N.cpu().numpy())
    sums = np.bincount(documents, losses_N.numpy(), len(arrays.document_table))
    counts = np.bincount(documents, minlength=len(arrays.document_table))
    for entry, nats, tokens in zip(arrays.document_table, sums, counts, strict=True):
        if (pieces := found.get(int(entry["source"]))) is not None and tokens:
            pieces.nats.append(float(nats))
            pieces.tokens.append(int(tokens))
            pieces.bytes.append(int(entry["bytes"]))


def _losses(hidden_ND: Tensor, targets_N: Tensor, readout: Readout) -> Tensor:
    """Each position's cross-entropy, nats, on the CPU; logits are never held all together."""
    parts = [
        F.cross_entropy(readout(hidden).double(), targets, reduction="none")
        for hidden, targets in zip(
            hidden_ND.split(READ_AT_ONCE), targets_N.split(READ_AT_ONCE), strict=True
        )
    ]
    return torch.cat(parts).cpu()


def _documents_at(segments: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The place in the document table of the document at each position."""
    per_row = segments.max(axis=1) + 1
    firsts = np.cumsum(per_row) - per_row
    return (firsts[:, None] + segments).ravel()[places]


def _total(source: str, pieces: _Pieces) -> TextScore:
    nats, sizes = np.array(pieces.nats), np.array(pieces.bytes)
    low, high = _interval(nats, sizes)
    return TextScore(
        source,
        SPLIT,
        nats.size,
        sum(pieces.tokens),
        int(sizes.sum()),
        float(nats.sum()),
        float(nats.sum() / sizes.sum() / log(2)),
        low,
        high,
    )


def _interval(nats: np.ndarray, sizes: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """95% bootstrap interval of the ratio: pieces are drawn anew, with their bytes."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(resamples):
        drawn = rng.integers(0, nats.size, nats.size)
        ratios.append(nats[drawn].sum() / max(1, sizes[drawn].sum()) / log(2))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def write_scores(folder: Path, checkpoint: str, scores: Sequence[TextScore]) -> None:
    """Write a run's scores beside its ledger."""
    content = {"checkpoint": checkpoint, "texts": [asdict(score) for score in scores]}
    text = json.dumps(content, indent=1, sort_keys=True)
    write_atomically(folder / TEXTS_FILE, f"{text}\n".encode())


def read_scores(folder: Path, checkpoint: str | None = None) -> list[TextScore] | None:
    """A run's scores; None where it has none, or only those of another checkpoint."""
    path = folder / TEXTS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if checkpoint is not None and content["checkpoint"] != checkpoint:
            return None
        return [TextScore(**score) for score in content["texts"]]
    except (ValueError, KeyError, TypeError):
        return None
