"""Rooms import only rooms above them; order is pure; one module knows Ray."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOMS = (
    "errors",
    "executors",
    "format",
    "storage",
    "index",
    "order",
    "pack",
    "decode",
    "transforms",
    "samples",
    "world",
    "dataset",
    "streaming",
    "loader",
    "cli",
)
PACKAGE = Path(__file__).parent.parent / "shardkit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "shardkit" and len(parts) > 1 else None


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in ROOMS, f"{own} is not in the list of rooms"
    for name in imports_of(path):
        room = room_of(name)
        if room is not None:
            assert ROOMS.index(room) <= ROOMS.index(own), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_order_is_pure_numpy(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] != "order":
        return
    for name in imports_of(path):
        first = name.split(".")[0]
        assert first not in {"torch", "pyarrow", "time", "random", "duckdb"}, f"{path}: {name}"


def test_one_module_knows_ray() -> None:
    users = {path for path in MODULES if "ray" in {n.split(".")[0] for n in imports_of(path)}}
    assert users <= {PACKAGE / "executors" / "ray_executor.py"}
