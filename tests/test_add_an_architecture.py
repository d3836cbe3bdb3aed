"""docs/add-an-architecture.md, followed to the letter in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-an-architecture.md").read_text()
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
CREATE = re.compile(r"Create `([^`]+)`[^`]*?:\n\n```\w+\n(.*?)```", re.DOTALL)
FOLDERS = ("models", "data", "train", "eval", "configs", "tests")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's files created and its lines added."""
    copy = tmp_path_factory.mktemp("project")
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    created = CREATE.findall(PAGE)
    assert [path for path, _ in created] == [
        "models/mixers/fading.py",
        "configs/mixer/fading.yaml",
        "configs/backbone/fading_hybrid.yaml",
    ]
    for path, text in created:
        assert not (copy / path).exists(), f"{path} exists already: the page must add a new one"
        (copy / path).write_text(text)
    _add_lines(copy / "models" / "mixers" / "listing.py")
    return copy


def _add_lines(listing: Path) -> None:
    step = PAGE.split("## 2.")[1].split("## 3.")[0]
    (_, imported), (_, entry) = FENCE.findall(step)
    lines = listing.read_text().splitlines(keepends=True)
    last_import = max(i for i, line in enumerate(lines) if line.startswith("from ."))
    end_of_list = max(i for i, line in enumerate(lines) if line.startswith("}"))
    lines.insert(end_of_list, entry)
    lines.insert(last_import + 1, imported)
    listing.write_text("".join(lines))


def _run(project: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_page_lists_the_commands_that_are_run_here() -> None:
    commands = PAGE.split("## 4.")[1]
    assert "-m pytest -q tests/models -k fading" in commands
    assert "-m train experiment=smoke backbone=fading_hybrid" in commands


def test_the_new_mixer_joins_the_conformance_tests(project: Path) -> None:
    printed = _run(
        project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models", "-k", "fading"
    )
    passed = re.search(r"(\d+) passed", printed)
    assert passed and int(passed[1]) >= 8, printed[-2000:]


def test_the_new_backbone_trains_and_answers(project: Path) -> None:
    switches = ["trainer.max_steps=2", "trainer.validation_rows=0", "logger=none"]
    corpus = ["data.num_documents=200", "data.num_validation_documents=0"]
    printed = _run(
        project, "-m", "train", "experiment=smoke", "backbone=fading_hybrid", *switches, *corpus
    )
    folder = printed.strip().splitlines()[-1].removeprefix("run: ")
    few = ["eval.items=4", "eval.latency_items=0"]
    printed = _run(project, "-m", "eval", f"run={folder}", *few)
    assert printed.strip().splitlines()[-1].startswith("report: ")
