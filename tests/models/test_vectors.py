"""Latent thought vectors: what is inferred, from what, and what is read with it."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from torch.utils.flop_counter import FlopCounterMode

from models.backbone import Backbone, Output
from models.block import Block
from models.depth.depth import Asked
from models.depth.draws import Draws, key_of
from models.depth.health import loop_health
from models.depth.looped import LoopedDepthConfig
from models.latent.fronts import Fronted, number_documents
from models.latent.posterior import Posterior, fit, summed_nats
from models.latent.vector import Vector, VectorConfig
from models.ops.twin import step_by_step
from tests.models.cases import ROUNDING, VOCABULARY, backbone_config, build_backbone

LENGTH = 21
LAYOUTS = ("attn", "gdn attn")
VECTORS = VectorConfig(vectors=3, width=5, inner_steps=2)
DRAWS = Draws(seed=3, stage=0, step=5, rows=2)
# Two rows: documents with a question and an answer, one of a single token, a text, and padding.
SEGMENTS = torch.tensor([[-1] * 2 + [0] * 9 + [1] * 10, [0] + [1] * 11 + [2] * 6 + [-1] * 3])
QUESTION, ANSWER, TEXT = 1, 4, 5
QUESTIONS = {(0, 0): 5, (0, 1): 6, (1, 1): 4}
"""Tokens of the question of a document of a row; the others have none."""


def spans() -> dict[tuple[int, int], slice]:
    """Where each document of each row stands."""
    found = {}
    for row, ids in enumerate(SEGMENTS.tolist()):
        for document in sorted({*ids} - {-1}):
            start = ids.index(document)
            found[row, document] = slice(start, start + ids.count(document))
    return found


def roles() -> Tensor:
    made = torch.full((2, LENGTH), TEXT)
    for (row, document), length in QUESTIONS.items():
        span = spans()[row, document]
        made[row, span] = ANSWER
        made[row, span.start : span.start + length] = QUESTION
    return made


@pytest.fixture(params=LAYOUTS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return made(request.param)


def made(layout: str = "gdn attn", latent: VectorConfig = VECTORS, **changes: Any) -> Backbone:
    return build_backbone(backbone_config(layout, latent=latent, **changes))


def with_(backbone: Backbone, **settings: Any) -> Backbone:
    """The same weights under other settings of its vectors."""
    other = made(backbone.config.layout, replace(VECTORS, **settings))
    other.load_state_dict(backbone.state_dict())
    return other


def vector(backbone: Backbone) -> Vector:
    assert isinstance(backbone.latent, Vector)
    return backbone.latent


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH))


def changed(tokens_BT: Tensor) -> Tensor:
    return (tokens_BT + torch.randint(1, VOCABULARY, tokens_BT.shape)) % VOCABULARY


def logits_of(out: Output) -> Tensor:
    return out.readout(out.hidden_BTD)


def logits(backbone: Backbone, read: Tensor, draws: Draws | None = None) -> Tensor:
    return logits_of(backbone(read, SEGMENTS, roles_BT=roles(), draws=draws))


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


def prefixed_logits(backbone: Backbone, read: Tensor, z_NPW: Tensor) -> Tensor:
    """Logits of documents, one a row, read after given vectors by the depth alone."""
    places = vector(backbone).prefixes(z_NPW)
    x = torch.cat([places, backbone.embedding(read)], dim=1)
    hidden, _, _ = backbone.depth(x, None, None, Asked(1))
    return backbone.head(backbone.norm(hidden[:, z_NPW.shape[1] :]))


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
        torch.testing.assert_close(
            actual[row, span], expected[row, document], rtol=1e-7, atol=1e-8
        )
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


def test_rows_are_the_same_in_any_part_of_the_batch(backbone: Backbone) -> None:
    read = tokens()
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


# States


def left_padded(lengths: list[int], longest: int) -> tuple[Tensor, Tensor]:
    read = torch.randint(VOCABULARY, (len(lengths), longest))
    segments = torch.full_like(read, -1)
    for row, length in enumerate(lengths):
        segments[row, longest - length :] = 0
    return read, segments


def alone(backbone: Backbone, question: Tensor, answer: Tensor) -> Tensor:
    """Logits of an answer's tokens in one pass over the document."""
    read = torch.cat([question, answer])[None]
    own = torch.full_like(read, ANSWER)
    own[:, : len(question)] = QUESTION
    out = backbone(read, torch.zeros_like(read), roles_BT=own)
    return logits_of(out)[0, len(question) :]


