"""Tasks of other packages, found by name; a package is imported when a task of it is asked for."""

from functools import cache
from importlib.util import find_spec

from ..tasks.task import Task

PACKAGES = {"rg_": ("reasoning_gym", "corpora"), "rc_": ("reasoning_core", "reasoning-core")}
"""What a name begins with: the package to import, and the extra that installs it."""

PREFIXES = tuple(PACKAGES)


@cache
def borrowed_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: its package isn't installed, or no task of it has that name.
    """
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    package, extra = PACKAGES[prefix]
    if find_spec(package) is None:
        raise ValueError(
            f"task={name} needs the package {package}: pip install -e '.[{extra}]'"
            " --constraint constraints.txt"
        )
    known = borrowed_tasks(prefix)
    if name not in known:
        raise ValueError(f"task={name} is not a task of {package}: use one of {', '.join(known)}")
    return known[name]


@cache
def borrowed_tasks(prefix: str) -> dict[str, Task]:
    """All tasks of a package that is installed."""
    if prefix == "rg_":
        from .reasoning_gym import TASKS
    else:
        from .reasoning_core import TASKS
    return TASKS


def installed_tasks() -> dict[str, Task]:
    """The tasks of all packages that are installed."""
    found: dict[str, Task] = {}
    for prefix, (package, _) in PACKAGES.items():
        if find_spec(package) is not None:
            found |= borrowed_tasks(prefix)
    return found
