"""Exports in a process without this project: the same logits, the same texts, for every family."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from models.backbone import Backbone
from models.config import BackboneConfig, to_dict
from models.hf import PaucaConfig, PaucaForCausalLM
from models.latent.listing import LATENTS
from models.mixers.listing import MIXERS
from models.mlps.moe import MoEConfig
from tests.eval.thinking import thinking_backbone
from tests.models.cases import BACKBONE_CASES, ROUNDING, backbone_config, build_backbone
from tests.models.exported import TOKENIZER, write_case

SCRIPT = Path(__file__).parent / "load_exports.py"
THINKING = [kind for kind, made in LATENTS.items() if made.thinks]


def mixers_together() -> Iterator[BackboneConfig]:
    """Every registered mixer, six to a backbone."""
    names = list(MIXERS)
    for start in range(0, len(names), 6):
        some = names[start : start + 6]
        yield backbone_config(" ".join(some), len(some))


def cases() -> dict[str, Callable[[], Backbone]]:
    """Backbones of every family, by name; few of each."""
    configs = {config.layout: config for config in mixers_together()}
    configs["mixed"] = backbone_config(
        "attn@a gdn+attn attn@a", 3, tie_embeddings=True, mlp=MoEConfig(), canon="AC"
    )
    for name in ("nested depth", "stops kl", "whole in part"):
        configs[name] = BACKBONE_CASES[name]
    for name in ("ponder2", "vector", "chunk", "concept"):
        configs[name] = BACKBONE_CASES[f"{name} latent"]
    made: dict[str, Callable[[], Backbone]] = {
        name: lambda config=config: build_backbone(config) for name, config in configs.items()
    }
    for kind in ("pause", "feedback", "lotus"):
        made[kind] = lambda kind=kind: thinking_backbone(LATENTS[kind]())
    return made


def compared(root: Path, made: dict[str, Callable[[], Backbone]]) -> dict[str, dict[str, Any]]:
    """Export all, load all in one process of its own; return what differed, by name."""
    for number, (name, make) in enumerate(made.items()):
        write_case(make().eval(), root / f"export-{number:03d}.v1", name)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))
    }
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root.parent / "hub")}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error::UserWarning", str(SCRIPT), str(root)],
        cwd=root.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(found: dict[str, dict[str, Any]], made: dict[str, Callable[[], Backbone]]) -> None:
    differing = {
        name: {what: how for what, how in told.items() if how} for name, told in found.items()
    }
    assert {name: told for name, told in differing.items() if told} == {}
    assert set(found) == {*made, "tokenizer"}


@pytest.mark.timeout(400)
def test_exports_say_what_their_backbones_say(tmp_path: Path) -> None:
    made = cases()
    check(compared(tmp_path / "exports", made), made)


@pytest.mark.nightly
def test_every_backbone_exports(tmp_path: Path) -> None:
    made: dict[str, Callable[[], Backbone]] = {
        name: lambda config=config: build_backbone(config)
        for name, config in BACKBONE_CASES.items()
    }
    for kind in THINKING:
        made[kind] = lambda kind=kind: thinking_backbone(LATENTS[kind]())
    check(compared(tmp_path / "exports", made), made)


def model_of(backbone: Backbone, **settings: Any) -> PaucaForCausalLM:
    """The backbone as transformers has it, with the same weights."""
    own = {"think_token_id": TOKENIZER.think_id, "context": 32} | settings
    model = PaucaForCausalLM(PaucaConfig(to_dict(backbone.config), **own)).double().eval()
    model.backbone.load_state_dict(backbone.state_dict())
    return model


@torch.no_grad()
def test_a_cache_is_read_on_by_hand_and_by_generate() -> None:
    model = model_of(build_backbone(BACKBONE_CASES["3*gdn attn"]))
    tokens = torch.arange(8, 20)[None]
    whole = model(tokens).logits
    begun = model(tokens[:, :7], use_cache=True)
    rest = model(tokens[:, 7:], past_key_values=begun.past_key_values, logits_to_keep=2)
    torch.testing.assert_close(rest.logits, whole[:, -2:], **ROUNDING)
    cache = model.make_cache(40)
    asked = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 1}
    at_once = model.generate(tokens, **asked)
    model(tokens[:, :7], past_key_values=cache)
    later = model.generate(tokens, past_key_values=cache, **asked)
    assert later.tolist() == at_once.tolist()
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.batch_size == -1


def test_labels_are_shifted_into_a_loss_that_has_gradients() -> None:
    model = model_of(build_backbone(BACKBONE_CASES["window mamba2 tied"]))
    tokens = torch.arange(8, 16)[None]
    out = model(tokens, labels=tokens)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), tokens[0, 1:])
    torch.testing.assert_close(out.loss.float(), expected)
    out.loss.backward()
    assert model.get_input_embeddings().weight.grad is not None
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@torch.no_grad()
def test_loops_and_thoughts_are_arguments() -> None:
    looped = build_backbone(BACKBONE_CASES["looped"])
    tokens = torch.arange(8, 16)[None]
    found = model_of(looped)(tokens, loops=5).logits
    out = looped(tokens, loops=5)
    torch.testing.assert_close(found, out.readout(out.hidden_BTD), **ROUNDING)
    thinks = model_of(thinking_backbone(LATENTS["feedback"]()))
    asked = torch.tensor([[9, 10, TOKENIZER.think_id]])
    few, many = (thinks(asked, thoughts=n).logits[:, -1] for n in (1, 4))
    assert not torch.allclose(few, many)
    torch.testing.assert_close(thinks(asked).logits[:, -1], thinks(asked, thoughts=6).logits[:, -1])


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (lambda m, t: m(t, past_key_values=DynamicCache()), "make one with model.make_cache"),
        (
            lambda m, t: m.generate(t, max_new_tokens=2, cache_implementation="static"),
            "leave cache_implementation",
        ),
        (lambda m, t: m.make_cache(5).crop(1), "can't be shortened"),
        (lambda m, t: m(t, stop="kl"), "stop=kl"),
    ],
)
def test_what_cannot_be_is_refused(act: Callable[[Any, Any], object], line: str) -> None:
    model = model_of(build_backbone(BACKBONE_CASES["3*gdn attn"]))
    with pytest.raises(ValueError, match=line):
        act(model, torch.arange(8, 16)[None])


def test_what_fills_in_gives_logits_and_refuses_to_write() -> None:
    model = model_of(build_backbone(BACKBONE_CASES["whole nested"]), fills=True)
    tokens = torch.arange(8, 16)[None]
    assert model(tokens).logits.shape == (1, 8, model.config.vocab_size)
    for act in (lambda: model.generate(tokens), lambda: model(tokens, use_cache=True)):
        with pytest.raises(ValueError, match="fills answers in"):
            act()
