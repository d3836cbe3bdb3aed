"""`python -m data.fetch`: stream a dataset of the Hugging Face hub once, into local files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .texts.fetching import Show, fetch
from .texts.recipes import RECIPES, Recipe
from .texts.staging import fetched_folder

HELP = f"""\
Stream a dataset of the Hugging Face hub once, into local files that corpora are made of; the last
line printed is `texts: FOLDER`.

  python -m data.fetch recipe=gsm8k                      into corpora/fetched/gsm8k
  python -m data.fetch recipe=openwebmath limit=100000   its first 100,000 pages
  python -m data.fetch recipe=math hub=/copies/math      from a local copy, or another id on the hub

Then a source of a corpus needs no more than the recipe: data.sources.NAME.text.recipe=gsm8k.
An interrupted fetch goes on from its last whole part. Switches are key=value:

  recipe  one of {", ".join(RECIPES)}
  root    folder of the corpora (default corpora)
  to      another folder for the files; name them with data.sources.NAME.text.files=[FOLDER/*.gz]
  limit   so many records at most (default all); a larger one goes on
  hub     another id on the hub with the same columns, or a local folder

"""


@dataclass
class FetchConfig:
    """The switches of the verb."""

    recipe: str = ""
    root: str = "corpora"
    to: str = ""
    limit: int | None = None
    hub: str = ""


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit status, 2 where something can't be done."""
    if {"--help", "-h", "help"} & set(arguments):
        print(HELP + "\n".join(map(_described, RECIPES.values())))
        return 0
    try:
        config = parse(arguments)
        recipe = RECIPES[config.recipe]
        folder = Path(config.to) if config.to else fetched_folder(Path(config.root), recipe.name)
        with _progress_bar(recipe, config.limit) as show:
            state = fetch(recipe, folder, config.hub or None, config.limit, show)
    except ValueError as error:
        print(f"data.fetch: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.fetch: stopped; the same command goes on from the last part", file=sys.stderr)
        return 130
    print(f"{state.records():,} records of {state.hub}, licence {recipe.licence}")
    print(f"texts: {folder}")
    return 0


def parse(arguments: list[str]) -> FetchConfig:
    """The switches; ValueError names the one that is wrong and what is allowed."""
    config, keys = FetchConfig(), [field.name for field in fields(FetchConfig)]
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            raise ValueError(
                f"{argument} is not a switch: use key=value with a key of {', '.join(keys)}"
                " (--help says more)"
            )
        setattr(config, key, _limit(value) if key == "limit" else value)
    if config.recipe not in RECIPES:
        raise ValueError(f"recipe={config.recipe} is not a recipe: use one of {', '.join(RECIPES)}")
    return config


def _limit(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"limit={value} is not possible: use a whole number of at least 1")
    return int(value)


def _described(recipe: Recipe) -> str:
    return (
        f"  {recipe.name:13} {recipe.hub} ({recipe.licence}); columns {', '.join(recipe.columns)}"
    )


@contextmanager
def _progress_bar(recipe: Recipe, limit: int | None) -> Iterator[Show]:
    """A bar of records on standard error, where that is a terminal; the hub names no total."""
    console = Console(stderr=True)
    columns = (
        TextColumn(f"fetching {recipe.name}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("records"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=limit)
        yield lambda records: bar.update(line, completed=records)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
