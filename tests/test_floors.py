"""The floors of docs/architecture.md, read from the imports themselves.

A module imports from its own floor and the ones below it; nothing imports in a circle. The core (floors 0 to
5) needs torch and einops alone. The core finds adapters through entry points, never by name, and adapters
know neither each other nor training nor the command line.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"typing", "noise", "naming", "files", "quantile", "torchaudio"},
    {"schedule", "space", "condition", "times"},
    {"prediction", "estimate", "process", "product", "elbo", "weighting", "nn"},
    {"denoiser"},
    {"guidance"},
    {"grid", "jumps", "samplers", "sample", "inversion", "tune", "interop", "likelihood"},
    {
        "inventory",
        "report",
        "registry",
        "modality",
        "data",
        "folders",
        "frechet",
        "packages",
        "stamp",
        "text",
        "weights",
    }
    | {"testing"},
    {"settings", "samples", "model", "codec", "checkpoint", "card", "coupling", "training", "callbacks", "runs", "fit"},
    {"recipe", "cli", "__init__", "__main__"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
CORE = sorted((ROOT / "diffkit").rglob("*.py"))
ADAPTERS = sorted((ROOT / "modalities").rglob("*.py"))


def module_of(path: Path) -> str:
    """``diffkit.samplers.ddim`` for ``diffkit/samplers/ddim.py``; a package's ``__init__`` is the package."""
    shelf = ROOT / "modalities" if path.is_relative_to(ROOT / "modalities") else ROOT
    parts = path.relative_to(shelf).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in [*CORE, *ADAPTERS]}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; ``from package import module`` is that module."""
    package = module_of(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + (path.name == "__init__.py")] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def top(module: str) -> str:
    return module.split(".")[0]


def unit(module: str) -> str:
    """The part of the core that has a floor: ``samplers`` of ``diffkit.samplers.ddim``."""
    return [*module.split("."), "__init__"][1]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CORE, ids=name)
def test_a_module_imports_only_from_its_own_floor_and_below(path: Path) -> None:
    here = unit(module_of(path))
    assert here in FLOOR, f"{name(path)} stands on no floor; give {here!r} one in FLOORS and docs/architecture.md"
    above = {m for m in imports(path) if top(m) == "diffkit" and FLOOR[unit(m)] > FLOOR[here]}
    assert not above, f"{name(path)} is on floor {FLOOR[here]} and imports from above it: {sorted(above)}"


@pytest.mark.parametrize("path", [p for p in CORE if FLOOR.get(unit(module_of(p)), 9) <= 5], ids=name)
def test_the_core_needs_torch_and_einops_alone(path: Path) -> None:
    allowed = {"torch", "einops", "diffkit"} | sys.stdlib_module_names
    assert {top(m) for m in imports(path)} <= allowed


@pytest.mark.parametrize("path", CORE, ids=name)
def test_the_core_names_no_adapter(path: Path) -> None:
    assert not {m for m in imports(path) if m.startswith("diffkit_")}


@pytest.mark.parametrize("path", ADAPTERS, ids=name)
def test_an_adapter_knows_neither_its_siblings_nor_training_nor_the_command_line(path: Path) -> None:
    own = top(module_of(path))
    siblings = {m for m in imports(path) if m.startswith("diffkit_") and top(m) != own}
    assert not siblings
    core = {unit(m) for m in imports(path) if top(m) == "diffkit"}
    assert not {m for m in core if m in {"training", "callbacks", "fit"} or FLOOR[m] == 8}


def test_nothing_imports_in_a_circle() -> None:
    graph = {module_of(p): {m for m in imports(p) if m in MODULES} - {module_of(p)} for p in [*CORE, *ADAPTERS]}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
