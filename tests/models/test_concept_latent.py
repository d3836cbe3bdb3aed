"""Continuous concepts: what stands where, the loss by hand, and which stacks have no place."""

import math

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.concept import Concept, ConceptConfig, concept_loss
from tests.models.cases import VOCABULARY, backbone_config, build_backbone

SMALL = ConceptConfig(num_concepts=6, active=2, num_labels=2)


def concept_backbone(latent: ConceptConfig = SMALL, layout: str = "attn") -> Backbone:
    return build_backbone(backbone_config(layout, 3, latent=latent))


def concept_of(backbone: Backbone) -> Concept:
    assert isinstance(backbone.latent, Concept)
    return backbone.latent


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, 7))


def test_a_concept_is_the_sum_of_its_active_vectors() -> None:
    latent = concept_of(concept_backbone())
    logits = torch.tensor([[[0.5, -1.0, 3.0, 0.1, 2.0, -4.0]]], dtype=torch.float64)
    expected = 3 * latent.compress.weight[:, 2] + 2 * latent.compress.weight[:, 4]
    torch.testing.assert_close(latent.mix(logits)[0, 0], expected + latent.compress.bias)


def test_layers_above_read_every_token_and_its_concept() -> None:
    backbone, seen = concept_backbone(), []
    for block in backbone.depth.blocks:
        block.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    out = backbone(tokens(), layers=True)
    below, above, top = seen
    assert below.shape == (2, 7, 16) and above.shape == top.shape == (2, 14, 16)
    latent = concept_of(backbone)
    assert torch.equal(above[:, ::2], out.trajectory.layers[0])
    logits = latent.head(latent.norm(above[:, ::2]))
    scale = above[:, ::2].square().mean(dim=-1, keepdim=True).sqrt()
    torch.testing.assert_close(above[:, 1::2], scale * latent.mix(logits))


def test_what_layers_return_stays_a_position_a_token() -> None:
    backbone, read = concept_backbone(), tokens()
    out = backbone(read, layers=True, record=True)
    assert [layer.shape for layer in out.trajectory.layers] == [(2, 7, 16)] * 3
    last = out.trajectory.layers[-1]
    assert torch.equal(out.trajectory.states[0], last)
    torch.testing.assert_close(out.finish(last), out.hidden_BTD)


def test_the_loss_is_the_mean_cross_entropy_of_the_labels() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[0, 0] = torch.tensor([math.log(5.0), 0.0, 0.0, 0.0])
    labels = torch.full((2, 3, 2), -1)
    labels[0, 0] = torch.tensor([0, 2])  # log(8/5) and log(8)
    labels[0, 1, 1] = 3  # log(4)
    labels[1, 2, 0] = 1  # log(4)
    first = ((math.log(8 / 5) + math.log(8)) / 2 + math.log(4)) / 2
    assert float(concept_loss(logits, labels)) == pytest.approx((first + math.log(4)) / 2)
    parts = [concept_loss(logits[row : row + 1], labels[row : row + 1]) for row in (0, 1)]
    assert float(sum(parts)) / 2 == pytest.approx((first + math.log(4)) / 2)


def test_without_labels_there_is_no_loss() -> None:
    logits, labels = torch.randn(1, 3, 4), torch.full((1, 3, 2), -1)
    assert float(concept_loss(logits, labels)) == 0
    assert concept_backbone()(tokens()).losses == {}


def test_labels_teach_the_head_and_what_is_below() -> None:
    backbone = concept_backbone()
    labels = torch.randint(6, (2, 7, 2))
    (loss,) = backbone(tokens(), labels_BTM=labels).losses.values()
    loss.backward()
    taught = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert {"latent.head.weight", "latent.norm.weight", "embedding.weight"} <= taught
    assert "latent.compress.weight" not in taught
    assert not any(name.startswith("depth.blocks.1") for name in taught)


BAD: list[tuple[str, BackboneConfig]] = [
    ("num_layers=1: choose at least 2", backbone_config("attn", 1, latent=SMALL)),
    ("layer=2 must leave", backbone_config("attn", 2, latent=ConceptConfig(layer=2))),
    ("layer=0 must leave", backbone_config("attn", 2, latent=ConceptConfig(layer=0))),
    ("active=7", backbone_config("attn", latent=ConceptConfig(num_concepts=6, active=7))),
    ("num_labels=0", backbone_config("attn", latent=ConceptConfig(num_labels=0))),
    ("labels=best", backbone_config("attn", latent=ConceptConfig(labels="best"))),
    ("weight=-1", backbone_config("attn", latent=ConceptConfig(weight=-1))),
    (
        "one place in a stack .* choose depth=fixed",
        backbone_config("attn", latent=SMALL, depth=LoopedDepthConfig(loops=2)),
    ),
    ("share values", backbone_config("rwkv7", 2, latent=SMALL)),
]


@pytest.mark.parametrize(("reason", "config"), BAD)
def test_a_place_that_is_not_there_is_refused(reason: str, config: BackboneConfig) -> None:
    with pytest.raises(ValueError, match=reason):
        build_backbone(config)
