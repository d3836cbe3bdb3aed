"""Exports in a process without this project: the same logits, the same texts, for every family."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.backbone import Backbone
from models.config import BackboneConfig
from models.latent.listing import LATENTS
from models.mixers.listing import MIXERS
from models.mlps.moe import MoEConfig
from tests.eval.thinking import thinking_backbone
from tests.models.cases import BACKBONE_CASES, backbone_config, build_backbone
from tests.models.exported import write_case

SCRIPT = Path(__file__).parent / "load_exports.py"
THINKING = [kind for kind, made in LATENTS.items() if made.thinks]


def mixers_in_threes() -> Iterator[BackboneConfig]:
    """Every registered mixer, three to a backbone."""
    names = list(MIXERS)
    for start in range(0, len(names), 3):
        some = names[start : start + 3]
        yield backbone_config(" ".join(some), len(some))


def cases() -> dict[str, Callable[[], Backbone]]:
    """Backbones of every family, by name; few of each."""
    configs = {config.layout: config for config in mixers_in_threes()}
    configs["mixed"] = backbone_config(
        "attn@a gdn+attn attn@a", 3, tie_embeddings=True, mlp=MoEConfig(), canon="AC"
    )
    for name in ("nested depth", "stops kl", "published huginn", "whole in part"):
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
