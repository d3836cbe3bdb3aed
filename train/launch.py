"""The processes of a run: a job starts them itself, whatever started the job."""

import ctypes
import hashlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .parallel_config import ParallelConfig

SAVE_SECONDS = 600
"""Time that processes have to save when they are asked to stop, before they are killed."""

_SIGNUMS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)
"""What asks a run to stop; SLURM, through submitit, sends SIGUSR2 ahead of the end."""


TO_BE_MENDED = 2
"""Exit status of a process that has said in one line what a person can mend."""

LOST_PEERS = 76
"""Exit status of a process whose connections to the others broke: it is another one that died."""

_AGENT = "torch.distributed.elastic"


class ProcessesFailed(RuntimeError):
    """A process of the run ended with an error, and has said why; `status` is its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_final(self) -> bool:
        """Whether it is not to be tried again: it was refused, or asked to stop, and said so."""
        asked = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        return self.status in (TO_BE_MENDED, *(128 + signum for signum in asked))


def is_worker() -> bool:
    """Whether this process was started by torchrun, or by `start_processes`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def starts_processes(parallel: ParallelConfig) -> bool:
    """Whether a run's processes are still to be started: more than one, or one under a scheduler.

    Raises:
        ValueError: the machines of a run on several are not reachable from here, or torchrun
            started another number of processes than the settings say.
    """
    if is_worker():
        _check_world(parallel)
        return False
    if parallel.nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise ValueError(
            f"parallel.nodes={parallel.nodes}: start the same command on each machine with "
            f"torchrun --nnodes={parallel.nodes} --nproc-per-node={parallel.devices} "
            "--rdzv-backend=c10d --rdzv-endpoint=FIRST_MACHINE:29500 -m train ..., or through "
            "SLURM with launcher=slurm"
        )
    return parallel.devices * parallel.nodes > 1 or "SUBMITIT_EXECUTOR" in os.environ


def _check_world(parallel: ParallelConfig) -> None:
    world, mine = int(os.environ["WORLD_SIZE"]), parallel.devices * parallel.nodes
    if world != mine:
        raise ValueError(
            f"torchrun started {world} processes, but parallel.devices={parallel.devices} x "
            f"parallel.nodes={parallel.nodes} is {mine}: make the two agree"
        )


def start_processes(parallel: ParallelConfig, arguments: Sequence[str]) -> None:
    """Run `python -m train` with these arguments in all processes of a run, to its end.

    torchrun's own agent starts and watches them: one that dies ends the others, and where
    `parallel.restarts` allows, all of them go on from the newest checkpoint. What a person has to
    mend is not tried again.

    Raises:
        ProcessesFailed: one of them ended with an error.
        KeyboardInterrupt: the run was asked to stop, with the signal's number; it has saved.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
    # In a store that outlives a restart, processes would find the addresses of those that died.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(parallel.threads or 1)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each process would warn of the same
    # On several machines the agents must agree: there they restart by themselves, unheard.
    restarts = parallel.restarts if parallel.nodes == 1 else 0
    for restart in range(1, restarts + 1):
        try:
            return _run_processes(parallel, arguments)
        except ProcessesFailed as failure:
            if failure.is_final:
                raise
            again = f"restart {restart} of {restarts}, from the newest checkpoint"
            print(f"train: {failure}: {again}", file=sys.stderr)
    return _run_processes(parallel, arguments)


def _run_processes(parallel: ParallelConfig, arguments: Sequence[str]) -> None:
    try:
        with TemporaryDirectory(prefix="pauca-") as errors, _own_handlers(), _silent_agent():
            elastic_launch(_agent(parallel, errors), sys.executable)("-m", "train", *arguments)
    except SignalException as stop:
        if stop.sigval is signal.SIGUSR2:
            signal.raise_signal(stop.sigval)  # all is saved: now the scheduler's own handler
        raise KeyboardInterrupt(stop.sigval) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(signal.SIGINT) from None
    except ChildFailedError as error:
        raise _failure(error) from None


def _agent(parallel: ParallelConfig, errors: str) -> LaunchConfig:
    endpoint, run_id = ("localhost:0", f"pauca-{os.getpid()}")
    if parallel.nodes > 1:
        run_id = os.environ["SLURM_JOB_ID"]
        endpoint = f"{_first_machine()}:{_port(run_id)}"
    return LaunchConfig(
        min_nodes=parallel.nodes,
        max_nodes=parallel.nodes,
        nproc_per_node=parallel.devices,
        run_id=run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        max_restarts=parallel.restarts if parallel.nodes > 1 else 0,
        logs_specs=DefaultLogsSpecs(log_dir=errors),
        monitor_interval=0.2,
        # Without SIGINT: Ctrl-C interrupts the agent, which asks the processes to stop by SIGTERM.
        # Told by SIGINT, those that still import would each show where.
        signals_to_handle=",".join(x.name for x in _SIGNUMS if x is not signal.SIGINT),
    )


def _first_machine() -> str:
    """The first machine of a SLURM job, where all of them meet."""
    listed = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()[0]


def _port(run_id: str) -> int:
    """A port of the job's own: the same on all of its machines, rarely that of another job."""
    digest = hashlib.blake2b(run_id.encode(), digest_size=2).digest()
    return 20_000 + int.from_bytes(digest) % 20_000


def _failure(error: ChildFailedError) -> ProcessesFailed:
    """Say which process ended first, and how; its own words stand above."""
    failures = error.failures
    own = {rank: found for rank, found in failures.items() if found.exitcode != LOST_PEERS}
    rank, first = min((own or failures).items(), key=lambda failure: failure[1].timestamp)
    if first.exitcode < 0:
        how, status = f"was killed by {signal.Signals(-first.exitcode).name}", 128 - first.exitcode
    elif first.exitcode == LOST_PEERS:
        how, status = "has lost the others", LOST_PEERS
    else:
        how, status = f"ended with status {first.exitcode}", first.exitcode
    return ProcessesFailed(f"process {rank} {how}", status)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Give the signal handlers back that the agent replaces."""
    before = {signum: signal.getsignal(signum) for signum in _SIGNUMS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _silent_agent() -> Iterator[None]:
    """The processes say themselves what went wrong; the agent's account of it is for its makers."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_AGENT)]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def die_with_parent() -> None:
    """Ask the kernel to stop this process where its starter is killed: no run goes on unseen.

    Linux alone can do that; elsewhere nothing happens.
    """
    if is_worker() and sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
