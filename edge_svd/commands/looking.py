"""Commands that only look: what is in a bundle, whether it is sound, what can be named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_svd.commands.options import BundleFolder, Json
from edge_svd.commands.output import Output, workstation


def inspect(target: Annotated[Path, typer.Argument(help="Bundle folder or plan file.")], json: Json = False) -> None:
    """What is in a bundle or a plan."""
    from edge_svd.report.inspection import inspection, inspection_text

    found = inspection(target)
    Output(json).result(found, lambda: inspection_text(found))


def verify(bundle: BundleFolder, json: Json = False) -> None:
    """Check every file of a bundle against its manifest; exit 1 with the first fault."""
    from edge_svd.runtime.bundle import verify as run_verify
    from edge_svd.runtime.errors import BundleError, Failure

    try:
        report = run_verify(bundle)
    except BundleError as error:
        raise Failure(str(error)) from None
    Output(json).result(report, lambda: f"{bundle}: sound")


def methods(json: Json = False) -> None:
    """Decompositions, rank allocations, ways of healing and candidates, by name."""
    workstation()
    from edge_svd.report.listing import method_list, method_text

    found = method_list()
    Output(json).result(found, lambda: method_text(found))


def devices(json: Json = False) -> None:
    """Device profiles that come with the package: memory, bandwidth, and whether anything was measured there."""
    from edge_svd.report.device_list import device_list, device_text

    found = device_list()
    Output(json).result(found, lambda: device_text(found))


def recipes(json: Json = False) -> None:
    """Named sets of options for `fit --recipe`."""
    from edge_svd.report.listing import recipe_list, recipe_text

    found = recipe_list()
    Output(json).result(found, lambda: recipe_text(found))
