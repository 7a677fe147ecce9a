"""`--no-lookup` reaches the session, from the command line and from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_svd import cli
from edge_svd.runtime import commands

OPTIONS = ((["--no-lookup"], False), (["--lookup"], True), ([], True))


class Reached(Exception):
    """The session would be made now."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def session(*_: Any, **settings: Any) -> None:
        found.append(settings["lookup"])
        raise Reached

    class Anything:
        manifest = type("Manifest", (), {"decoder": None})

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: [1]

    monkeypatch.setattr(commands, "Session", session)
    monkeypatch.setattr(commands, "_opened", lambda bundle: Anything())
    monkeypatch.setattr(commands, "load_tokenizer", lambda bundle: Anything())
    monkeypatch.setattr(commands.ChatTemplate, "from_bundle", lambda bundle: Anything())
    return found


@pytest.mark.parametrize(("option", "wanted"), OPTIONS)
@pytest.mark.parametrize("command", (["run", "--prompt", "Hello"], ["chat"]))
def test_the_session_is_made_as_asked(
    command: list[str], option: list[str], wanted: bool, asked: list[Any], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(cli.app, [command[0], str(tmp_path), *command[1:], *option])
    assert isinstance(result.exception, Reached) and asked == [wanted]