@pytest.mark.parametrize("inference", [False, True])
def test_a_prompt_is_fitted_and_its_answer_decoded(backbone: Backbone, inference: bool) -> None:
    """As generation does: rows leave, fork and enter; each is as one pass over all of it is."""
    with torch.inference_mode(inference):
        read, segments = left_padded([7, 3, 1], 7)
        asked = torch.full_like(read, QUESTION)
        state = backbone.init_state(3, 20, dtype=torch.float64)
        state = backbone(read, segments, state, roles_BT=asked).state
        assert state is not None
        prompts = [own[real >= 0] for own, real in zip(read, segments, strict=True)]
        kept = [2, 0, 0]
        state, questions = state.take(torch.tensor(kept)), [prompts[row] for row in kept]
        said = torch.randint(VOCABULARY, (3, 2))
        logits_of(backbone(said, None, state))
        (entering,) = torch.randint(VOCABULARY, (1, 5))
        fresh = backbone.init_state(1, 20, dtype=torch.float64)
        fresh = backbone(entering[None], None, fresh, roles_BT=asked[:1, :5]).state
        state.put(torch.tensor([1]), fresh)
        questions[1] = entering
        new = torch.randint(VOCABULARY, (3, 3))
        y = torch.cat([logits_of(backbone(new[:, t : t + 1], None, state)) for t in range(3)], 1)
    for row, question in enumerate(questions):
        before = said[row] if row != 1 else said[row, :0]
        expected = alone(backbone, question, torch.cat([before, new[row]]))[len(before) :]
        torch.testing.assert_close(y[row], expected, rtol=1e-8, atol=1e-9)


def test_rows_that_begin_and_rows_that_go_on_share_a_call(backbone: Backbone) -> None:
    """A row of a state that was emptied starts over, beside others, without segments and with."""
    first, second = torch.randint(VOCABULARY, (2, 2, 4))
    expected = [
        logits_of(backbone(torch.cat([first[:1], second[:1]], dim=1)))[0, 4:],
        logits_of(backbone(second[1:]))[0],
    ]
    for segments in (None, torch.tensor([[0] * 4, [7] * 4])):
        state = backbone.init_state(2, 20, dtype=torch.float64)
        state = backbone(first, torch.zeros_like(first), state).state
        assert state is not None
        if segments is None:
            state.put(torch.tensor([1]), backbone.init_state(1, 20, dtype=torch.float64))
        y = logits_of(backbone(second, segments, state))
        for row in range(2):
            torch.testing.assert_close(y[row], expected[row], **ROUNDING)


# Layout, precision, loops


def test_vectors_stand_in_front_of_their_documents() -> None:
    segments = torch.tensor([[-1, 0, 0, 3], [5, 5, 5, 5]])
    number, count = number_documents(segments)
    assert (number.tolist(), count) == ([[-1, 0, 0, 1], [2, 2, 2, 2]], 3)
    laid = Fronted.of(segments, number, torch.ones_like(segments, dtype=torch.bool), count, 2)
    assert laid.source_BL.tolist() == [[0, 8, 9, 1, 2, 10, 11, 3], [12, 13, 4, 5, 6, 7, 14, 14]]
    assert laid.segments_BL is not None
    assert laid.segments_BL.tolist() == [[-1, 0, 0, 0, 0, 3, 3, 3], [5] * 6 + [-1] * 2]
    assert torch.equal(laid.tokens_of(laid.source_BL), torch.arange(8).view(2, 4))
    number, count = number_documents(segments, torch.tensor([False, True]))
    assert (number.tolist(), count) == ([[-1, 0, 0, 1], [-1] * 4], 2)
    kept = torch.tensor([[True, True, False, False], [False] * 4])
    part = Fronted.of(segments, number, kept, count, 2)
    assert part.source_BL.tolist() == [[0, 8, 9, 1], [12] * 4]


