"""Draw docs/pictures/architecture.svg from the code: `python docs/draw_architecture.py` (part of `make docs`).

The layers are those that import-linter checks (pyproject.toml), the names in a box are the modules of that package. A
test compares the picture with what this draws.
"""

from __future__ import annotations

import textwrap
import tomllib
from html import escape
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PICTURE = PROJECT / "docs" / "pictures" / "architecture.svg"

WIDTH, MARGIN, GAP, PADDING = 1180, 20, 10, 8
LINE, TITLE, CHARACTER = 13, 16, 5.9  # pixels: height of a line of modules and of a title, width of a character
COLOURS = {"app": "#e8f0fb", "models": "#eaf6ea", "index": "#fdf1e0", "training": "#f6eaf4"}


def modules(package: str) -> list[str]:
    """Return the names of a package's modules and subpackages; of a module an empty list."""
    folder = PROJECT / package.replace(".", "/")
    names = [path.stem for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    return names + [f"{path.parent.name}/" for path in sorted(folder.glob("*/__init__.py"))]


def layers(package: str) -> list[list[str]]:
    """Return the members of each layer of the contract about `package`, the topmost first, as dotted names."""
    for contract in tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]:
        containers = contract.get("containers", [""])
        rows = [[name.strip(" ()") for name in row.split("|")] for row in contract.get("layers", [])]
        members = [[f"{containers[0]}.{name}".lstrip(".") for name in row] for row in rows]
        if members and all(name.startswith(f"{package}.") for row in members for name in row):
            return members
    raise LookupError(f"pyproject.toml has no contract about the layers of {package}")


def subpackages(package: str) -> list[str]:
    """Return the dotted names of a package's subpackages."""
    return [f"{package}.{path.parent.name}" for path in sorted((PROJECT / package).glob("*/__init__.py"))]


def _row(packages: list[str], top: int) -> tuple[list[str], int]:
    """Return the SVG of one layer at height `top`, and the height below it."""
    width = (WIDTH - 2 * MARGIN - GAP * (len(packages) - 1)) / len(packages)
    texts = [textwrap.wrap(", ".join(modules(package)), int((width - 2 * PADDING) / CHARACTER)) for package in packages]
    height = 2 * PADDING + TITLE + LINE * max(len(lines) for lines in texts)
    parts = []
    for number, (package, lines) in enumerate(zip(packages, texts, strict=True)):
        left = MARGIN + number * (width + GAP)
        colour = COLOURS[package.split(".")[0]]
        parts.append(f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{height}" rx="5" fill="{colour}"/>')
        title = package.replace(".", "/") + ("/" if modules(package) else ".py")
        parts.append(
            f'<text x="{left + PADDING:.0f}" y="{top + PADDING + 11}" font-weight="bold">{escape(title)}</text>'
        )
        parts += [
            f'<text x="{left + PADDING:.0f}" y="{top + PADDING + TITLE + LINE * (place + 1) - 3}">{escape(line)}</text>'
            for place, line in enumerate(lines)
        ]
    return parts, top + height + GAP


def draw() -> str:
    """Return the picture as SVG."""
    choice, _, *interface = layers("index")  # the second row are the storage engines
    rows = [*layers("app"), ["models"], choice, *layers("index.embedded"), *interface]
    training = subpackages("training")
    parts: list[str] = []
    top = MARGIN

    def heading(text: str) -> None:
        nonlocal top
        parts.append(f'<text x="{MARGIN}" y="{top + 12}" font-size="13">{escape(text)}</text>')
        top += 22

    heading("The service. Each row imports only rows below it.")
    for row in rows:
        drawn, top = _row(row, top)
        parts += drawn
    top += GAP
    heading("Offline training, which imports models/ and never app/ or index/.")
    for row in (["training"], training[: len(training) // 2], training[len(training) // 2 :]):
        drawn, top = _row(row, top)
        parts += drawn
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + MARGIN}" '
        f'viewBox="0 0 {WIDTH} {top + MARGIN}" font-family="DejaVu Sans, Verdana, sans-serif" font-size="10">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top + MARGIN}" fill="white"/>', *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
