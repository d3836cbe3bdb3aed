"""`python -m tests.drill`: break real runs in every way, start them again, and count what is lost.

Each round is one run of `python -m train` in processes of its own, which meets every kind of fault
in a random order, is started again after each as a person would, and must end as if nothing had
happened: the same losses, bit for bit, and no checkpoint lost but those that were damaged.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from data.errors import one_line_errors
from eval.checkpoint import checkpoint_step, checkpoints, remove_checkpoint
from eval.stored import Stored, StoredError
from eval.table import Entry, Table
from eval.terminal import console, print_table
from eval.verb import read_settings
from tests.train.runs import SMALL, launch, metrics, start

HELP = """\
Break real runs in every way, start them again, and count what is lost.

  python -m tests.drill                     every kind of fault once, on one process
  python -m tests.drill rounds=8            fifty-six faults
  python -m tests.drill processes=2 rounds=2

  rounds=1      runs, each of which meets every kind once
  processes=1   processes of a run; with two, one of them is also killed, and stalled, alone
  kinds=[...]   of kill, kill_in_save, stop, full_disk, truncated, flipped, removed, kill_one, stall
  seed=N        draws orders and moments; default: another one each time
  folder=PATH   where; default: a temporary folder, removed at the end
"""
EVERY = 5
"""Steps between checkpoints."""
ALONE = ("kill", "kill_in_save", "stop", "full_disk", "truncated", "flipped", "removed")
TOGETHER = ("kill_one", "stall")
_SECONDS = 120.0
_TOO_SMALL = 50_000
"""Bytes of a file in which metrics.csv has room, and a checkpoint's weights don't."""


@dataclass
class DrillVerb:
    """The switches of the verb, as its help says."""

    rounds: int = 1
    processes: int = 1
    kinds: list[str] = field(default_factory=list)
    seed: int | None = None
    folder: str = ""

    def checked(self) -> "DrillVerb":
        """Return itself; ValueError names the key where a value can't be."""
        allowed = ALONE if self.processes == 1 else (*ALONE, *TOGETHER)
        for kind in self.kinds:
            if kind not in allowed:
                raise ValueError(
                    f"kinds={kind} is not possible with processes={self.processes}: choose some of "
                    f"{', '.join(allowed)}"
                )
        self.kinds = self.kinds or list(allowed)
        for name in ("rounds", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        return self


@dataclass(frozen=True)
class Outcome:
    """What one fault did.

    Attributes:
        kind: of fault.
        refused: whether the run was refused, in the right words, until the damage was removed;
            else it recovered by itself.
        steps: steps that had to be done again.
    """

    kind: str
    refused: bool
    steps: int


class Fault(AssertionError):
    """A fault that was not survived as promised; the message says how."""


def expect(true: object, kind: str, what: str, said: str = "") -> None:
    """Raise Fault where a promise is broken."""
    if not true:
        raise Fault(f"{kind}: {what}\n{said[-2000:]}")


class Patient:
    """One run that is broken again and again.

    Args:
        folder: where it lives.
        processes: processes that train it.
        draw: draws moments.
        faults: how many it will meet, so that it is long enough.
    """

    def __init__(self, folder: Path, processes: int, draw: random.Random, faults: int) -> None:
        self.folder, self.draw, self.processes = folder, draw, processes
        folder.mkdir(parents=True, exist_ok=True)
        self.steps = 30 * (faults + 1)
        self.command = (
            *("experiment=smoke", *SMALL, f"trainer.max_steps={self.steps}", "parallel=cpu"),
            *("trainer.validate_every=0", f"trainer.checkpoint_every={EVERY}"),
            *("trainer.keep_last=3", f"parallel.devices={processes}"),
        )

    @property
    def run(self) -> Path:
        """The run's folder, once it has begun."""
        return next((self.folder / "runs" / "smoke").glob("[a-z]*"))

    @property
    def done(self) -> int:
        """Steps that metrics.csv holds."""
        try:
            return len(metrics(self.run))
        except (StopIteration, FileNotFoundError):
            return 0

    def begin(
        self, *more: str, limit: int | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Start the command; `limit` is the largest file that it may write, bytes."""
        if limit is None:
            return start("train", *self.command, *more, cwd=self.folder, **variables)
        soft = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft))
        try:
            return start("train", *self.command, *more, cwd=self.folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def until(self, true: Callable[[], object], process: subprocess.Popen[str], kind: str) -> None:
        """Wait until something is so while the run goes on."""
        end = time.monotonic() + _SECONDS
        while not true():
            if process.poll() is not None:
                raise Fault(f"{kind}: it ended before: {process.communicate()}")
            expect(time.monotonic() < end, kind, "nothing happened for too long")
            time.sleep(0.002)

    def some_steps(self, process: subprocess.Popen[str], kind: str) -> None:
        """Let the run do a few steps, at least until a checkpoint stands."""
        goal = self.done + self.draw.randrange(EVERY + 1, 20)
        self.until(lambda: self.done >= goal and checkpoints(self.run), process, kind)

    def newest(self) -> int:
        """Step of the newest checkpoint; 0 where there is none."""
        found = checkpoints(self.run)
        return checkpoint_step(found[-1]) if found else 0

    def whole(self, kind: str, but: Sequence[Path] = ()) -> None:
        """Check that every checkpoint is as it was written."""
        for path in checkpoints(self.run):
            try:
                Stored.open(path).verify()
            except StoredError as error:
                expect(path in but, kind, f"{path.name} is damaged: {error}")


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a job has started."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


def end(process: subprocess.Popen[str], kind: str) -> tuple[int, str]:
    """Wait for a run's end; return its status and what it said."""
    try:
        _, said = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Fault(f"{kind}: it did not end") from None
    return process.returncode, said


def killed(patient: Patient, process: subprocess.Popen[str], kind: str) -> Outcome:
    """`kill -9` for a job and all that it has started; what it has saved must be whole."""
    for pid in [*children(process), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    patient.whole(kind)
    return Outcome(kind, False, patient.done - patient.newest())


def kill(patient: Patient) -> Outcome:
    """All processes die at any moment, also before there is a checkpoint."""
    process, goal = patient.begin(), patient.done + patient.draw.randrange(1, 20)
    patient.until(lambda: patient.done >= goal, process, "kill")
    return killed(patient, process, "kill")


def kill_in_save(patient: Patient) -> Outcome:
    """All processes die while a checkpoint is being written."""
    process = patient.begin()
    patient.some_steps(process, "kill_in_save")
    folder = patient.run / "checkpoints"
    patient.until(lambda: any(folder.glob("*.tmp")), process, "kill_in_save")
    return killed(patient, process, "kill_in_save")


def stop(patient: Patient) -> Outcome:
    """The run is asked to stop."""
    process = patient.begin()
    patient.some_steps(process, "stop")
    process.send_signal(signal.SIGTERM)
    status, said = end(process, "stop")
    expect(status == 143 and "saved; the same command goes on" in said, "stop", "rude", said)
    patient.whole("stop")
    expect(patient.newest() == patient.done, "stop", "steps are lost", said)
    return Outcome("stop", False, 0)


def full_disk(patient: Patient) -> Outcome:
    """No file may be as large as a checkpoint's: the system refuses it, as a quota would."""
    before = patient.newest() if patient.done else 0
    status, said = end(patient.begin(limit=_TOO_SMALL), "full_disk")
    expect(status != 0, "full_disk", "it went on without saving", said)
    expect("cannot be written" in said or "disk is full" in said, "full_disk", "words", said)
    patient.whole("full_disk")
    expect(patient.newest() == before, "full_disk", "a checkpoint is lost", said)
    return Outcome("full_disk", True, patient.done - before)


def _damaged(patient: Patient, kind: str, damage: Callable[[Path], None]) -> Outcome:
    """Damage a file of the newest checkpoint: it must be named and refused, until it is removed."""
    stop(patient)
    newest = checkpoints(patient.run)[-1]
    path = patient.draw.choice(sorted(newest.iterdir()))
    damage(path)
    status, said = end(patient.begin(), kind)
    expect(status == 2, kind, f"{path.name} was not refused", said)
    expect(newest.name in said and "damaged" in said, kind, "words", said)
    expect(newest in checkpoints(patient.run), kind, "it was removed unasked")
    patient.whole(kind, but=[newest])
    remove_checkpoint(newest)
    return Outcome(kind, True, patient.done - patient.newest())


def truncated(patient: Patient) -> Outcome:
    """A file of the newest checkpoint is cut short."""
    size = patient.draw.random()
    return _damaged(patient, "truncated", lambda p: os.truncate(p, int(size * p.stat().st_size)))


def flipped(patient: Patient) -> Outcome:
    """One byte of the newest checkpoint is another."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[patient.draw.randrange(len(content))] ^= 1 << patient.draw.randrange(8)
        path.write_bytes(content)

    return _damaged(patient, "flipped", flip)


def removed(patient: Patient) -> Outcome:
    """The newest checkpoint is gone."""
    stop(patient)
    shutil.rmtree(checkpoints(patient.run)[-1])
    return Outcome("removed", False, patient.done - patient.newest())


def kill_one(patient: Patient) -> Outcome:
    """One process of several dies: the job ends, and says which."""
    process = patient.begin()
    patient.some_steps(process, "kill_one")
    os.kill(patient.draw.choice(children(process)), signal.SIGKILL)
    status, said = end(process, "kill_one")
    expect(status == 137 and "was killed by SIGKILL" in said, "kill_one", "words", said)
    patient.whole("kill_one")
    return Outcome("kill_one", False, patient.done - patient.newest())


def stall(patient: Patient) -> Outcome:
    """One process of several hangs: the others notice, and the job ends."""
    # A stopped process can't be asked to save: who waits for it shouldn't wait for long.
    process = patient.begin("trainer.stall_seconds=5", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="5")
    patient.some_steps(process, "stall")
    os.kill(patient.draw.choice(children(process)), signal.SIGSTOP)
    status, said = end(process, "stall")
    expect(status not in (0, 2) and "stall" in said, "stall", "words", said)
    patient.whole("stall")
    return Outcome("stall", False, patient.done - patient.newest())


FAULTS: dict[str, Callable[[Patient], Outcome]] = {
    function.__name__: function
    for function in (
        *(kill, kill_in_save, stop, full_disk, truncated, flipped, removed),
        *(kill_one, stall),
    )
}


def one_round(folder: Path, verb: DrillVerb, draw: random.Random) -> list[Outcome]:
    """Break one run with every kind of fault; it must end as an undisturbed one.

    Raises:
        Fault: a promise was broken.
    """
    patient = Patient(folder / "broken", verb.processes, draw, len(verb.kinds))
    order = draw.sample(verb.kinds, len(verb.kinds))
    print(f"order: {', '.join(order)}", file=sys.stderr)
    outcomes = [FAULTS[kind](patient) for kind in order]
    whole = Patient(folder / "whole", verb.processes, draw, len(verb.kinds))
    for each in (patient, whole):
        status, _, said = launch("train", *each.command, cwd=each.folder)
        expect(status == 0, "end", "it does not go on", said)
    expect(metrics(patient.run) == metrics(whole.run), "end", "other losses than undisturbed")
    patient.whole("end")
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> Table:
    """Count what each kind of fault did."""
    rows = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        refused = sum(outcome.refused for outcome in own)
        steps = [outcome.steps for outcome in own]
        cells = (len(own), len(own) - refused, refused, f"{mean(steps):.1f}", max(steps))
        rows.append([Entry(kind), *(Entry(str(cell)) for cell in cells)])
    return Table(
        title=f"{len(outcomes)} faults: nothing corrupted, no checkpoint lost",
        columns=["Fault", "Met", "Recovered", "Refused, in the right words", "Steps lost", "Most"],
        rows=rows,
        note=f"A checkpoint every {EVERY} steps. Every run ended with the losses of an undisturbed "
        "one, bit for bit.",
        names=1,
    )


def drill(verb: DrillVerb) -> list[Outcome]:
    """Run all rounds.

    Raises:
        Fault: a promise was broken.
    """
    seed = random.randrange(1 << 30) if verb.seed is None else verb.seed
    print(f"seed {seed}", file=sys.stderr)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(verb.rounds):
            folder = Path(verb.folder or temporary) / str(number)
            outcomes += one_round(folder, verb, random.Random(seed + number))
    return outcomes


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status: 1 where a promise was broken."""
    if set(arguments) & {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0
    with one_line_errors("drill"):
        verb = read_settings(DrillVerb, arguments).checked()
    try:
        print_table(summary(drill(verb)), console())
    except Fault as fault:
        print(f"drill: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