def test_it_trains_under_autocast() -> None:
    backbone, read = made().float(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        y = logits(backbone, read, DRAWS)
    y.float().square().mean().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_states_of_loops_keep_the_vectors_positions() -> None:
    """What a recorded state finishes as, and its health, are of the right positions."""
    backbone = made(depth=LoopedDepthConfig(loops=3, coda=1), num_layers=2)
    out = backbone(tokens(), SEGMENTS, roles_BT=roles(), record=True, layers=True)
    ran = out.trajectory
    torch.testing.assert_close(out.finish(ran.states[-1]), out.hidden_BTD, **ROUNDING)
    assert all(layer.shape[:2] == (2, LENGTH) for layer in ran.layers)
    assert ran.segments_BT is not None and ran.states[0].shape[:2] == ran.segments_BT.shape
    assert loop_health(ran, SEGMENTS)["state_norm"] > 0


# What it costs


class EveryModule(nullcontext[None]):
    """Says of all modules that they are one."""

    parents = frozenset({"Global"})


@pytest.mark.parametrize("question", [2, 9])
def test_what_a_fit_runs_is_what_it_says(question: int) -> None:
    backbone, calls = made(), []
    for module in backbone.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, given, __: calls.append(given[0].shape[1]))
    read, own = torch.randint(VOCABULARY, (1, 12)), torch.full((1, 12), ANSWER)
    own[:, :question] = QUESTION
    backbone(read, torch.zeros_like(read), roles_BT=own)
    fitting, layers = backbone.fitting(question), 2
    once = [3 + question - 1] * layers * VECTORS.inner_steps
    assert calls == once + [3 + 12] * layers
    assert fitting.passes * layers == 3 * sum(once)
    assert fitting.cost.serial_steps == 2 * len(once)
    assert fitting.latent_steps == 3 * VECTORS.inner_steps


def test_a_fit_costs_at_most_what_is_counted(backbone: Backbone) -> None:
    """Three forward passes are an upper bound: no gradient by the weights is taken."""
    read, own = torch.randint(VOCABULARY, (1, 12)), torch.full((1, 12), QUESTION)

    def counted(roles_BT: Tensor | None) -> int:
        counter = FlopCounterMode(display=False)
        # Its hooks on modules, which tell FLOPs apart by module, don't know autograd.grad.
        counter.mod_tracker = EveryModule()  # type: ignore[assignment]
        with step_by_step(), counter:
            backbone(read, torch.zeros_like(read), roles_BT=roles_BT)
        return counter.get_total_flops()

    fit_flops, claimed = counted(own) - counted(None), backbone.fitting(12).cost.flops
    assert 2 / 3 * claimed < fit_flops < claimed
    assert counted(None) == pytest.approx(backbone.prefill_cost(12, readouts=0).flops, rel=0.01)


def test_costs_by_hand() -> None:
    """Width 16, feed-forward 24, 24 words, convolutions over 3: two blocks of attention after three
    vectors of five.
    """
    backbone, head = made("attn"), 2 * 16 * 24
    block = 2 * (4 * 16 * 16 + 3 * 16 * 24 + 3 * 16 * 3)

    def stack(first: int, last: int) -> int:
        """Two blocks at these positions, of which each sees itself and all before."""
        return sum(2 * (block + 4 * 16 * seen) for seen in range(first, last + 1))

    vectors = 3 * 2 * 5 * 16
    assert backbone.prefill_cost(7).flops == stack(1, 3 + 7) + vectors + head
    assert backbone.cost(7).flops == stack(3 + 7, 3 + 7) + head
    assert backbone.cost(1).flops == stack(1, 3 + 1) + vectors + head
    held = 2 * 4 * ((3 + 7) * 2 * 16 + 2 * 3 * 16)
    assert backbone.cost(7).state_bytes == held
    assert backbone.float().init_state(1, 7).nbytes == held
    own = sum(weight.numel() for weight in backbone.latent.parameters())
    assert backbone.prefill_cost(7).weight_bytes - backbone.cost(7).weight_bytes == 4 * own
    step = 3 * (stack(1, 3 + 6) + vectors + 6 * head)
    assert backbone.fitting(7).cost.flops == 2 * step
    assert backbone.fitting(7).latent_steps == 2 * 3
    assert backbone.fitting(7).cost.serial_steps == 2 * 2 * 2
    for nothing in (backbone.fitting(1), with_(backbone, inner_steps=0).fitting(7)):
        assert (nothing.cost.flops, nothing.passes, nothing.latent_steps) == (0, 0, 0)


@pytest.mark.parametrize("refused", [{"vectors": 0}, {"width": 0}, {"inner_steps": -1}])
def test_impossible_numbers_are_refused(refused: dict[str, int]) -> None:
    ((name, value),) = refused.items()
    with pytest.raises(ValueError, match=rf"latent\.{name}={value} must be at least"):
        made(latent=replace(VECTORS, **refused))


def test_other_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latent\.inner_lr=0 must be a finite number above 0"):
        made(latent=replace(VECTORS, inner_lr=0))
    with pytest.raises(ValueError, match=r"latent\.fit_on=all is not known: choose document or"):
        made(latent=replace(VECTORS, fit_on="all"))
