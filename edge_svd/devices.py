"""Device profiles: how much memory a device has, what onnxruntime holds there and how long its products take.

TOML files; the shipped ones lie in `edge_svd.recipes.devices`, `edge-svd bench BUNDLE --profile OUT.toml` measures
one. Every number a prediction uses is in the profile, and `basis` says where they come from.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from edge_svd.errors import InputError
from edge_svd.formats import WHOLE_PASS

SUFFIX = ".toml"
DEFAULT = "this-machine"
MEASURED, DATA_SHEETS = "measured", "data sheets"
BASES = (MEASURED, DATA_SHEETS)


@dataclass(frozen=True)
class DeviceFacts:
    """The machine. Bytes, bytes a second; `usable_share` is how much of the bandwidth products reach."""

    memory_bytes: int
    free_bytes: int
    cores: int
    instruction_sets: tuple[str, ...]
    bandwidth_bytes_per_s: float
    usable_share: float

    @property
    def exact_int8(self) -> bool:
        """Whether onnxruntime's plain int8 products are right here: x86-64 without VNNI adds pairs of products in 16
        bits, which overflow."""
        sets = self.instruction_sets
        return not any(name.startswith("avx") for name in sets) or any("vnni" in name for name in sets)

    @property
    def usable_bandwidth(self) -> float:
        return self.bandwidth_bytes_per_s * self.usable_share


@dataclass(frozen=True)
class MemoryCosts:
    """Resident bytes: of Python with the libraries, of a session, a byte of tokenizer.json, a product, a block.

    A block has its scale and a sum that kernels pack; where they read the scale itself too (`runtime.scales`), it is
    kept beside that.
    """

    process_bytes: int
    session_bytes: int
    tokenizer_ratio: float
    product_bytes: int
    block_bytes: float


@dataclass(frozen=True)
class KernelCost:
    """Seconds a weight of a cold product of one row; weights of `bits` in blocks of `block`, or WHOLE_PASS.

    `prompt_s`: seconds a weight and token of a pass over many tokens; 0 where that was not measured.
    """

    bits: int
    block: int
    weight_s: float
    prompt_s: float = 0.0


@dataclass(frozen=True)
class SpeedCosts:
    """Seconds: a product's launch, a layer without its products, a byte of KV cache; measured with `threads`.

    `prompt_layer_s`: a layer without its products, a token of a prompt of 512; 0 where that was not measured.
    """

    threads: int
    launch_s: float
    layer_s: float
    cache_byte_s: float
    kernels: tuple[KernelCost, ...]
    prompt_layer_s: float = 0.0

    @property
    def knows_prompts(self) -> bool:
        """Whether the time that prompts take was measured too, whole passes on one scale among it."""
        measured = {kernel.block == WHOLE_PASS for kernel in self.kernels if kernel.prompt_s}
        return self.prompt_layer_s > 0 and measured == {True, False}

    def prompt_seconds(self, bits: int, block: int) -> float:
        """A weight and token of a pass over many tokens, like `weight_seconds`."""
        return self._nearest(bits, block).prompt_s

    def weight_seconds(self, bits: int, block: int) -> float:
        """Of the kernel measured, else of the nearest block at these bits, else of the slowest kernel.

        WHOLE_PASS in place of a block: of int8 rows whose inputs share one scale a pass.
        """
        return self._nearest(bits, block).weight_s

    def _nearest(self, bits: int, block: int) -> KernelCost:
        if block == WHOLE_PASS:
            whole = [kernel for kernel in self.kernels if kernel.block == WHOLE_PASS]
            if whole:
                return whole[0]
            block = max(kernel.block for kernel in self.kernels)  # not measured there: no slower than the widest blocks
        same = [kernel for kernel in self.kernels if kernel.bits == bits and kernel.block != WHOLE_PASS]
        if not same:
            return max(self.kernels, key=lambda kernel: kernel.weight_s)
        return min(same, key=lambda kernel: abs(math.log(kernel.block / block)))


@dataclass(frozen=True)
class Profile:
    """A device. `speed` is None where nothing was measured: speed is then an upper bound from bandwidth alone."""

    name: str
    summary: str
    basis: str
    sources: tuple[str, ...]
    device: DeviceFacts
    memory: MemoryCosts
    speed: SpeedCosts | None


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or any file whose path ends in .toml.

    Raises InputError that lists the known names, or names the file, the line and the field at fault.
    """
    if name.endswith(SUFFIX):
        try:
            return parse_profile(Path(name).read_bytes(), Path(name).stem, name)
        except OSError as error:
            raise InputError(f"Cannot read the device profile {name}: {error.strerror}.") from error
    if name not in profile_names():
        raise InputError(
            f"Unknown device {name!r}; known: {', '.join(profile_names())}; a path that ends in .toml works too."
        )
    return parse_profile(_folder().joinpath(name + SUFFIX).read_bytes(), name, name + SUFFIX)


def list_profiles() -> tuple[Profile, ...]:
    """The profiles that come with the package, by name."""
    return tuple(load_profile(name) for name in profile_names())


