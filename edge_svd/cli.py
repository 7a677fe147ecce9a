"""The command line: the commands of `edge_svd.commands`, in the order in which help names them.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

from typing import Annotated

import typer

from edge_svd import __version__
from edge_svd.commands import comparing, fitting, looking, stepwise, using
from edge_svd.commands.output import run_app

app = typer.Typer(
    name="edge-svd",
    help="Give it a language model and the memory of a device; it hands back the best model that fits.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edge-svd {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(fitting.fit)
app.command()(stepwise.calibrate)
app.command()(stepwise.plan)
app.command()(stepwise.compress)
app.command()(stepwise.export)
app.command(name="eval")(using.evaluate)
app.command()(using.tasks)
app.command()(fitting.front)
app.command()(comparing.compare)
app.command()(using.run)
app.command()(using.chat)
app.command()(using.bench)
app.command()(looking.inspect)
app.command()(looking.verify)
app.command()(looking.methods)
app.command()(looking.devices)
app.command()(looking.recipes)


def main() -> None:
    """Entry point of the `edge-svd` command."""
    run_app(app)


if __name__ == "__main__":
    main()
