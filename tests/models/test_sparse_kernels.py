"""NSA and MoBA run through fla's kernels, here through stand-ins."""

import pytest
import torch

from models import kernels
from models.kernels import KERNELS, TOLERANCE, describe
from models.mixer import MixerConfig, Site
from models.mixers.moba import MixtureOfBlocksConfig
from models.mixers.nsa import NativeSparseConfig
from tests.models.stand_ins import STAND_INS
from tests.models.test_kernels import HALF, forgetful, install

__all__ = ["forgetful"]  # a fixture: pytest finds it here


@pytest.mark.parametrize("packing", [None, "documents"])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("moba", MixtureOfBlocksConfig(num_heads=4, num_kv_heads=2, block_size=8, num_selected=3)),
        (
            "selected_blocks",
            NativeSparseConfig(
                num_heads=16, num_kv_heads=1, head_dim=16, block_size=8, num_selected=3, window=9
            ),
        ),
    ],
)
def test_block_sparse_mixers_run_through_their_kernels(
    name: str, config: MixerConfig, packing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole layer, packed and not; what goes on from a state stays with torch."""
    mixer = config.build(Site(dim=64, head_dim=16)).to(HALF)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(std=0.2)
    x, documents = torch.randn(2, 50, 64, dtype=HALF), torch.tensor([[0] * 33 + [1] * 17] * 2)
    segments = None if packing is None else documents
    expected = mixer(x, segments)[0]
    monkeypatch.setattr(kernels, "_DEVICE", "cpu")
    install(monkeypatch, KERNELS[name], STAND_INS[KERNELS[name].name])
    actual = mixer(x, segments)[0]
    assert describe()[name].startswith("runs on cpu"), describe()[name]
    assert (actual - expected).norm() < TOLERANCE * expected.norm()
    state = mixer.init_state(2, 50, "cpu", HALF)
    read = mixer(x[:, :40], None if segments is None else segments[:, :40], state)[0]
    assert (read - expected[:, :40]).norm() < TOLERANCE * expected.norm()
