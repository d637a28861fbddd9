"""Groups of commands that know the names and helps of their commands, and import a command when it is asked for."""

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command


class Subcommand(NamedTuple):
    """
    Where a subcommand is and what its group says about it.

    Args:
        module (`str`): Module of this package.
        help (`str`): First line of its help.
        name (`str`, defaults to `"app"`): A `typer.Typer` with further commands, or the function of one command.
        epilog (`str`, *optional*): Example of a function's command; an app's commands have their own.
    """

    module: str
    help: str
    name: str = "app"
    epilog: str | None = None


class LazyCommands(MutableMapping[str, Any]):
    """
    Commands by name; a command is imported when its value is read.

    Args:
        table (`Mapping[str, Subcommand]`): What there is, in the order of the help.
    """

    def __init__(self, table: Mapping[str, Subcommand]) -> None:
        self._table = dict(table)
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load(name, self._table[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        self._table.pop(name, None)
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._table, **self._loaded})

    def __len__(self) -> int:
        return len({**self._table, **self._loaded})

    def __contains__(self, name: object) -> bool:  # the inherited one would import
        return name in self._table or name in self._loaded

    def describe(self) -> list[tuple[str, str]]:
        """
        Names and helps, without an import.

        Returns:
            `list[tuple[str, str]]`: In the order of the help.
        """
        return [(name, one.help) for name, one in self._table.items()]


class LazyGroup(TyperGroup):
    """A group whose `subcommands` are imported when they are called; help and completion of names import none."""

    subcommands: Mapping[str, Subcommand] = {}

    def __init__(self, **attributes: Any) -> None:
        attributes["commands"] = LazyCommands(self.subcommands)
        super().__init__(**attributes)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write names and helps."""
        with formatter.section("Commands"):
            formatter.write_dl(self._described())

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Names that begin so, then options."""
        options = super(TyperGroup, self).shell_complete(ctx, incomplete)
        item = _completion_item()
        found = [item(name, help=text) for name, text in self._described() if name.startswith(incomplete)]
        return [*found, *options]

    def _described(self) -> list[tuple[str, str]]:
        commands = self.commands
        return commands.describe() if isinstance(commands, LazyCommands) else []


def load(name: str, where: Subcommand) -> Any:
    """
    Import a subcommand.

    Args:
        name (`str`): What it is called.
        where (`Subcommand`): Where it is.

    Returns:
        The command or group that typer makes of it.
    """
    found = getattr(importlib.import_module(f".{where.module}", __package__), where.name)
    # Alone an app would get rich's help, completion options and, with one command, no name of its own.
    holder = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    holder.callback()(_nothing)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name)
    else:
        holder.command(name, epilog=where.epilog)(found)
    return get_command(holder).commands[name]  # type: ignore[attr-defined]


def _nothing() -> None:
    pass


def _completion_item() -> Any:
    # Typer carries click inside; the class is where its own groups take it from.
    return importlib.import_module("typer._click.shell_completion").CompletionItem
