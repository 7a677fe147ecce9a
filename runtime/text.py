"""Text files as users have them: UTF-8, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from edge_svd.runtime.errors import InputError


def read_text(path: Path | str, what: str = "text file") -> str:
    """The text of a UTF-8 file (`.gz` is unpacked), line ends untouched, a byte order mark left out.

    InputError, which calls the file `what`, if it is missing, broken or empty.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"The {what} {path} does not exist.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"The {what} {path} is not a complete gzip file ({error}).") from None
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be read ({error.strerror or error}).") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The {what} {path} is not UTF-8 (byte {error.start}); convert it first.") from None
    if not text.strip():
        raise InputError(f"The {what} {path} is empty.")
    return text
