"""Command lines, read as the program reads them, without running them."""

from types import SimpleNamespace

from vlaa_lib import cli


def parsed(words: list[str]) -> SimpleNamespace:
    """Return a command's name and arguments; anything unknown in it ends in an error."""
    command, rest = cli.command_of(cli.spelt_out(words))
    context = command.make_context(command.name, rest)
    return SimpleNamespace(command=command.name, **context.params)
