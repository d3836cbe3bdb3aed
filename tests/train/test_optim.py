"""Muon and AdamW behind one optimiser: each parameter gets exactly its own part's updates."""

import copy
from collections.abc import Callable

import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.looped import LoopedDepthConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.mamba2 import Mamba2Config
from tests.train.runs import ROOT, small_backbone
from train.optim import OptimConfig, RoleOptimizer, hidden_matrices
from train.schema import register_schemas, to_config

BACKBONES = sorted(path.stem for path in (ROOT / "configs" / "backbone").glob("*.yaml"))
BLOCK = {"mlp.gate_up", "mlp.output"}
MATRICES = {
    "attn": BLOCK | {"mixer.qkv", "mixer.output"},
    "gdn": BLOCK
    | {f"mixer.{name}" for name in ("qkv", "beta", "decay.projection", "gate", "output")},
    "mamba2": BLOCK | {f"mixer.{name}" for name in ("gate", "xbc", "time", "output")},
}


def mixed_backbone() -> Backbone:
    mixers = {"attn": AttentionConfig(), "gdn": GatedDeltaNetConfig(), "mamba2": Mamba2Config()}
    config = small_backbone(
        layout="gdn mamba2 attn",
        num_layers=3,
        mixers=mixers,
        depth=LoopedDepthConfig(loops=2),
        vocab_size=64,
        mlp_hidden=24,
    )
    torch.manual_seed(0)
    return Backbone(config)


def gradients(backbone: nn.Module, step: int) -> None:
    """Give every parameter the gradient that a step brings: equal for equal models."""
    generator = torch.Generator().manual_seed(step)
    for parameter in backbone.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(backbone: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in backbone.named_parameters()}


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def composed(name: str) -> Backbone:
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        data = ["data=smoke_bytes"] if name.startswith("bytes") else []
        config, _ = to_config(compose("train", [f"backbone={name}", *data]))
    return built(config.backbone)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_is_in_one_place(name: str) -> None:
    """Muon takes matrices inside blocks; embedding and head, though matrices, go to AdamW."""
    backbone = composed(name)
    optimizer = RoleOptimizer(backbone, OptimConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, backbone.parameters()))
    muon = {id(p) for p in optimizer.param_groups[0]["params"]}
    named = backbone.named_parameters()
    inside = {id(p) for name, p in named if ".blocks." in name and p.ndim == 2}
    assert muon and muon <= inside


@pytest.mark.parametrize("name", ["transformer", "gdn_hybrid", "mamba2_hybrid", "looped"])
def test_these_matrices_go_to_muon(name: str) -> None:
    """Projections; not the filters of short convolutions, which are two-dimensional too."""
    backbone = composed(name)
    expected = {
        f"depth.blocks.{index}.{matrix}.weight"
        for index, block in enumerate(backbone.depth.blocks)
        for matrix in MATRICES[block.mixer.config.kind]
    }
    assert {name for name, _ in hidden_matrices(backbone)} == expected


def built(config: BackboneConfig) -> Backbone:
    config.vocab_size, config.mlp_hidden = 64, 8
    with torch.device("meta"):
        return Backbone(config)


def muon_and_adamw(backbone: Backbone, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """The two of torch, by themselves."""
    muon = [p for _, p in hidden_matrices(backbone)]
    rest = [p for p in backbone.parameters() if all(p is not other for other in muon)]
    first, second = config.betas
    return [
        torch.optim.Muon(
            muon,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            adjust_lr_fn="original",
        ),
        torch.optim.AdamW(rest, lr=config.adam_lr, betas=(first, second), weight_decay=0.0),
    ]


def adamw_alone(backbone: Backbone, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Hidden matrices decay, the rest doesn't; one learning rate, `lr`."""
    decayed = {id(p) for _, p in hidden_matrices(backbone)}
    first, second = config.betas
    groups = [
        {"params": [p], "weight_decay": config.weight_decay if id(p) in decayed else 0.0}
        for p in backbone.parameters()
    ]
    return [torch.optim.AdamW(groups, lr=config.lr, betas=(first, second))]


@pytest.mark.parametrize(("kind", "separate"), [("muon", muon_and_adamw), ("adamw", adamw_alone)])
def test_it_equals_torchs_optimisers_by_themselves(
    kind: str, separate: Callable[..., list[torch.optim.Optimizer]]
) -> None:
    """Under a schedule too: it reaches both parts."""
    config = OptimConfig(kind, lr=0.03, weight_decay=0.1, adam_lr=0.004, betas=[0.8, 0.9])
    mine = mixed_backbone()
    theirs = copy.deepcopy(mine)
    before = weights(mine)
    together: list[torch.optim.Optimizer] = [RoleOptimizer(mine, config)]
    apart = separate(theirs, config)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(part, lambda step: 1 / (step + 1))
        for part in together + apart
    ]
    for step in range(4):
        for backbone, parts in ((mine, together), (theirs, apart)):
            gradients(backbone, step)
            for part in parts:
                part.step()
        for schedule in schedules:
            schedule.step()
    assert_equal(weights(mine), weights(theirs))
    assert not any(torch.equal(value, before[name]) for name, value in weights(mine).items())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_its_state_goes_through_a_file(kind: str, tmp_path) -> None:
    config = OptimConfig(kind)
    first = mixed_backbone()
    optimizer = RoleOptimizer(first, config)
    for step in range(3):
        gradients(first, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    second = copy.deepcopy(first)
    restored = RoleOptimizer(second, config)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for backbone, one in ((first, optimizer), (second, restored)):
        one.param_groups[-1]["lr"] = 0.5  # a schedule's hand must still reach the parts
        gradients(backbone, 3)
        one.step()
    assert_equal(weights(first), weights(second))


def test_parameters_without_a_gradient_stay(tmp_path) -> None:
    """Frozen parts don't even decay."""
    backbone = mixed_backbone()
    optimizer = RoleOptimizer(backbone, OptimConfig(weight_decay=0.5))
    gradients(backbone, 0)
    frozen = {name for name, _ in backbone.named_parameters() if "blocks.0" in name}
    for name, parameter in backbone.named_parameters():
        if name in frozen:
            parameter.grad = None
    before = weights(backbone)
    optimizer.step()
    changed = {name for name, value in weights(backbone).items() if not value.equal(before[name])}
    assert changed == before.keys() - frozen


def test_a_closure_is_called_once_with_gradients_on() -> None:
    backbone = mixed_backbone()
    optimizer = RoleOptimizer(backbone, OptimConfig())
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p.square().sum() for p in backbone.parameters()), torch.zeros(()))
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss is not None and loss.item() > 0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kind": "sgd"}, "optim.kind=sgd is not known: choose muon or adamw"),
        ({"lr": 0.0}, "optim.lr=0.0 must be a number above 0"),
        ({"lr": float("nan")}, "optim.lr=nan"),
        ({"adam_lr": float("inf")}, "optim.adam_lr=inf"),
        ({"weight_decay": -0.1}, "optim.weight_decay=-0.1"),
        ({"momentum": 1.0}, "optim.momentum=1.0"),
        ({"betas": [0.9]}, "optim.betas"),
        ({"betas": [0.9, 1.0]}, "optim.betas"),
    ],
)
def test_impossible_settings_are_named(changes: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        OptimConfig(**changes).validate()
