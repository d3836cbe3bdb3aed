"""Exports, each with what the backbone itself says: a process without this project compares."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.tokenizer import SymbolicTokenizer
from eval.budget import Budget
from eval.generate import Request, generate
from models.backbone import Backbone
from train.export import Export, write_export

TOKENIZER = SymbolicTokenizer()
CONTEXT = 32
NEW_TOKENS = 9
SEED = 5


@dataclass(frozen=True)
class Expected:
    """What a backbone says of a left-padded batch of prompts."""

    tokens_BT: Tensor
    mask_BT: Tensor
    logits_BTV: Tensor
    greedy: list[list[int]]
    sampled: list[list[int]]


def prompts(backbone: Backbone) -> list[list[int]]:
    """Three of different lengths, that end in `<think>` where the backbone thinks."""
    generator = torch.Generator().manual_seed(0)
    thinks = [TOKENIZER.think_id] if backbone.config.latent.thinks else []
    drawn = [torch.randint(8, 24, (n,), generator=generator).tolist() for n in (6, 11, 2)]
    return [[*tokens, *thinks] for tokens in drawn]


@torch.no_grad()
def expected(backbone: Backbone) -> Expected:
    asked = prompts(backbone)
    longest = max(map(len, asked))
    rows = [[0] * (longest - len(tokens)) + tokens for tokens in asked]
    masks = [[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in asked]
    tokens_BT, mask_BT = torch.tensor(rows), torch.tensor(masks)
    return Expected(
        tokens_BT,
        mask_BT,
        _logits(backbone, asked),
        _greedy(backbone, asked) if backbone.causal else [],
        _sampled(backbone, tokens_BT, mask_BT) if backbone.causal else [],
    )


def _logits(backbone: Backbone, asked: Sequence[list[int]]) -> Tensor:
    """Logits of each prompt alone, from scratch, at the right end of a row of zeros."""
    longest = max(map(len, asked))
    found_BTV = torch.zeros(len(asked), longest, backbone.config.vocab_size, dtype=torch.float64)
    slots = backbone.config.latent.slots()
    dot = TOKENIZER.encode(".")
    for row, tokens in enumerate(asked):
        read = torch.tensor([[*tokens, *(dot * slots)]])
        roles = torch.ones_like(read)
        roles[:, len(tokens) :] = 3
        out = backbone(read, roles_BT=roles if slots else None)
        logits_TV = out.readout(out.hidden_BTD)[0]
        shown_TV = torch.cat([logits_TV[: len(tokens) - 1], logits_TV[-1:]])
        found_BTV[row, longest - len(tokens) :] = shown_TV
    return found_BTV


def _greedy(backbone: Backbone, asked: Sequence[list[int]]) -> list[list[int]]:
    thinks = backbone.config.latent.thinks
    limits = (NEW_TOKENS - 1, NEW_TOKENS - 1)
    requests = [Request(tokens, index, *limits) for index, tokens in enumerate(asked)]
    answers = generate(backbone, requests, Budget("full" if thinks else "none"), TOKENIZER)
    return [answer.tokens[:NEW_TOKENS] for (answer,) in answers]


def _sampled(backbone: Backbone, tokens_BT: Tensor, mask_BT: Tensor) -> list[list[int]]:
    """Draw tokens as transformers does, decoding with the backbone's own state."""
    slots, rows = backbone.config.latent.slots(), len(tokens_BT)
    thoughts = torch.full((rows, slots), TOKENIZER.encode(".")[0])
    read_BT = torch.cat([tokens_BT, thoughts], dim=1)
    real_BT = torch.cat([mask_BT, torch.ones_like(thoughts)], dim=1)
    roles_BT = torch.cat([torch.ones_like(tokens_BT), torch.full_like(thoughts, 3)], dim=1)
    segments_BT = torch.where(real_BT > 0, 0, -1)
    state = backbone.init_state(rows, read_BT.shape[1] + NEW_TOKENS, dtype=torch.float64)
    out = backbone(read_BT, segments_BT, state, roles_BT=roles_BT)
    going_B = torch.ones(rows, dtype=torch.bool)
    written: list[Tensor] = []
    torch.manual_seed(SEED)
    while len(written) < NEW_TOKENS and bool(going_B.any()):
        logits_BV = out.readout(out.hidden_BTD[:, -1]).float()
        drawn_B = torch.multinomial(logits_BV.softmax(dim=-1), 1)[:, 0]
        written.append(torch.where(going_B, drawn_B, TOKENIZER.pad_id))
        going_B = going_B & (written[-1] != TOKENIZER.eos_id)
        out = backbone(written[-1][:, None], None, out.state)
    return torch.stack(written, dim=1).tolist()


def write_case(backbone: Backbone, folder: Path, name: str, shard_size: str = "5GB") -> None:
    """Export a backbone, and write beside it what it says."""
    folder.mkdir(parents=True)
    export = Export(backbone, TOKENIZER, CONTEXT)
    write_export(export, folder, shard_size)
    says = expected(backbone)
    tensors = {"tokens": says.tokens_BT, "mask": says.mask_BT, "logits": says.logits_BTV}
    save_file(tensors, folder / "expected.safetensors")
    texts = {
        "name": name,
        "greedy": says.greedy,
        "sampled": says.sampled,
        "seed": SEED,
        "new_tokens": NEW_TOKENS,
        "needs_cache": backbone.latent.sees_ahead,
    }
    (folder / "expected.json").write_text(json.dumps(texts))
