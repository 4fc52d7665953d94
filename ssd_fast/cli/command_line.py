# SPDX-License-Identifier: BSD-3-Clause
"""main: finds the command, runs it, and turns what a user can mend into one line and status 2.

Only the standard library and `ssd_fast` are loaded before a command is known; each command loads
what it needs when it runs, so that `--help` is quick and `info` works without any extra.
"""

from __future__ import annotations

import dataclasses
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

__all__ = ["main"]

_DESCRIPTION = "SSD300 on fused kernels: train, evaluate and predict. To see it work: ssd-fast demo"
_USER_ERROR = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_NOBODY_READS = 141  # 128 + SIGPIPE


class _Command(Protocol):
    def run(self) -> int:
        """Does what was asked and returns the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Errors that the user can mend are one line on stderr and status 2;
    `python -X dev -m ssd_fast.cli` shows where they came from.

    Args:
        argv: the arguments after the program's name; None takes the process's.

    Returns:
        The exit status: 0, 2 for an error of the user, 128 + the signal's number if interrupted or
        if nobody reads the output any more.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if sys.stdout is None:  # as of `>&-`: print knows of it, others fail
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        status = _parse(arguments).run()
        sys.stdout.flush()
        return status
    except SystemExit:  # of --help, which has printed
        if _nobody_reads():
            return _NOBODY_READS
        raise
    except KeyboardInterrupt:
        print("ssd-fast: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return _NOBODY_READS
        if sys.flags.dev_mode or not _is_users(error):
            raise
        print(f"ssd-fast: error: {_one_line(error)}", file=sys.stderr)
        return _USER_ERROR


def _nobody_reads() -> bool:
    """Whether the reader of the output, such as `head`, has gone; then nothing more is written."""
    try:
        number = sys.stdout.fileno()
    except OSError:  # somebody else's stream, without a file
        return False
    poll = select.poll()
    poll.register(number, 0)
    # A pipe says the former, a socket the latter; some shells make their pipes of sockets.
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:  # what is left in the buffer goes nowhere, or Python would complain of it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return gone


def _parse(arguments: Sequence[str]) -> _Command:
    """The command that the arguments ask for; `--help` and wrong options end the process."""
    from ssd_fast.cli.info import Info, Version

    # These two say what is wrong with an installation, so they need nothing that may be missing.
    if list(arguments) == ["--version"]:
        return Version()
    if list(arguments) == ["info"]:
        return Info()
    from ssd_fast.cli.extras import require

    require("the command line", "tyro")
    import tyro

    from ssd_fast.cli.bench import Bench
    from ssd_fast.cli.check import Check
    from ssd_fast.cli.demo import Demo
    from ssd_fast.cli.evaluate import Evaluate
    from ssd_fast.cli.export import Export
    from ssd_fast.cli.predict import Predict
    from ssd_fast.cli.recipes import recipe_options
    from ssd_fast.cli.train import Train

    subcommand = tyro.conf.subcommand
    recipe = recipe_options(arguments[1:]) if arguments[:1] == ["train"] else {}
    command: Any = tyro.cli(
        Annotated[Demo, subcommand("demo")]
        | Annotated[Check, subcommand("check")]
        | Annotated[Train, subcommand("train", default=Train(**recipe))]
        | Annotated[Evaluate, subcommand("eval")]
        | Annotated[Predict, subcommand("predict")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Bench, subcommand("bench")]
        | Annotated[Info, subcommand("info")],
        prog="ssd-fast",
        description=_DESCRIPTION,
        args=list(arguments) or ["--help"],
    )
    command = _expanded(command)
    if isinstance(command, Train) and command.resume:
        # Once more, on top of the saved options: only so is an option that was typed with its
        # default's value told from one that was not typed.
        command = tyro.cli(
            Train, prog="ssd-fast train", args=list(arguments)[1:], default=command.resumed()
        )
    return _expanded(command)


def _expanded(command: Any) -> _Command:
    """The command with the home folder in the place of `~` in each file and folder."""
    from ssd_fast.cli.home import expand_home

    options = {field.name: getattr(command, field.name) for field in dataclasses.fields(command)}
    paths = {
        name: expand_home(value, "--" + name.replace("_", "-"))
        for name, value in options.items()
        if isinstance(value, Path)
    }
    expanded: _Command = dataclasses.replace(command, **paths)
    return expanded


def _is_users(error: Exception) -> bool:
    """Whether an error says what to do: a missing module does where an extra installs it."""
    return not isinstance(error, ModuleNotFoundError) or "pip install" in str(error)


def _one_line(error: Exception) -> str:
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename and str(error.filename) not in message:
        message = f"{error.filename}: {message}"
    return " ".join(message.split())
