"""What an autoencoder's folder holds: its weights, and what they are.

It stands in the run folder of the teacher, whose checkpoint it belongs to:

    <run>/concepts/<name>/autoencoder.safetensors
    <run>/concepts/<name>/concepts.json             written last: with it the folder is complete
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from data.atomic import write_atomically

from .autoencoder import Autoencoder
from .concepts_config import ConceptsConfig

WEIGHTS, FACTS = "autoencoder.safetensors", "concepts.json"


@dataclass(frozen=True)
class ConceptFacts:
    """What concepts.json says.

    Attributes:
        hash: of the weights, the teacher's and the autoencoder's, and of where it reads.
        weights: SHA-256 of the autoencoder's file.
        teacher: identity of the teacher's checkpoint.
        tokenizer: fingerprint of the teacher's tokenizer.
        layer: the teacher's layers below what is encoded.
        dim: the teacher's width.
        num_concepts: concepts that are told apart.
        active: concepts that stand for one hidden state, at most.
        explained_variance: share of the hidden states' variance on held-out documents.
        dead_share: share of the concepts that none of these documents has.
        positions: positions that it was trained on.
        train_flops: what training it cost, the teacher's forward passes included.
        teacher_train_flops: what training the teacher cost.
        settings: how it was trained.
    """

    hash: str
    weights: str
    teacher: str
    tokenizer: str
    layer: int
    dim: int
    num_concepts: int
    active: int
    explained_variance: float
    dead_share: float
    positions: int
    train_flops: float
    teacher_train_flops: float
    settings: dict[str, Any]


def concepts_folder(run: Path, config: ConceptsConfig, seed: int) -> Path:
    """Return the folder of these settings in a teacher's run folder."""
    text = json.dumps(asdict(config) | {"seed": seed}, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return run / "concepts" / f"{config.num_concepts}x{config.active}-{digest}"


def content_hash(weights: str, teacher: str, layer: int) -> str:
    """Return what changes whenever labels may."""
    return hashlib.blake2b(f"{weights} {teacher} {layer}".encode(), digest_size=16).hexdigest()


def save_autoencoder(folder: Path, autoencoder: Autoencoder, facts: dict[str, Any]) -> None:
    """Write the weights, then the facts, without those that follow from the weights."""
    state = {name: x.detach().cpu().contiguous() for name, x in autoencoder.state_dict().items()}
    content = save(state)
    weights = hashlib.sha256(content).hexdigest()
    digest = content_hash(weights, facts["teacher"], facts["layer"])
    whole = ConceptFacts(hash=digest, weights=weights, **facts)
    write_atomically(folder / WEIGHTS, content)
    text = json.dumps(asdict(whole), indent=2, sort_keys=True) + "\n"
    write_atomically(folder / FACTS, text.encode())


def read_facts(folder: Path, key: str = "backbone.latent.teacher") -> ConceptFacts:
    """Return what a folder holds.

    Raises:
        ValueError: it is no folder of an autoencoder; the line names the key.
    """
    try:
        return ConceptFacts(**json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{key}={folder} holds no finished {FACTS} ({type(error).__name__}): give the folder "
            "that `python -m train.concepts` named, or run that again"
        ) from None


def load_autoencoder(folder: Path) -> tuple[Autoencoder, ConceptFacts]:
    """Load an autoencoder; nothing in its files is run.

    Raises:
        ValueError: the folder is none, or its weights aren't those that it says.
    """
    facts = read_facts(folder)
    path = folder / WEIGHTS
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != facts.weights:
        raise ValueError(
            f"{path} isn't the file that {FACTS} beside it was written with: remove {folder}, and "
            "run `python -m train.concepts` again"
        )
    with torch.device("meta"):
        autoencoder = Autoencoder(facts.dim, facts.num_concepts, facts.active)
    autoencoder.load_state_dict(load(content), assign=True)
    return autoencoder, facts
