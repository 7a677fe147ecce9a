"""Which room may import which: read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {name: ROOT / name for name in ("export", "kernels", "runtime", "recipes")}
STANDARD = set(sys.stdlib_module_names)


def sources() -> dict[str, Path]:
    """Module name → file, for everything that installs."""
    found: dict[str, Path] = {}
    for prefix, folder in [("edge_svd", ROOT / "edge_svd"), *((f"edge_svd.{n}", path) for n, path in ROOMS.items())]:
        for path in sorted(folder.rglob("*.py")):
            parts = [prefix, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = sources()


def statements(node: ast.AST, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements below `node`; not those for type checkers only, and those in functions only if `everywhere`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for branch in child.orelse:
                yield from statements(branch, everywhere)
        elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, everywhere)


def imports(module: str, *, everywhere: bool = True) -> set[str]:
    """Names that a module imports: for `from a import b`, a.b where that is a module of ours and a otherwise."""
    names: set[str] = set()
    for statement in statements(ast.parse(MODULES[module].read_text()), everywhere):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
            continue
        assert statement.level == 0 and statement.module, f"{module} imports relatively"
        for alias in statement.names:
            whole = f"{statement.module}.{alias.name}"
            names.add(whole if whole in MODULES else statement.module)
    return names


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def modules_of(*packages: str) -> list[str]:
    return [module for module in MODULES if within(module, *packages)]


def third_party(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - STANDARD - {"edge_svd"}


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if within(name, "edge_svd")}


def test_there_is_something_to_look_at() -> None:
    assert {"edge_svd", "edge_svd.runtime.errors", "edge_svd.kernels.dispatch", "edge_svd.decompose.svd"} <= set(
        MODULES
    )


@pytest.mark.parametrize("module", modules_of("edge_svd.runtime"))
def test_runtime_imports_nothing_of_ours_and_little_of_others(module: str) -> None:
    # `import edge_svd` alone gives the version; everything below it must be runtime's own.
    assert {name for name in ours(module) if not within(name, "edge_svd.runtime")} <= {"edge_svd"}
    assert third_party(module) <= {"numpy", "onnxruntime", "tokenizers", "jinja2"}


@pytest.mark.parametrize("module", modules_of("edge_svd.kernels"))
def test_kernels_import_torch_triton_and_the_errors(module: str) -> None:
    allowed = ("edge_svd.kernels", "edge_svd.runtime.errors")
    assert {name for name in ours(module) if not within(name, *allowed)} == set()
    assert third_party(module) <= {"torch", "triton"}


EXPORT_MAY_USE = (
    "edge_svd.export",
    "edge_svd.runtime",
    "edge_svd.architectures",
    "edge_svd.checkpoint",
    "edge_svd.described",
    "edge_svd.encoders.architecture",
    "edge_svd.errors",
    "edge_svd.files",
    "edge_svd.formats",
    "edge_svd.fusing",
    "edge_svd.layouts",
    "edge_svd.trellis_code",
)


@pytest.mark.parametrize("module", modules_of("edge_svd.export"))
def test_export_uses_the_checkpoint_format_and_the_bundle_schema(module: str) -> None:
    foreign = {name for name in ours(module) if not within(name, *EXPORT_MAY_USE)}
    # The package itself: its version, and `load`, which the proof against the checkpoint goes through.
    assert foreign <= {"edge_svd"}


WALK = ["calibrate", "decompose", "quantize", "allocate", "planner", "compress"]
BEHIND = tuple(f"edge_svd.{name}" for name in ("export", "cli", "commands", "evaluate", "report", "fit", "front"))


@pytest.mark.parametrize("module", [m for room in WALK for m in modules_of(f"edge_svd.{room}")])
def test_no_room_of_the_walk_knows_what_comes_behind_it(module: str) -> None:
    room = module.split(".")[1]
    later = {"calibrate": WALK[1:], "decompose": WALK[2:], "quantize": WALK[3:]}.get(room, ["compress"])
    behind = [f"edge_svd.{name}" for name in later if name != room]
    assert {name for name in ours(module) if within(name, *BEHIND, *behind)} == set()


@pytest.mark.parametrize("module", [m for m in modules_of("edge_svd.report") if "front" in m.rsplit(".", 1)[1]])
def test_the_page_is_made_from_data_alone(module: str) -> None:
    """A front.json is all that the page needs: neither torch nor the code that made it."""
    assert {name for name in ours(module) if within(name, "edge_svd.front")} == set()
    assert third_party(module) <= {"jinja2", "markupsafe", "rich"}


def test_no_cycles_between_modules() -> None:
    graph = {
        module: {n for n in imports(module, everywhere=False) if n in MODULES and n != module} for module in MODULES
    }
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join([*path, module])
        if module not in state:
            state[module] = "open"
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            state[module] = "done"

    for module in MODULES:
        visit(module, ())


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    code += "\nimport sys; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "scipy", "triton"}


def test_importing_the_package_and_the_runtime_brings_no_torch() -> None:
    for code in (
        "import edge_svd",
        "\n".join(f"import {m}" for m in modules_of("edge_svd.runtime") if "worker" not in m),
    ):
        assert loaded_after(code) & HEAVY == set()


def test_importing_the_command_line_brings_no_torch() -> None:
    assert loaded_after("import edge_svd.cli") & HEAVY == set()
