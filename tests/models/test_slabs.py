"""Reading in slabs of time changes nothing but where the work is done."""

import pytest
import torch
from torch import Tensor

from models import slabs
from models.mixer import MixerConfig, Site
from models.mixers.attention import AttentionConfig
from models.mixers.rwkv7 import RWKV7Config
from tests.models.cases import (
    LENGTH,
    MIXER_CASES,
    PACKINGS,
    ROUNDING,
    SITE,
    build_mixer,
    documents,
)
from tests.models.test_mixer_conformance import assert_same, inputs, results


@pytest.fixture
def in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the short sequences of the tests into slabs that end anywhere in chunks and documents."""
    monkeypatch.setattr(slabs, "slab_length", lambda x: 6)


def recurrent(config: MixerConfig) -> bool:
    """Whether a token costs the same at any context; a window of keys is no recurrence."""
    mixer = config.build(SITE)
    flat = mixer.cost(1000).flops == mixer.cost(2000).flops
    return flat and not isinstance(config, AttentionConfig)


RECURRENT = [case for case, config in MIXER_CASES.items() if recurrent(config)]


@pytest.mark.parametrize("case", RECURRENT)
def test_every_recurrent_mixer_reads_in_slabs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, seen = build_mixer(MIXER_CASES[case]), []
    whole = mixer(inputs(), None)[0]
    monkeypatch.setattr(slabs, "slab_length", lambda x: seen.append(x) or 6)
    assert mixer(inputs(), None)[0].shape == whole.shape
    assert seen, "forward is not marked @in_slabs"


@pytest.mark.parametrize("packing", [None, "several", "short", "left padded"])
@pytest.mark.parametrize("case", RECURRENT)
def test_outputs_and_gradients_are_those_of_one_call(
    case: str, packing: str | None, request: pytest.FixtureRequest
) -> None:
    mixer, x = build_mixer(MIXER_CASES[case]), inputs()
    segments = None if packing is None else PACKINGS[packing]
    whole = results(mixer, x, segments)
    request.getfixturevalue("in_slabs")
    assert_same(results(mixer, x, segments), whole, **ROUNDING)


@pytest.mark.parametrize("case", RECURRENT)
def test_a_state_goes_on_from_the_last_slab(case: str, request: pytest.FixtureRequest) -> None:
    mixer, x, segments = build_mixer(MIXER_CASES[case]), inputs(), PACKINGS["several"]
    ends: list[tuple[Tensor, Tensor]] = []
    for _ in range(2):
        state = mixer.init_state(2, LENGTH, "cpu", x.dtype)
        y, state = mixer(x[:, :15], segments[:, :15], state)
        ends.append((y, mixer(x[:, 15:16], segments[:, 15:16], state)[0]))
        request.getfixturevalue("in_slabs")
    for whole, slabbed in zip(*ends, strict=True):
        torch.testing.assert_close(slabbed, whole, **ROUNDING)


@pytest.mark.usefixtures("in_slabs")
@pytest.mark.parametrize("case", RECURRENT)
def test_documents_stay_apart_bit_for_bit(case: str) -> None:
    mixer, segments = build_mixer(MIXER_CASES[case], dtype=torch.float32), PACKINGS["several"]
    x = inputs(dtype=torch.float32)
    before = mixer(x, segments)[0]
    for name, own in documents(segments):
        changed = torch.where(own[..., None], 5 * inputs(dtype=torch.float32), x)
        assert torch.equal(mixer(changed, segments)[0][~own], before[~own]), f"{name} leaks"


def test_values_handed_to_later_layers_are_those_of_one_call(
    request: pytest.FixtureRequest,
) -> None:
    """RWKV-7's later layers read the first layer's values, token by token."""
    layers = [
        build_mixer(RWKV7Config(), Site(16, 4, layer, 3, "rwkv7", first=layer == 0))
        for layer in range(2)
    ]
    x, segments, outputs = inputs().requires_grad_(), PACKINGS["several"], []
    for _ in range(2):
        shared: dict[str, Tensor] = {}
        y = layers[0](x, segments, None, shared)[0]
        y = layers[1](y, segments, None, shared)[0]
        outputs.append((y, torch.autograd.grad(y.square().sum(), x)[0], shared["rwkv7"]))
        request.getfixturevalue("in_slabs")
    for whole, slabbed in zip(*outputs, strict=True):
        torch.testing.assert_close(slabbed, whole, **ROUNDING)


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ((1, 9000, 256), 1024),
        ((4, 9000, 256), 256),
        ((64, 9000, 64), 64),
        ((1, 9000, 4096), 256),
    ],
)
def test_slabs_fill_a_mebibyte_in_whole_chunks(shape: tuple[int, int, int], length: int) -> None:
    assert slabs.slab_length(torch.empty(shape)) == length
    assert slabs.slab_length(torch.empty(shape, device="meta")) == shape[1]
