"""Speed of thoughts: every way is timed, and ways of thinking do the same work."""

import json
from pathlib import Path

import pytest
import torch

from eval.speed import main, parse
from eval.speed_latent import LatentSpeedConfig, build, documents


def test_the_suite_times_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "latent.json"
    small = ["dim=16", "head_dim=8", "layers=1", "question=5", "answer=2", "batch=2"]
    few = ["questions=3", "rounds=1", "thoughts=[2]", "jacobi=[1]", "layouts=[attn]", "threads=1"]
    assert main(["suite=latent", *small, *few, f"output={output}"]) == 0
    rows = json.loads(output.read_text())["rows"]
    ways = ["one by one, with states", "one by one, whole passes", "jacobi 1", "jacobi 2 (exact)"]
    assert [row["way"] for row in rows] == [*ways, "one batch", "one after the other"]
    assert all(row["median"] > 0 for row in rows)
    table = output.with_suffix(".md").read_text()
    assert "a training step of 2 documents: seconds" in table and "jacobi 2 (exact)" in table
    assert capsys.readouterr().out.splitlines()[-1] == f"speed: {output}"


def test_states_whole_passes_and_exact_rounds_are_one_computation() -> None:
    config = LatentSpeedConfig(dim=16, head_dim=8, layers=1, question=5, answer=2, batch=2)
    one_by_one, in_rounds = (build("attn", jacobi, config).double() for jacobi in (None, 3))
    one_by_one.load_state_dict(in_rounds.state_dict(), strict=False)
    tokens, roles = documents(one_by_one.config.vocab_size, 3, config)
    hidden = one_by_one(tokens, roles_BT=roles).hidden_BTD
    for other in (
        one_by_one(tokens, roles_BT=roles, record=True),
        in_rounds(tokens, roles_BT=roles),
    ):
        torch.testing.assert_close(other.hidden_BTD, hidden)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("thoughts=[0]", "thoughts=.* at least 1, each once"),
        ("jacobi=[]", "jacobi=.* at least 1, each once"),
        ("layouts=[mamba2]", "layouts: mamba2 may name attn and gdn only"),
        ("layouts=[]", "layouts is empty"),
    ],
)
def test_impossible_settings_are_refused(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(["suite=latent", argument])
