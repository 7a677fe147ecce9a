"""What all commands share: printing results, and turning every error into one sentence and an exit code."""

from __future__ import annotations

import errno
import importlib.util
import json as json_module
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from edge_svd.errors import EdgeSvdError, InputError

NEEDED = ("torch", "transformers", "safetensors", "onnx_ir", "scipy", "ml_dtypes")
INTERRUPTED = "Interrupted; run the same command again to continue."


class Output:
    """Results on stdout: one JSON object with `--json`, text for people without."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, value: dict[str, Any], text: Callable[[], str]) -> None:
        """Print a result; `text` is called only if it is needed."""
        print(json_module.dumps(value, ensure_ascii=False) if self.as_json else text())

    def stream(self, pieces: Iterator[str]) -> None:
        """Print generated text as it comes, or all of it as {"text"}."""
        if self.as_json:
            return self.result({"text": "".join(pieces)}, str)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return None

    def converse(self, reply: Callable[[str], Iterator[str]]) -> None:
        """Read messages from stdin until it ends; answers are streamed, or one JSON object {"replies"} at the end."""
        replies = []
        interactive = sys.stdin.isatty() and not self.as_json
        while True:
            if interactive:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                break
            if not line.strip():
                continue
            if self.as_json:
                replies.append("".join(reply(line.strip())))
            else:
                self.stream(reply(line.strip()))
        if self.as_json:
            self.result({"replies": replies}, str)


def workstation() -> None:
    """InputError, with the command to install them, if the packages of the workstation side are missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"This command needs {', '.join(missing)}; install them with: pip install 'edge-svd[compress]'."
        )


def deciding_target(target: str) -> bool:
    """Whether a TARGET argument is a bundle (and not a model)."""
    from edge_svd.runtime.bundle import is_bundle

    return is_bundle(Path(target))


def run_app(app: Callable[..., Any]) -> NoReturn:
    """Run the typer application: every error ends as one sentence on stderr and its exit code, never as a traceback."""
    try:
        code = app(prog_name="edge-svd", standalone_mode=False)
        sys.stdout.flush()
    except EdgeSvdError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end(INTERRUPTED, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        advice = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        _end(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}{advice}.", 1)
    except MemoryError:
        _end("Memory ran out; close other programs or use a smaller model.", 1)
    except Exception as error:  # the last line of defence of a command line
        if os.environ.get("EDGE_SVD_DEBUG"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(getattr(error, "message", ""), file=sys.stderr)
            sys.exit(2)
        usage = getattr(error, "format_message", None)
        if usage is not None:
            _end(usage(), int(getattr(error, "exit_code", 2)))
        if type(error).__name__ == "Abort":
            _end(INTERRUPTED, 1)
        message = " ".join(str(error).split())[:300]
        _end(f"Unexpected {type(error).__name__}: {message} (EDGE_SVD_DEBUG=1 shows where; please report it).", 1)
    if code == 128 + signal.SIGINT:  # typer turns an interrupt into this result and says nothing
        _end(INTERRUPTED, 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> NoReturn:
    print(f"edge-svd: {message}{'' if message.endswith(('.', '?', '!')) else '.'}", file=sys.stderr)
    sys.exit(code)
