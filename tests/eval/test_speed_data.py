"""The suite runs, and has a rate for everything that it names."""

import json
from pathlib import Path

import pytest

from eval.speed import main


def test_it_measures_making_reading_and_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data.json"
    tiny = ["documents=40", "tokens=60000", "context=64", "batch=2", "dim=32", "layers=1"]
    assert main(["suite=data", *tiny, "head_dim=16", "rounds=1", f"output={output}"]) == 0
    said = capsys.readouterr().out
    assert said.strip().endswith(f"speed: {output}")
    content = json.loads(output.read_text())
    assert len(content["reading"]) == 4 and len(content["making"]) == 7
    for rate in (*content["reading"].values(), *content["making"].values()):
        assert rate["items_per_second"] > 0 and rate["tokens_per_second"] > 0
    assert 0 < content["waiting"]["share"] < 1
    assert all(name in said for name in ("raw memory map", "torch DataLoader", "of the step"))
