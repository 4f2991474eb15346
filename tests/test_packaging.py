"""The wheel holds all that a plain install needs, and the version is written once."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import diffkit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def shipped(folder: Path, prefix: str) -> set[str]:
    """The names in the wheel that the files below ``folder`` should have."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return {f"{prefix}{n}" for n in names if not re.search(r"(^|/)(\.|__pycache__/)", n)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    (path,) = out.glob("diffkit-*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_core_the_adapters_and_the_recipes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = shipped(ROOT / "diffkit", "diffkit/") | shipped(ROOT / "modalities", "")
    expected |= shipped(ROOT / "recipes", "diffkit/recipes/")
    assert {n for n in names if ".dist-info/" not in n} == expected
    assert {"diffkit/py.typed", "diffkit_molecule/py.typed"} <= names


def test_the_unpacked_wheel_imports_and_registers_its_modalities(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = """if True:
        import sys; sys.path.insert(0, sys.argv[1])
        import importlib.metadata, json, diffkit
        (wheel,) = importlib.metadata.distributions(name="diffkit", path=[sys.argv[1]])
        points = wheel.entry_points.select(group="diffkit.modalities")
        loaded = {point.name: point.load().__module__ for point in points}
        places = [sys.modules[name].__file__ for name in ("diffkit", *loaded.values())]
        print(json.dumps([loaded, places]))
    """
    command = [sys.executable, "-I", "-c", program, str(tmp_path)]
    printed = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True).stdout
    loaded, places = json.loads(printed)
    assert set(loaded) == {p.name.removeprefix("diffkit_") for p in (ROOT / "modalities").glob("diffkit_*")}
    assert all(Path(place).is_relative_to(tmp_path) for place in places)


def test_the_version_is_the_same_everywhere(wheel: Path) -> None:
    metadata = zipfile.ZipFile(wheel).read(f"diffkit-{diffkit.__version__}.dist-info/METADATA").decode()
    assert Parser().parsestr(metadata)["Version"] == diffkit.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == diffkit.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(diffkit.__version__)}\b", changes, re.MULTILINE)


def test_every_dependency_is_pinned_in_constraints() -> None:
    pinned = {normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in "#"}
    assert requirements(*EXTRAS) - {"diffkit"} <= pinned


def test_every_import_is_a_dependency() -> None:
    """What a module imports at its top is in the plain install; what a function imports may be in an extra."""
    sources = [*(ROOT / "diffkit").rglob("*.py"), *(ROOT / "modalities").rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources]
    assert distributions(node for tree in trees for node in tree.body) <= requirements()
    assert distributions(node for tree in trees for node in ast.walk(tree)) <= requirements(*EXTRAS)


def distributions(nodes: Iterable[ast.AST]) -> set[str]:
    """The normalised names of the other packages that the import statements among ``nodes`` come from."""
    modules: list[str] = []
    for node in nodes:
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
    tops = {m.split(".")[0] for m in modules if not m.startswith("diffkit")} - sys.stdlib_module_names
    origin = importlib.metadata.packages_distributions()
    return {normal(origin.get(top, [top])[0]) for top in tops}


def requirements(*extras: str) -> set[str]:
    """The normalised names of what the plain install and ``extras`` ask for."""
    return {normal(r) for r in [*PROJECT["dependencies"], *(r for extra in extras for r in EXTRAS[extra])]}


def normal(requirement: str) -> str:
    """The normalised name of a requirement (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement)[0]).lower()
