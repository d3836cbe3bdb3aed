"""The frame of a verb that reads `key=value` arguments and makes one file."""

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.errors import plain_message

Settings = TypeVar("Settings")


def run_verb(
    name: str,
    help_text: str,
    arguments: Sequence[str],
    parse: Callable[[Sequence[str]], Settings],
    make: Callable[[Settings, str], str],
) -> int:
    """Read the arguments, do the work, and say what was made, or in one line why not.

    Args:
        name: what follows `python -m`.
        help_text: printed for `--help`, and where nothing is given.
        arguments: the command line after the verb.
        parse: reads them; ValueError is a wrong setting.
        make: does the work, given the settings and the whole command; returns the last line of
            standard output, which names what was made.

    Returns:
        The exit status: 0, 1 where it could not be done, 2 for a wrong setting, 130 where it was
        interrupted.
    """
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(help_text, end="")
        return 0 if arguments else 2
    try:
        settings = parse(arguments)
    except ValueError as error:
        return _refuse(name, str(error), 2)
    try:
        print(make(settings, shlex.join(["python", "-m", name, *arguments])))
    except (ValueError, OSError) as error:
        if (message := plain_message(error)) is None:
            raise
        return _refuse(name, message, 1)
    except KeyboardInterrupt as stop:
        return _refuse(name, str(stop) or "stopped", 130)
    return 0


def read_settings(schema: type[Settings], arguments: Sequence[str], *below: Any) -> Settings:
    """Lay `key=value` arguments over a dataclass of switches.

    Args:
        schema: the dataclass, whose defaults come first.
        arguments: the command line after the verb.
        below: settings that stand over the defaults, and under the arguments.

    Raises:
        ValueError: an unknown key or a value of the wrong type; one line.
    """
    try:
        given = OmegaConf.from_dotlist(list(arguments))
        merged = OmegaConf.merge(OmegaConf.structured(schema), *below, given)
        settings = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(plain_message(error) or " ".join(str(error).split())) from error
    assert isinstance(settings, schema)
    return settings


def _refuse(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return status
