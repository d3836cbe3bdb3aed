"""Publishing to a folder: what is in it, what it refuses, and what it never says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from eval.checkpoint import load_trained
from models.config import BackboneConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.concept import ConceptConfig
from tests.models.cases import BACKBONE_CASES, backbone_config
from train.export import Export, kinds_in_use, published_config
from train.export_folder import is_hub_name
from train.flatten import MODELS, flat_name, flattened
from train.model_card import CardFacts, card_files
from train.publish import main
from train.redaction import redacted

SECRET = "hf_" + "x" * 20


@pytest.fixture(scope="module")
def run(evaluated_run: Path) -> Path:
    """The shared run, with a secret in its command."""
    path = evaluated_run / "environment.json"
    facts = json.loads(path.read_text())
    facts["command"] = f"python -m train logger.api_key={SECRET} home={Path.home()}/here"
    path.write_text(json.dumps(facts))
    return evaluated_run


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in a folder, in files of at most 20 KB, loaded once to see that it can be."""
    folder = tmp_path_factory.mktemp("exports") / "deep" / "export"
    assert main([f"run={run}", f"to={folder}", "shard_size=20KB", "licence=apache-2.0"]) == 0
    return folder


def test_weights_are_sharded_safetensors_and_nothing_is_pickled(run: Path, published: Path) -> None:
    index = json.loads((published / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 2
    weights = {k: v for name in files for k, v in load_file(published / name).items()}
    backbone = load_trained(run).backbone
    assert {f"backbone.{name}" for name in backbone.state_dict()} == set(weights)
    assert all((published / name).stat().st_mode & 0o044 for name in files), "others may read"
    kinds = {".py", ".json", ".md", ".png", ".safetensors", ""}
    assert {path.suffix for path in published.iterdir()} == kinds
    assert [path.name for path in published.parent.iterdir()] == ["export"], "nothing beside it"


def test_settings_say_what_transformers_asks_for(published: Path) -> None:
    settings = json.loads((published / "config.json").read_text())
    assert settings["model_type"] == "pauca" and settings["vocab_size"] % 64 == 0
    assert settings["num_hidden_layers"] == 1 and settings["hidden_size"] == 16
    assert settings["auto_map"]["AutoModelForCausalLM"] == "hf.PaucaForCausalLM"
    assert settings["backbone"]["latent"]["kind"] == "feedback"
    generation = json.loads((published / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == 32


def test_the_card_says_what_was_measured_and_how(run: Path, published: Path) -> None:
    card = (published / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for said in (
        "s3_swaps: accuracy and mean cost of an answer",
        "![Accuracy against cost](frontier.png)",
        "| Training tokens |",
        "Apache-2.0 (generated)",
        "After the first `<think>` of a text it thinks 2 steps",
        "loops=N",
        "Trained at git revision",
        "torch 2.",
        'name = "FOLDER"',
    ):
        assert said in card, said
    assert re.search(r"\| full trace[^|]*\| [\d.]+ \\\[[\d.]+, [\d.]+\\\] \|", card)
    assert (published / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "logger.api_key=[removed]" in card


def test_no_file_holds_a_secret(published: Path) -> None:
    for path in published.iterdir():
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert f"{Path.home()}/here".encode() not in content, path


def test_results_of_other_weights_are_left_out(run: Path, published: Path, tmp_path: Path) -> None:
    trained = load_trained(run)
    export = Export(trained.backbone, trained.tokenizer, 32)
    files = card_files(CardFacts(run, export, trained.step, "other", "x"))
    assert list(files) == ["README.md"]
    assert b"No answer of these weights was evaluated." in files["README.md"]


def test_what_is_there_stays(
    run: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(to: Path, *more: str) -> str:
        assert main([f"run={run}", f"to={to}", "check=false", *more]) == 1
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        return err

    before = {path: path.stat().st_mtime_ns for path in published.iterdir()}
    assert "give force=true to replace it" in refused(published)
    assert before == {path: path.stat().st_mtime_ns for path in published.iterdir()}
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    assert "no export" in refused(tmp_path / "letters", "force=true")
    assert (tmp_path / "letters" / "mine.txt").read_text() == "dear"
    damaged = tmp_path / "run"
    damaged.mkdir()
    assert main([f"run={damaged}", f"to={tmp_path / 'new'}"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters", "run"]


def test_force_replaces_an_export(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    for more in ([], ["force=true"]):
        assert main([f"run={run}", f"to={folder}", "check=false", *more]) == 0
        assert (folder / "model.safetensors").is_file() and not (folder / "old").exists()
        (folder / "old").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["to=./x"], "run is not set"),
        (["run=x"], "to is not set"),
        (["run=x", "to=./x", "shard_size=big"], "shard_size=big is not possible"),
        (["run=x", "to=./x", "private=false"], "private and revision are of the hub alone"),
        (["run=x", "to=a/b", "revision=../x"], "revision=../x may hold"),
        (["run=x", "to=./x", "licence=a b"], "licence=a b may hold"),
        (["run=x", "too=./x"], "too is not a setting"),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert line in err and len(err.splitlines()) == 1


def test_the_hub_needs_a_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["run=x", "to=some-owner/name"]) == 1
    assert "HF_TOKEN is not set" in capsys.readouterr().err


def test_what_is_a_folder_and_what_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exports").mkdir()
    assert is_hub_name("owner/name") and is_hub_name("o/n-1.2_x")
    folders = ("name", "./a/b", "../a", "/a/b", "~/a", "a/b/c", "exports/name")
    assert not any(map(is_hub_name, folders))
    for neither in ("a/", "a/..", "a/.b", "a b/c", "a/b--c", "a/..model"):
        with pytest.raises(ValueError, match=r"write \./"):
            is_hub_name(neither)


def names_of(config: BackboneConfig) -> set[str]:
    return set(flattened(kinds_in_use(published_config(config))))


def test_only_what_a_backbone_uses_comes_along() -> None:
    plain = names_of(backbone_config("attn"))
    mixers = {name for name in plain if name.startswith("mixers_")}
    assert mixers == {"mixers_attention.py", "mixers_key_cache.py", "mixers_listing.py"}
    assert "ops_delta.py" not in plain and "depth_looped.py" not in plain
    mixed = names_of(BACKBONE_CASES["overridden"])
    assert {"mixers_gated_delta.py", "ops_delta.py", "mlps_relu2.py"} <= mixed
    assert "depth_looped.py" in names_of(backbone_config("attn", depth=LoopedDepthConfig()))
    unused = replace(backbone_config("attn gdn"), layout="attn")
    assert set(unused.mixers) == {"attn", "gdn"} and names_of(unused) == plain


def test_every_flat_name_is_one_file() -> None:
    names = [flat_name(path, MODELS) for path in MODELS.rglob("*.py") if path.stem != "__init__"]
    assert len(names) == len(set(names))


def test_files_import_only_their_neighbours() -> None:
    files = flattened(kinds_in_use(BACKBONE_CASES["overridden"]))
    for name, text in files.items():
        for dots, module in re.findall(r"^\s*from (\.+)([\w.]*) import", text, re.MULTILINE):
            assert dots == "." and f"{module}.py" in files, f"{name}: {dots}{module}"


def test_a_teachers_place_stays_here() -> None:
    config = backbone_config("attn gdn", latent=ConceptConfig(teacher="/home/me/runs/teacher"))
    latent = published_config(config).latent
    assert isinstance(latent, ConceptConfig) and latent.teacher is None


@pytest.mark.parametrize(
    "text",
    [
        "x WANDB=abcdefghij0123",
        "hf_abcdefghijklmnop",
        "github_pat_0123456789abcdef",
        "https://me:pass1234@host/x",
        "a.api_key=abc b",
        "logger.token=abc",
        "password=abc",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    clean = redacted(text, {"WANDB_API_KEY": "abcdefghij0123", "KEY": "x"})
    assert "[removed]" in clean and clean != text
    assert not re.search("abcdef|pass1234|=abc", clean)


@pytest.mark.parametrize(
    "text", ["data.tokens=100", "| tokens | 1 |", "keyed by seed", "<think> token"]
)
def test_other_words_stay(text: str) -> None:
    assert redacted(text, {"KEY": "seed", "TOKEN": ""}) == text
