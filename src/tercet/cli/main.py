"""`tercet`: the command line. Nothing here imports torch before a command runs."""

from __future__ import annotations

import sys

import typer

from tercet.cli import chat as talking
from tercet.cli import doctor, gym, scaling, studies
from tercet.cli import evaluation as asking
from tercet.cli import interop as exchanging
from tercet.cli import training as making
from tercet.errors import TercetError

app = typer.Typer(
    name="tercet",
    help="Language models in three linked stages: pretraining, instruction tuning, preference learning.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
making.register(app)
scaling.register(app)
gym.register(app)
asking.register(app)
talking.register(app)
doctor.register(app)
exchanging.register(app)
studies.register(app)


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failure, 2 usage, settings or input, 130 interrupted and saved."""
    try:
        app()
    except TercetError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:  # the reader of our output (head, less) went away
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
