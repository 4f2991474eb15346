"""Every code block in the README and in docs/ runs.

The Python blocks of a file run in order as one program, in an empty folder. The lines of its console blocks
that begin with ``diffkit`` run in that folder too, and those that begin with ``make`` have to name a target
of the Makefile. A block that cannot run here says why, in a comment on the line before it:

    <!-- not run: trains for two hours -->
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT = {"_build", "auto_gallery"}
FILES = sorted(ROOT.glob("*.md")) + sorted(p for p in (ROOT / "docs").rglob("*.md") if not BUILT & set(p.parts))
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?```(?P<language>[a-z]+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
DIFFKIT = [sys.executable, "-c", "import sys; from diffkit.cli import main; sys.exit(main())"]
SHELL = {"bash", "console", "sh", "shell"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line the text starts on, and why it does not run."""

    language: str
    text: str
    line: int
    reason: str | None


def blocks(path: Path) -> list[Block]:
    page = path.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["text"], page.count("\n", 0, m.start("text")), m["reason"]) for m in FENCE.finditer(page)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a shell block: what follows a ``$``, or every line where there is no prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    return prompted or [line for line in lines if line.strip() and not line.startswith("#")]


def program(path: Path) -> str:
    """The Python blocks of a page, each at the line where it stands in the page."""
    lines: list[str] = []
    for block in blocks(path):
        if block.language == "python" and not block.reason:
            lines += [""] * (block.line - len(lines)) + block.text.splitlines()
    return "\n".join(lines)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(command: list[str], folder: Path) -> None:
    """Run a command in ``folder``; what it printed is the message of a failure."""
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("path", [p for p in FILES if program(p)], ids=name)
def test_python_blocks_run(path: Path, tmp_path: Path) -> None:
    # compile() with the page's own name makes a traceback point into the page.
    run([sys.executable, "-c", f"exec(compile({program(path)!r}, {name(path)!r}, 'exec'))"], tmp_path)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_shell_blocks_run(path: Path, tmp_path: Path) -> None:
    for block in blocks(path):
        for command in commands(block) if block.language in SHELL and not block.reason else []:
            word, *rest = shlex.split(command, comments=True)
            where = f"{name(path)}:{block.line}"
            assert word in {"diffkit", "make"}, f"{where} cannot run {word!r}; mark it <!-- not run: reason -->"
            if word == "make":
                targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert set(rest) <= set(targets), f"{where} names a target that the Makefile has not: {rest}"
            else:
                run([*DIFFKIT, *rest], tmp_path)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_fence_is_read(path: Path) -> None:
    """A fence that the pattern above does not match would be skipped without a word."""
    page = path.read_text(encoding="utf-8")
    plain = len(re.findall(r"^```[a-z]+$", page, re.MULTILINE))
    indented = re.findall(r"^[ \t]+```", page, re.MULTILINE)
    assert len(blocks(path)) == plain and not indented
    assert not re.findall(r"^```(?![a-z{]|$)", page, re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    page = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (path.parent / target).exists(), f"{name(path)} links to {target}, which is not there"


def test_every_module_has_its_place_in_the_api_pages() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    files = [p.relative_to(ROOT) for p in (ROOT / "diffkit").rglob("*.py") if "cli" not in p.parts]
    files += [p.relative_to(ROOT / "modalities") for p in (ROOT / "modalities").rglob("*.py")]
    modules = {".".join(p.with_suffix("").parts) for p in files if not p.stem.startswith("_")}
    assert set(re.findall(r"automodule:: (\S+)", pages)) == modules
