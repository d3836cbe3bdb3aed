"""The sparse autoencoder: what has a gradient, what has norm 1, what it is measured by."""

import pytest
import torch

from train.autoencoder import Autoencoder, autoencoder_loss, kept
from train.concept_training import measure, train_step
from train.concepts_config import ConceptsConfig

N, D, C, K = 200, 6, 20, 3


def hidden(seed: int = 0) -> torch.Tensor:
    """Sums of few of some hidden directions, far from zero, of an odd scale."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(10, D, generator=torch.Generator().manual_seed(9))
    strength = torch.rand(N, 10, generator=generator)
    strength *= torch.rand(N, 10, generator=generator) < 0.2
    return 7 * (strength @ directions) + 3


def begun() -> Autoencoder:
    autoencoder = Autoencoder(D, C, K)
    autoencoder.begin(hidden(), torch.Generator().manual_seed(1))
    return autoencoder


def fitted(config: ConceptsConfig, steps: int = 200) -> tuple[Autoencoder, torch.Tensor]:
    autoencoder, silent_C = begun(), torch.zeros(C, dtype=torch.long)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=0.02)
    for step in range(steps):
        active_NC = train_step(autoencoder, optimizer, hidden(step), silent_C, config)
        silent_C = torch.where((active_NC > 0).any(dim=0), 0, silent_C + 1)
    return autoencoder, silent_C


def test_the_largest_scores_are_kept_where_they_are_positive() -> None:
    scores = torch.tensor([[3.0, -1.0, 2.0, 4.0], [-3.0, -1.0, 0.5, -4.0]])
    expected = torch.tensor([[3.0, 0.0, 0.0, 4.0], [0.0, 0.0, 0.5, 0.0]])
    assert torch.equal(kept(scores, 2), expected)


def test_gradients_reach_active_concepts_alone() -> None:
    autoencoder = begun()
    made = autoencoder(hidden()[:2])
    never = torch.zeros(C, dtype=torch.bool)
    autoencoder_loss(autoencoder, made, never, 1.0).backward()
    active = (made.active_NC > 0).any(dim=0)
    assert 0 < int(active.sum()) <= 2 * K
    for weight in (autoencoder.encoder_CD, autoencoder.decoder_CD, autoencoder.bias_C):
        assert weight.grad is not None
        reached = weight.grad.view(C, -1).abs().amax(dim=1) > 0
        assert torch.equal(reached, active)


def test_the_auxiliary_loss_reaches_dead_concepts() -> None:
    autoencoder = begun()
    made = autoencoder(hidden()[:2])
    dead = (made.active_NC == 0).all(dim=0)
    autoencoder_loss(autoencoder, made, dead, 1.0).backward()
    assert autoencoder.encoder_CD.grad is not None
    assert int((autoencoder.encoder_CD.grad[dead].abs().amax(dim=1) > 0).sum()) > 0


def test_what_it_reads_has_mean_square_one() -> None:
    autoencoder = begun()
    x = autoencoder.scale * hidden() - autoencoder.pre_bias_D
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(D), atol=1e-4, rtol=0)
    assert float(x.square().mean().detach()) == pytest.approx(1, rel=1e-4)


def test_columns_keep_norm_one_and_dead_concepts_are_revived() -> None:
    config = ConceptsConfig(num_concepts=C, active=K, dead_after=10)
    autoencoder, silent = fitted(config)
    torch.testing.assert_close(autoencoder.decoder_CD.norm(dim=1), torch.ones(C))
    _, silent_without = fitted(ConceptsConfig(C, K, dead_after=10, auxiliary=0.0))
    assert int((silent >= 10).sum()) <= int((silent_without >= 10).sum())
    quality = measure(autoencoder, [hidden(1000)])
    assert quality.explained_variance > 0.9
    assert quality.explained_variance > measure(begun(), [hidden(1000)]).explained_variance


def test_explained_variance_by_hand() -> None:
    autoencoder = begun()
    states = [hidden(5), hidden(6)[:7]]
    every = torch.cat(states)
    again = autoencoder.decode(autoencoder.encode(every))
    left = sum(float((every[i] - again[i]).detach().square().sum()) for i in range(len(every)))
    spread = float(((every - every.mean(dim=0)) ** 2).sum())
    quality = measure(autoencoder, states)
    assert quality.explained_variance == pytest.approx(1 - left / spread, rel=1e-4)
    used = {int(c) for c in autoencoder.encode(every).nonzero()[:, 1]}
    assert quality.dead_share == pytest.approx(1 - len(used) / C)


def test_attribution_is_activation_times_gradient() -> None:
    autoencoder, states = begun().double(), hidden().double()
    weights = torch.randn(N, D, dtype=torch.float64)
    active = autoencoder.encode(states).detach().requires_grad_()
    (autoencoder.decode(active).square() * weights).sum().backward()
    gradient = 2 * autoencoder.decode(active).detach() * weights
    found = autoencoder.attribution(active.detach(), gradient)
    assert active.grad is not None
    torch.testing.assert_close(found, active.detach() * active.grad)


@pytest.mark.parametrize(
    ("name", "value"), [("num_concepts", 0), ("active", 513), ("lr", 0.0), ("auxiliary", -1.0)]
)
def test_settings_that_cannot_be_are_refused(name: str, value: float) -> None:
    config = ConceptsConfig()
    setattr(config, name, value)
    with pytest.raises(ValueError, match=f"concepts.{name}={value}"):
        config.validate()


def test_a_layer_that_the_teacher_has_not_is_refused() -> None:
    assert [ConceptsConfig().resolve_layer(layers) for layers in (1, 2, 5)] == [1, 1, 2]
    with pytest.raises(ValueError, match=r"concepts.layer=3 must lie between 1 and .*=2"):
        ConceptsConfig(layer=3).resolve_layer(2)
