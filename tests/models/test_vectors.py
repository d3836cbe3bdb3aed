"""Latent thought vectors: what is inferred, from what, and what is read with it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from models.backbone import Backbone
from models.depth.depth import DepthConfig
from models.depth.draws import Draws, key_of
from models.depth.fixed import FixedDepthConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.posterior import Posterior, fit, summed_nats
from tests.models.cases import (
    ROUNDING,
    VOCABULARY,
)
from tests.models.vectors import (
    DRAWS,
    LAYOUTS,
    QUESTIONS,
    SEGMENTS,
    VECTORS,
    changed,
    logits,
    logits_of,
    made,
    prefixed_logits,
    roles,
    spans,
    tokens,
    vector,
    with_,
)


@pytest.fixture(params=LAYOUTS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return made(request.param)


# The posterior


def random_posterior() -> Posterior:
    return Posterior(*torch.randn(2, 4, 3, 5, dtype=torch.float64))


def test_the_divergence_is_the_closed_form() -> None:
    posterior = random_posterior()
    spread = (posterior.log_variance_NPW / 2).exp()
    normal = Normal(posterior.mean_NPW, spread)
    expected = kl_divergence(normal, Normal(torch.zeros(()).double(), torch.ones(()).double()))
    torch.testing.assert_close(posterior.divergence(), expected.sum(dim=(1, 2)))
    prior = Posterior.prior((4, 3, 5), posterior.mean_NPW)
    assert torch.equal(prior.divergence(), torch.zeros(4).double())


def test_samples_have_the_posteriors_mean_and_spread() -> None:
    posterior = random_posterior()
    seen = posterior.sample(torch.randn(20_000, 4, 3, 5, dtype=torch.float64))
    spread = (posterior.log_variance_NPW / 2).exp()
    assert ((seen.mean(dim=0) - posterior.mean_NPW) / spread).abs().max() < 0.04
    assert (seen.std(dim=0) / spread - 1).abs().max() < 0.04


def test_the_scalar_has_the_gradient_of_the_summed_cross_entropy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("models.latent.posterior.READ_AT_ONCE", 3)
    head = torch.nn.Linear(4, VOCABULARY).double()
    hidden = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCABULARY, (8,))
    (actual,) = torch.autograd.grad(summed_nats(hidden, head, targets), hidden)
    plain = F.cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(actual, torch.autograd.grad(plain, hidden)[0])


def elbo_nats(backbone: Backbone, document: Tensor, posterior: Posterior) -> float:
    """-ELBO of one document, over many fixed samples of the vectors."""
    generator = torch.Generator().manual_seed(1)
    shape = (64, *posterior.mean_NPW.shape[1:])
    z = posterior.sample(torch.randn(shape, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        y = prefixed_logits(backbone, document.expand(64, -1), z)[:, :-1]
        each = F.cross_entropy(y.mT, document[1:].expand(64, -1), reduction="none").sum(dim=1)
    return float(each.mean() + posterior.divergence())


def test_inner_steps_lower_every_documents_bound(backbone: Backbone) -> None:
    """From the prior, by small steps: the bound's estimate falls for each of six documents.

    A random backbone is rough, and one sample a step says little: so vectors move it gently here,
    and its predictions are sharp.
    """
    with torch.no_grad():
        vector(backbone).into.weight.mul_(0.1)
        backbone.head.weight.mul_(6)
    read = torch.randint(VOCABULARY, (6, 12))
    prior = Posterior.prior((6, 3, 5), torch.zeros(()).double())
    noise = torch.randn(30, 6, 3, 5, dtype=torch.float64)

    def nats(z: Tensor) -> Tensor:
        y = prefixed_logits(backbone, read, z)[:, :-1]
        return F.cross_entropy(y.mT, read[:, 1:], reduction="sum")

    fitted = fit(prior, nats, noise, 0.03)
    for row, document in enumerate(read):
        own = (slice(row, row + 1),)
        before = Posterior(prior.mean_NPW[own], prior.log_variance_NPW[own])
        after = Posterior(fitted.mean_NPW[own], fitted.log_variance_NPW[own])
        assert elbo_nats(backbone, document, after) < elbo_nats(backbone, document, before), row


# Reading with the vectors


def test_without_steps_it_is_the_plain_backbone_after_a_fixed_prefix(backbone: Backbone) -> None:
    backbone, read = with_(backbone, inner_steps=0), tokens()
    actual = logits(backbone, read)
    for (row, _), span in spans().items():
        zeros = torch.zeros(1, 3, 5, dtype=torch.float64)
        expected = prefixed_logits(backbone, read[row : row + 1, span], zeros)
        torch.testing.assert_close(actual[row, span], expected[0], **ROUNDING)


def adam_fit(
    backbone: Backbone, document: Tensor, fitted: int, noise_SPW: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """The plain twin: one document alone, Adam written out; mean and log-variance."""
    value = [torch.zeros(1, *noise_SPW.shape[1:], dtype=torch.float64) for _ in range(2)]
    first, second = ([torch.zeros_like(x) for x in value] for _ in range(2))
    for step, noise in enumerate(noise_SPW, start=1):
        mean, spread = (x.detach().requires_grad_() for x in value)
        y = prefixed_logits(backbone, document[None, :fitted], mean + (spread / 2).exp() * noise)
        nats = F.cross_entropy(y[0, :-1], document[1:fitted], reduction="sum")
        kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum()
        slopes = torch.autograd.grad(nats + kl, (mean, spread))
        for k, slope in enumerate(slopes):
            first[k] = 0.9 * first[k] + 0.1 * slope
            second[k] = 0.999 * second[k] + 0.001 * slope.square()
            scale = (second[k] / (1 - 0.999**step)).sqrt() + 1e-8
            value[k] = value[k] - rate * first[k] / (1 - 0.9**step) / scale
    return value[0], value[1]


def noise_of(row: int, document: int, training: bool) -> Tensor:
    key = DRAWS.row_key(f"vectors {document}", row) if training else key_of("vectors")
    shape = (VECTORS.inner_steps + 1, 3, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(key)).double()


def plain_logits(
    backbone: Backbone, read: Tensor, training: bool, on: str
) -> tuple[dict[tuple[int, int], Tensor], list[float]]:
    """Logits of each document alone with its own fit, and the nats that fits are off the prior."""
    found, divergences = {}, []
    for (row, document), span in spans().items():
        own = read[row, span]
        fitted = len(own) if on == "document" else QUESTIONS.get((row, document), 0)
        noise = noise_of(row, document, training)
        mean, spread = torch.zeros(2, 1, 3, 5, dtype=torch.float64)
        if fitted > 1:
            mean, spread = adam_fit(backbone, own, fitted, noise[:-1], VECTORS.inner_lr)
        z = mean + (spread / 2).exp() * noise[-1] if training else mean
        found[row, document] = prefixed_logits(backbone, own[None], z)[0]
        divergences.append(float(Posterior(mean, spread).divergence()))
    return found, divergences


@pytest.mark.parametrize("fit_on", ["document", "question"])
def test_training_is_the_plain_fit_of_each_document_alone(backbone: Backbone, fit_on: str) -> None:
    """With the gradients of weights, to which the fitted posterior is a constant."""
    backbone, read = with_(backbone, fit_on=fit_on), tokens()
    out = backbone(read, SEGMENTS, roles_BT=roles(), draws=DRAWS)
    plain, nats = plain_logits(backbone, read, True, fit_on)
    y = logits_of(out)
    pairs = [(y[row, span], plain[row, number]) for (row, number), span in spans().items()]
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)
    weights = [torch.randn(actual.shape, dtype=torch.float64) for actual, _ in pairs]
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    mine, theirs = (
        torch.autograd.grad(
            sum((pair[k] * w).sum() for pair, w in zip(pairs, weights, strict=True)),  # type: ignore[arg-type]
            parameters,
        )
        for k in (0, 1)
    )
    for name, actual, expected in zip(names, mine, theirs, strict=True):
        assert expected.abs().max() > 0, f"{name} has no effect"
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    rows = (sum(nats[:2]) / 2 + sum(nats[2:]) / 3) / 2
    assert float(out.measures["posterior_kl"]) == pytest.approx(rows, rel=1e-6)
    assert not out.measures["posterior_kl"].requires_grad
    assert out.losses == {}


def test_evaluation_reads_the_mean_fitted_to_the_question(backbone: Backbone) -> None:
    read = tokens()
    expected, _ = plain_logits(backbone, read, False, "question")
    actual = logits(backbone, read)
    for (row, document), span in spans().items():
        torch.testing.assert_close(actual[row, span], expected[row, document], rtol=1e-7, atol=1e-8)
    assert backbone(read, SEGMENTS, roles_BT=roles()).measures == {}


@pytest.mark.parametrize("draws", [None, DRAWS], ids=["evaluation", "training"])
def test_changing_a_document_changes_no_other(backbone: Backbone, draws: Draws | None) -> None:
    read = tokens()
    before = logits(backbone, read, draws)
    for (row, document), span in spans().items():
        own = torch.zeros_like(SEGMENTS, dtype=torch.bool)
        own[row, span] = True
        after = logits(backbone, torch.where(own, changed(read), read), draws)
        rest = ~own & (SEGMENTS >= 0)
        assert torch.equal(after[rest], before[rest]), f"document {document} of row {row} leaks"
        assert not torch.equal(after[own], before[own])


def test_an_answer_changes_nothing_before_it_but_a_question_does(backbone: Backbone) -> None:
    """Evaluation sees ahead within a question; training on documents everywhere."""
    assert backbone.latent.sees_ahead and not with_(backbone, inner_steps=0).latent.sees_ahead
    read, span = tokens(), spans()[0, 1]
    first, asked = span.start, span.start + QUESTIONS[0, 1]
    for place, draws, seen in (
        (asked + 2, None, False),
        (asked - 1, None, True),
        (asked + 2, DRAWS, True),
    ):
        other = read.clone()
        other[0, place] = (other[0, place] + 1) % VOCABULARY
        after, before = (logits(backbone, x, draws)[0, first:place] for x in (other, read))
        assert torch.equal(after, before) != seen, place


NOISE = LoopedDepthConfig(loops=2, start="noise", injection="add")


@pytest.mark.parametrize("depth", [FixedDepthConfig(), NOISE], ids=["fixed", "from noise"])
def test_rows_are_the_same_in_any_part_of_the_batch(depth: DepthConfig) -> None:
    """A row with fewer documents than others is shorter alone, and so is the noise it draws."""
    backbone, read = made(depth=depth), tokens()
    whole = logits(backbone, read, DRAWS)
    for row in range(2):
        part = (slice(row, row + 1),)
        draws = replace(DRAWS, places_B=torch.tensor([row]))
        out = backbone(read[part], SEGMENTS[part], roles_BT=roles()[part], draws=draws)
        real = SEGMENTS[row] >= 0
        torch.testing.assert_close(logits_of(out)[0][real], whole[row][real], **ROUNDING)
    again = logits(backbone, read, replace(DRAWS, step=6))
    assert not torch.allclose(again, whole), "another step draws other samples"


def test_a_batch_of_padding_is_read_too(backbone: Backbone) -> None:
    padding = torch.full_like(SEGMENTS, -1)
    for draws in (None, DRAWS):
        out = backbone(tokens(), padding, roles_BT=roles(), draws=draws)
        assert out.hidden_BTD.isfinite().all()
