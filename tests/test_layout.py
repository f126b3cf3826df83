"""The size and the names of packages, modules and functions: a newcomer finds a file by its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("app", "index", "models", "training")
MAX_MODULES, MAX_LINES, MAX_FUNCTION_LINES = 14, 400, 60
# Metaphors that used to be names, and are not terms of the field.
METAPHORS = {
    "asking", "parts", "shelf", "patience", "departure", "direct", "upkeep", "loaded", "loading", "pool", "gate",
    "door", "places", "refusal", "sight", "switched", "settled",
}  # fmt: skip


def modules() -> Iterator[Path]:
    """All modules of the product."""
    for package in PACKAGES:
        yield from sorted((PROJECT / package).rglob("*.py"))


def test_packages_have_few_modules() -> None:
    folders = {path.parent for path in modules()} - {PROJECT / "models"}
    sizes = {str(folder.relative_to(PROJECT)): len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert {name: size for name, size in sizes.items() if size > MAX_MODULES} == {}


def test_modules_are_short() -> None:
    sizes = {str(path.relative_to(PROJECT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_short_and_names_are_no_metaphors(package: str) -> None:
    too_long, metaphors = {}, set()
    for path in sorted((PROJECT / package).rglob("*.py")):
        metaphors |= {path.stem} & METAPHORS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.end_lineno is not None
                if not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                    too_long[f"{path.relative_to(PROJECT)}:{node.name}"] = node.end_lineno - node.lineno + 1
                if isinstance(node, ast.ClassDef):
                    metaphors |= {re.sub(r"^_", "", node.name).lower()} & METAPHORS
    assert (too_long, metaphors) == ({}, set())


@pytest.mark.parametrize("engine", ["embedded", "postgres"])
def test_class_names_are_unique(engine: str) -> None:
    """Of the public classes of app/ and of index/ with one storage engine.

    Schemas of different domains may share a name, and an interface and its implementations.
    """
    names: dict[str, list[str]] = {}
    interfaces = {
        node.name
        for path in (PROJECT / "index" / "protocol").glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    others = {"embedded", "postgres"} - {engine}
    for package in ("app", "index"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            if path.relative_to(PROJECT / package).parts[0] in others:
                continue
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and "schemas" not in path.stem:
                    names.setdefault(node.name, []).append(str(path.relative_to(PROJECT)))
    assert {name: places for name, places in names.items() if len(places) > 1 and name not in interfaces} == {}
