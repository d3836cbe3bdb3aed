"""What every mixer promises about documents, the future, its twin and precision."""

import pytest
import torch
from torch import Tensor

from models.mixer import Mixer
from models.mixers.listing import MIXERS
from models.ops.twin import step_by_step
from tests.models.cases import (
    LENGTH,
    MIXER_CASES,
    PACKINGS,
    ROUNDING,
    SITE,
    build_mixer,
    documents,
    segments_of,
)
from tests.models.published_cases import CHUNK, small_chunks


def inputs(batch: int = 2, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, SITE.dim, dtype=torch.float64).to(dtype)


def test_changing_a_document_changes_no_other(
    mixer: Mixer, segments: Tensor, dtype: torch.dtype
) -> None:
    mixer, x = mixer.to(dtype), inputs(dtype=dtype)
    before = mixer(x, segments)[0]
    for name, own in documents(segments):
        changed = torch.where(own[..., None], 5 * inputs(dtype=dtype), x)
        after = mixer(changed, segments)[0]
        leaked = (after - before)[~own].abs().max()
        assert torch.equal(after[~own], before[~own]), f"{name} leaks: others change by {leaked:g}"
        assert not torch.equal(after[own], before[own]), f"{name} ignores its own inputs"


def test_gradients_stay_in_the_document_and_the_past(causal_mixer: Mixer, segments: Tensor) -> None:
    x = inputs().requires_grad_()
    y = causal_mixer(x, segments)[0]
    for name, own in documents(segments):
        middle = int(own.nonzero()[:, 1].float().mean())
        seen = own & (torch.arange(LENGTH) <= middle)
        (gradient,) = torch.autograd.grad(y[seen].square().sum(), x, retain_graph=True)
        assert gradient[~seen].count_nonzero() == 0, f"{name} draws gradient from outside its past"
        assert gradient[seen].abs().sum(dim=-1).min() > 0, f"{name} ignores tokens that it may see"


@pytest.mark.parametrize("packing", [None, "several"])
def test_the_future_changes_nothing(
    causal_mixer: Mixer, packing: str | None, dtype: torch.dtype
) -> None:
    mixer, x = causal_mixer.to(dtype), inputs(dtype=dtype)
    segments = None if packing is None else PACKINGS[packing]
    before = mixer(x, segments)[0]
    for now in (1, 7, 8, 15, LENGTH - 1):
        changed = torch.cat([x[:, :now], 5 * inputs(length=LENGTH - now, dtype=dtype)], dim=1)
        after = mixer(changed, segments)[0]
        assert torch.equal(after[:, :now], before[:, :now]), f"tokens before {now} see the future"
        assert not torch.equal(after[:, now], before[:, now]), f"token {now} ignores its input"


@pytest.mark.parametrize("kind", MIXERS)
def test_long_rows_are_isolated_and_causal(kind: str) -> None:
    """At the default chunk size, and beyond the blocks that fused attention works in."""
    mixer, segments = (
        build_mixer(MIXERS[kind](), dtype=torch.float32),
        segments_of([[150, 300, 170]]),
    )
    x = inputs(1, segments.shape[1], torch.float32)
    before = mixer(x, segments)[0]
    for name, own in documents(segments):
        own &= torch.arange(x.shape[1]) % 450 >= 80  # the end of the first, all of the others
        changed = torch.where(own[..., None], 5 * inputs(1, x.shape[1], torch.float32), x)
        after = mixer(changed, segments)[0]
        assert torch.equal(after[~own], before[~own]), f"{name} leaks"


def results(mixer: Mixer, x_BTD: Tensor, segments: Tensor | None) -> dict[str, Tensor]:
    """Outputs, and gradients of a random projection of them by inputs and each parameter."""
    x_BTD = x_BTD.clone().requires_grad_()
    y = mixer(x_BTD, segments)[0]
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    gradients = torch.autograd.grad((y * weights).sum(), [x_BTD, *parameters])
    return dict(zip(["output", "input", *names], [y, *gradients], strict=True))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


CHUNKS_AND_LENGTHS = [
    (case, chunk_size, length)
    for case, config in MIXER_CASES.items()
    for chunk_size, length in [(8, 1), (8, 8), (8, 9), (8, 21), (1, 5), (3, 7), (64, 21)]
    if chunk_size == CHUNK or hasattr(config, "chunk_size")
]


@pytest.mark.parametrize("packing", [None, "several", "short", "left padded"])
@pytest.mark.parametrize(("case", "chunk_size", "length"), CHUNKS_AND_LENGTHS)
def test_chunked_equals_step_by_step(
    case: str, chunk_size: int, length: int, packing: str | None
) -> None:
    mixer = build_mixer(small_chunks(MIXER_CASES[case], chunk_size))
    x = inputs(length=length)
    segments = None if packing is None else PACKINGS[packing][:, -length:]
    fast = results(mixer, x, segments)
    with step_by_step():
        plain = results(mixer, x, segments)
    assert_same(fast, plain, **ROUNDING)


def test_every_parameter_is_used(mixer: Mixer) -> None:
    for name, gradient in results(mixer, inputs(), None).items():
        assert gradient.count_nonzero() > 0, f"{name} has no effect"


def test_one_document_needs_no_segments(mixer: Mixer) -> None:
    x = inputs()
    torch.testing.assert_close(mixer(x)[0], mixer(x, PACKINGS["one"])[0], **ROUNDING)


def test_ids_of_documents_are_only_names(mixer: Mixer) -> None:
    x, segments = inputs(), PACKINGS["several"]
    assert torch.equal(mixer(x, segments)[0], mixer(x, 7 - 3 * segments)[0])


def test_without_a_state_none_is_returned(mixer: Mixer) -> None:
    assert mixer(inputs())[1] is None


@pytest.mark.parametrize("twin", [False, True], ids=["fast", "twin"])
def test_half_precision_stays_close(mixer: Mixer, twin: bool) -> None:
    x, segments = inputs(), PACKINGS["several"]
    expected = mixer(x, segments)[0]
    half = mixer.to(torch.bfloat16)
    if twin:
        with step_by_step():
            y = half(x.bfloat16(), segments)[0]
    else:
        y = half(x.bfloat16(), segments)[0]
    assert y.dtype == torch.bfloat16
    error = (y.double() - expected).norm() / expected.norm()
    assert error < 0.05, f"bfloat16 is off by {error:.1%}"


def test_autocast_stays_close(mixer: Mixer) -> None:
    x, segments = inputs(), PACKINGS["several"]
    expected = mixer(x, segments)[0]
    mixer = mixer.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x.float(), segments)[0]
    error = (y.double() - expected).norm() / expected.norm()
    assert error < 0.05, f"autocast is off by {error:.1%}"


def test_autocast_reads_on(causal_mixer: Mixer) -> None:
    x, mixer = inputs().float(), causal_mixer.float()
    with torch.autocast("cpu", torch.bfloat16):
        state = mixer.init_state(2, LENGTH, "cpu", torch.float32)
        parts = [mixer(part, None, state) for part in x[:, :6].split([4, 1, 1], dim=1)]
    assert all(part.isfinite().all() for part, _ in parts)
