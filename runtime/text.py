"""Text files as users have them: UTF-8, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from edge_svd.runtime.errors import InputError


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file (`.gz` is unpacked), line ends untouched.

    InputError if it is missing, broken or empty.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"The text file {path} does not exist.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"The text file {path} is not a complete gzip file ({error}).") from None
    except OSError as error:
        raise InputError(f"The text file {path} cannot be read ({error.strerror or error}).") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"The text file {path} is not UTF-8 (byte {error.start}); convert it first.") from None
    if not text.strip():
        raise InputError(f"The text file {path} is empty.")
    return text
