"""Write a backbone so that transformers loads it without this project.

Weights as safetensors, settings as JSON, the few source files it needs, its tokenizer. Nothing in
an export is pickled, and nothing in it depends on when or where it was written.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from data.atomic import write_atomically
from data.portable_tokenizer import portable_files
from data.tokenizer import Tokenizer
from eval.generate import thought_token
from models.backbone import Backbone
from models.config import BackboneConfig, to_dict
from models.latent.taught import TaughtConfig
from models.mlps.listing import MLPS

from .flatten import MODELS, flattened

PREFIX = "backbone."
TIED = "head.weight"
MODEL_TYPE = "pauca"
CONFIG_FILE = "config.json"
LICENCE_FILE = "LICENSE-SOURCE"
_WEIGHTS = "model{suffix}.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        backbone: with its weights.
        tokenizer: the one that it was trained with.
        context: tokens of a row in training.
        fills: whether it was trained to fill answers in.
    """

    backbone: Backbone
    tokenizer: Tokenizer
    context: int
    fills: bool = False

    @property
    def fills_in(self) -> bool:
        """Whether answers are filled in, because it learned that or because it sees ahead."""
        return self.fills or not self.backbone.causal


def write_export(export: Export, folder: Path, shard_size: str) -> None:
    """Write weights, settings, source files and tokenizer into a folder.

    Args:
        export: what to write.
        folder: where; it must exist, and be empty.
        shard_size: the largest file of weights, such as 5GB.

    Raises:
        WriteError: the disk is full or refuses.
    """
    config = published_config(export.backbone.config)
    _write_weights(export.backbone, folder, shard_size)
    texts = {
        **flattened(kinds_in_use(config)),
        CONFIG_FILE: _json(_settings(export, config)),
        "generation_config.json": _json(_generation(export)),
        **portable_files(export.tokenizer, export.context),
    }
    licence = MODELS.parent / "LICENSE"
    if licence.is_file():  # not where only the packages were copied
        texts[LICENCE_FILE] = licence.read_text(encoding="utf-8")
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())


def published_config(config: BackboneConfig) -> BackboneConfig:
    """Return a config without what was only for training here: unused mixers, a teacher's path."""
    for name in config.mixers:
        without = replace(config, mixers={k: v for k, v in config.mixers.items() if k != name})
        if _builds(without):
            config = without
    if isinstance(config.latent, TaughtConfig):
        config = replace(config, latent=replace(config.latent, teacher=None))
    return config


def _builds(config: BackboneConfig) -> bool:
    try:
        with torch.device("meta"):
            Backbone(config)
    except ValueError:
        return False
    return True


def kinds_in_use(config: BackboneConfig) -> dict[str, set[str]]:
    """Return the kinds that a config names, by the folder of their list."""
    chosen = {str(changes.get("mlp")) for changes in config.overrides.values()}
    return {
        "mixers": {mixer.kind for mixer in config.mixers.values()},
        "mlps": {config.mlp.kind, *(chosen & MLPS.keys())},
        "depth": {config.depth.kind},
        "latent": {config.latent.kind},
    }


def _settings(export: Export, config: BackboneConfig) -> dict[str, Any]:
    tokenizer, thinks = export.tokenizer, config.latent.thinks
    return {
        "architectures": ["PaucaForCausalLM"],
        "auto_map": {
            "AutoConfig": "hf.PaucaConfig",
            "AutoModelForCausalLM": "hf.PaucaForCausalLM",
        },
        "backbone": to_dict(config),
        "context": export.context,
        "dtype": str(export.backbone.head.weight.dtype).removeprefix("torch."),
        "eos_token_id": tokenizer.eos_id,
        "fills": export.fills_in,
        "hidden_size": config.dim,
        "model_type": MODEL_TYPE,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": tokenizer.pad_id,
        "think_token_id": tokenizer.think_id if thinks else None,
        "thought_token_id": thought_token(tokenizer) if thinks else None,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }


def _generation(export: Export) -> dict[str, Any]:
    return {
        "do_sample": False,
        "eos_token_id": export.tokenizer.eos_id,
        "max_new_tokens": export.context,
        "pad_token_id": export.tokenizer.pad_id,
    }


def _write_weights(backbone: Backbone, folder: Path, shard_size: str) -> None:
    weights = dict(_weights(backbone))
    split = split_torch_state_dict_into_shards(
        weights, filename_pattern=_WEIGHTS, max_shard_size=shard_size
    )
    for name, keys in split.filename_to_tensors.items():
        save_file({key: weights[key] for key in keys}, folder / name, {"format": "pt"})
        (folder / name).chmod(0o644)  # safetensors lets only the writer read
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_atomically(folder / _INDEX, _json(index).encode())


def _weights(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Weights by their published names; of tied ones the embedding alone."""
    for name, weight in backbone.state_dict().items():
        if not (name == TIED and backbone.config.tie_embeddings):
            yield PREFIX + name, weight.detach().cpu().contiguous()


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