def profile_names() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    return tuple(
        sorted(entry.name.removesuffix(SUFFIX) for entry in _folder().iterdir() if entry.name.endswith(SUFFIX))
    )


def parse_profile(content: bytes, name: str, file: str) -> Profile:
    """The profile in a TOML file's bytes; `file` is what messages call it. InputError naming line and field."""
    try:
        text = content.decode("utf-8")
        table = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"The device profile {file} is not valid TOML: {error}.") from error
    read = _Reader(file, text)
    known = ("summary", "basis", "sources", "device", "memory", "speed")
    read.only(table, known, "")
    for key in known[:-1]:
        if key not in table:
            raise read.fault(key, "", "is missing")
    if table["basis"] not in BASES:
        raise read.fault("basis", "", f"must be one of {', '.join(map(repr, BASES))}, not {table['basis']!r}")
    sources = read.strings(table, "sources", "")
    device = read.record(DeviceFacts, table["device"], "device")
    if device.free_bytes > device.memory_bytes:
        raise read.fault("free_bytes", "device", f"is more than memory_bytes, {device.memory_bytes}")
    if device.usable_share > 1:
        raise read.fault("usable_share", "device", f"is a share, at most 1, not {device.usable_share}")
    speed = table.get("speed")
    if (speed is None) == (table["basis"] == MEASURED):
        what = "is missing from a measured profile" if speed is None else "cannot come from data sheets"
        raise read.fault("speed", "", what)
    return Profile(
        name=name,
        summary=read.text_field(table, "summary", ""),
        basis=table["basis"],
        sources=sources,
        device=device,
        memory=read.record(MemoryCosts, table["memory"], "memory"),
        speed=None if speed is None else read.record(SpeedCosts, speed, "speed"),
    )


class _Reader:
    """Checks one file; every fault is one sentence with file, line and field."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.splitlines()

    def fault(self, key: str, section: str, what: str) -> InputError:
        line = self._line(key, section)
        place = f" at line {line}" if line else ""
        return InputError(f"In the device profile {self.file}, {_full(key, section)!r}{place} {what}.")

    def only(self, table: Mapping[str, Any], known: tuple[str, ...], section: str) -> None:
        for key in table:
            if key not in known:
                raise self.fault(key, section, f"is an unknown field; known: {', '.join(known)}")

    def text_field(self, table: Mapping[str, Any], key: str, section: str) -> str:
        if not isinstance(table[key], str) or not table[key]:
            raise self.fault(key, section, f"must be a text, not {table[key]!r}")
        return str(table[key])

    def strings(self, table: Mapping[str, Any], key: str, section: str) -> tuple[str, ...]:
        value = table[key]
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry for entry in value):
            raise self.fault(key, section, f"must be a list of texts, not {value!r}")
        return tuple(value)

    def number(self, value: Any, key: str, section: str, whole: bool) -> Any:
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise self.fault(key, section, f"must be a {'whole ' if whole else ''}number, not {value!r}")
        if not (math.isfinite(value) and value > 0):
            raise self.fault(key, section, f"must be positive, not {value}")
        return value if whole else float(value)

    def record(self, kind: type[Any], table: Any, section: str) -> Any:
        if not isinstance(table, dict):
            raise self.fault(section, "", "must be a table")
        names = tuple(field.name for field in fields(kind))
        self.only(table, names, section)
        values: dict[str, Any] = {}
        for field in fields(kind):
            if field.name not in table and field.default is not MISSING:
                continue
            if field.name not in table:
                raise self.fault(field.name, section, "is missing")
            value = table[field.name]
            if field.name == "kernels":
                values["kernels"] = self._kernels(value)
            elif kind is KernelCost and field.name == "block" and value == WHOLE_PASS:
                values[field.name] = value
            elif field.name == "instruction_sets":
                values["instruction_sets"] = self.strings(table, field.name, section)
            else:
                values[field.name] = self.number(value, field.name, section, str(field.type) == "int")
        return kind(**values)

    def _kernels(self, value: Any) -> tuple[KernelCost, ...]:
        if not isinstance(value, list) or not value:
            raise self.fault("kernels", "speed", "must be a list of tables with bits, block and weight_s")
        found = tuple(self.record(KernelCost, entry, "speed.kernels") for entry in value)
        if len({(kernel.bits, kernel.block) for kernel in found}) != len(found):
            raise self.fault("kernels", "speed", "names bits and block twice")
        return found

    def _line(self, key: str, section: str) -> int | None:
        """Where the key stands, or the table it is missing from."""
        current, header = "", None
        for number, line in enumerate(self.lines, 1):
            head = re.match(r"\s*\[\[?\s*([\w.-]+)\s*\]\]?", line)
            if head:
                current = head.group(1)
                if current == (section or key):
                    header = number
            elif current == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return header


def _full(key: str, section: str) -> str:
    return f"{section}.{key}" if section else key


def _folder() -> Any:
    return resources.files("edge_svd.recipes").joinpath("devices")
