"""How a command ends: exceptions become messages and exit codes, without the secrets that they may quote."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from types import TracebackType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from relgrad.commands.original_flags import as_overrides
from relgrad.core.secrets import hide_known

LACKS_MEMORY = (
    ". There is too little memory: draw less at once (-n, num_prompts, num_generations), let shorter texts be written, or take a "
    "smaller model"
)


NOT_PASSED = 3
"""Exit code of a run that did its work and did not reach what its recipe asks for (`evaluation.gate`)."""


class Commands(TyperGroup):
    """All commands, with one place for each: exceptions become messages and exit codes, `--key=value` is read, and what the
    terminal cannot show is replaced.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        """A terminal or a pipe need not be UTF-8: the characters that it does not have become question marks."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted", _how_to_resume(ctx.invoked_subcommand), style="yellow")
            raise typer.Exit(130) from None
        except Exception as error:
            from relgrad.core.errors import GateFailed, RelgradError, Stopped

            if isinstance(error, Stopped):
                _stop(str(error))
            if isinstance(error, GateFailed):
                say("not passed", str(error), style="bold red")
                raise typer.Exit(NOT_PASSED) from None
            if not isinstance(error, RelgradError) and not _lacks_memory(error):
                raise
            advice = "" if isinstance(error, RelgradError) else LACKS_MEMORY
            say("error", f"{str(error) or type(error).__name__}{advice}", style="bold red")
            raise typer.Exit(_exit_code(error)) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and any("KEY=VALUE" in (parameter.metavar or "") for parameter in command.params):
            rest = as_overrides(rest, [option for parameter in command.params for option in parameter.opts])
        return name, command, rest


def _exit_code(error: Exception) -> int:
    from relgrad.commands.processes import LOST, ProcessLost

    return LOST if isinstance(error, ProcessLost) else 2


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An unexpected error, without the secrets that its message may quote."""
    sys.stderr.write(hide_known("".join(traceback.format_exception(kind, error, trace))))


def _lacks_memory(error: Exception) -> bool:
    from relgrad.core.memory import is_out_of_memory

    return is_out_of_memory(error)


def say(word: str, text: str, style: str) -> None:
    """Tell the person, on stderr, after a word in the given style (rich's)."""
    text = hide_known(text)
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(f"{word}: ", style=style) + Text(text))


def _stop(what: str) -> NoReturn:
    """End a run that a limit ended; one process of several leaves it to whoever started them to say how it goes on."""
    from relgrad.commands.processes import STOPPED

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    advice = f"continue with `{command_to_continue()}`" if alone else "the same command continues"
    say("stopped", f"{what}; {advice}", style="yellow")
    raise typer.Exit(STOPPED) from None


def _how_to_resume(command: str | None) -> str:
    if command != "run":
        return "nothing that was saved is lost"
    return f"what was saved is safe; continue from the last checkpoint with `{command_to_continue()}`"


def command_to_continue() -> str:
    """The command that goes on with what this one began."""
    return shlex.join(["relgrad", *without_starting_over(sys.argv[1:])])


def without_starting_over(arguments: list[str]) -> list[str]:
    """The arguments of a command that goes on with what it began."""
    kept = [a for n, a in enumerate(arguments) if a != "--from" and (n == 0 or arguments[n - 1] != "--from")]
    return [a for a in kept if a != "--fresh" and not a.startswith("--from=")]
