"""The real client of the hub publishes to a server of the test, and loads from it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.train.hub_server import Hub, running_hub

pytestmark = pytest.mark.timeout(400)
SCRIPT = Path(__file__).parent / "publish_often.py"
TOKEN = "a-token-that-nobody-must-see-0123456789"


@dataclass
class Session:
    """What a process did with a hub, and what the hub has since."""

    hub: Hub
    said: dict[str, Any]
    output: str


@pytest.fixture(scope="module")
def session(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("hub")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with running_hub(TOKEN) as hub:
        hub.failing = 1
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(evaluated_run)],
            cwd=folder,
            env=kept | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return Session(hub, json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr)


def test_a_lost_upload_goes_on_and_sends_nothing_twice(session: Session) -> None:
    lost, first = session.said["lost"], session.said["first"]
    assert lost["status"] == 1 and "the same command goes on where it was" in lost["err"]
    assert len([line for line in lost["err"].splitlines() if line.startswith("train.publish: ")])
    assert first["status"] == 0
    assert first["out"] == f"export: {session.hub.url}/me/model\n"
    assert len(session.hub.sent) == len(set(session.hub.sent))
    weights = [name for name in session.hub.large.values() if len(name) > 100]
    assert len(weights) >= 3, "weights went in several files"


def test_nothing_is_overwritten_unless_asked_for(session: Session) -> None:
    said, model = session.said, session.hub.repositories["me/model"]
    assert said["second"]["status"] == 1
    assert "give force=true to replace them" in said["second"]["err"]
    assert said["forced"]["status"] == 0
    assert len(model.commits) == len(model.messages) == 5  # the hub's, first, forced, branch, open
    first, forced = (list(model.commits.values())[place] for place in (1, 2))
    assert "model.safetensors.index.json" in first and "model.safetensors" not in first
    assert "model.safetensors" in forced
    assert not [name for name in forced if "-of-" in name], "old files are gone"
    assert model.branches["other"] != model.branches["main"]
    assert said["branch"]["out"].endswith("/me/model/tree/other\n")
    assert all(
        message.startswith("Publish transformer at step 2") for message in model.messages[1:]
    )


def test_nothing_is_public_unless_asked_for(session: Session) -> None:
    said, created = session.said, b"/api/repos/create\n"
    bodies = [json.loads(b.removeprefix(created)) for b in session.hub.bodies if created in b]
    private = [b.get("private") or b.get("visibility") == "private" for b in bodies]
    assert private == [True, False]
    assert said["public"]["status"] == 0
    assert said["narrowed"]["status"] == 1 and "me/shown is public" in said["narrowed"]["err"]
    assert said["opened"]["status"] == 0
    assert not session.hub.repositories["me/model"].private
    shown = session.hub.repositories["me/shown"]
    card = shown.commits[shown.branches["main"]]["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n") and '"me/shown"' in card


def test_the_token_goes_into_the_header_alone(session: Session) -> None:
    secret = TOKEN.encode()
    assert not any(secret in body for body in session.hub.bodies)
    assert TOKEN not in session.output
    for repository in session.hub.repositories.values():
        for files in repository.commits.values():
            assert not any(secret in content for content in files.values())


def test_what_was_published_loads(session: Session) -> None:
    main, other = session.said["loaded"]
    assert main == other and len(main) > 5


def test_odd_names_are_refused_in_one_line(session: Session) -> None:
    """A name that reaches for other folders never gets to the hub."""
    said = session.said["stranger"]
    assert said["status"] == 2 and len(said["err"].splitlines()) == 1, said
    assert set(session.hub.repositories) == {"me/model", "me/shown"}
