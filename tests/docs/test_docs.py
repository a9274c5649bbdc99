"""The docs are true: their Python runs, their test command is CI's, every public name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardkit

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOT_RUN = "<!-- not run -->"

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Line and code of a page's blocks in one language, those marked as not run left out."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        before = text[: found.start()].rstrip()
        if found[1] == language and not before.endswith(NOT_RUN):
            yield before.count("\n") + 2, found[2]


WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """All blocks of a page are one program, run in an empty folder; its lines are the page's."""
    program = ""
    for line, code in blocks(page, "python"):
        program += "\n" * (line - program.count("\n")) + code
    script = tmp_path / f"{page.stem}.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stderr[-3000:]}"


def test_ci_runs_the_readmes_test_command_word_for_word() -> None:
    commands = [code.strip() for _, code in blocks(ROOT / "README.md", "bash") if "pytest" in code]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci/run").read_text().splitlines()


def test_every_public_name_is_documented() -> None:
    text = "".join(page.read_text() for page in PAGES)
    names = [name for name in shardkit.__all__ if not name.startswith("__")]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*PAGES, *(ROOT / "docs/decisions").glob("*.md"), ROOT / "CONTRIBUTING.md"]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken
