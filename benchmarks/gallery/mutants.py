"""Mutation testing of the gallery's ledger, records and segments: do tests notice when the code is changed?

mutmut changes, runs and counts; [tool.mutmut] in pyproject.toml says what, and with which tests. Added here are mutants
of SQL, of which mutmut knows nothing, and calls that are left out. docs/mutation-testing.md has what was seen.

    .venv/bin/pip install mutmut==3.8.1
    OMP_NUM_THREADS=1 TMPDIR=/dev/shm python -m benchmarks.gallery.mutants run --max-children 1
    python -m benchmarks.gallery.mutants results      who survived
    python -m benchmarks.gallery.mutants show NAME    what was changed
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst
from mutmut.__main__ import cli
from mutmut.mutation import mutators

_SQL = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|VALUES|WHERE|FROM|JOIN|SET|ORDER BY|ON CONFLICT"
    r"|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b"
)
# What is replaced, one place at a time. Each keeps the number of parameters, so that it is not its binding that fails.
_CHANGES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\w.+]+ (?:[<>!]?=|[<>]|IS NOT|IS) (?:\?|NULL|[\w.]+)(?=$| |\))", r"(\g<0> OR 1)"),  # a condition
        (r" AND ", " OR "),
        (r" OR (?!IGNORE|REPLACE)", " AND "),
        (r" < ", " <= "),
        (r" <= ", " < "),
        (r" > ", " >= "),
        (r" >= ", " > "),
        (r" = ", " != "),
        (r" != ", " = "),
        (r" IS NOT ", " IS "),
        (r" IS (?!NOT)", " IS NOT "),
        (r"NOT (?=json_valid)", ""),
        (r" ORDER BY [\w.]+", ""),
        (r" ORDER BY [\w.]+", r"\g<0> DESC"),
        (r" LIMIT \?", r"\g<0> + 1"),
        (r"LEFT JOIN", "JOIN"),
        (r" OR IGNORE| OR REPLACE| DISTINCT| ON CONFLICT DO NOTHING", ""),
        (r"\bmax\(", "min("),
        (r" \+ 1\b", " - 1"),
        (r", 0\)", ", 1)"),
        (r"BEGIN IMMEDIATE", "BEGIN"),
        (r"COMMIT", "ROLLBACK"),
        (r"ROLLBACK", "COMMIT"),
        (r"\w[^;]*; ", ""),
    )
)


def sql_mutants(text: str) -> Iterator[str]:
    """A piece of SQL with one thing changed, in every way; nothing where it is none."""
    if _SQL.search(text):
        for pattern, replacement in _CHANGES:
            for match in pattern.finditer(text):
                yield text[: match.start()] + match.expand(replacement) + text[match.end() :]


def _string(node: libcst.BaseString) -> Iterator[libcst.BaseString]:
    """mutmut's own, of another case among them, unless it is SQL, to which that is the same."""
    if isinstance(node, libcst.SimpleString) and _SQL.search(node.value):
        yield from (node.with_changes(value=value) for value in sql_mutants(node.value))
    else:
        yield from mutators.operator_string(node)


def _formatted(node: libcst.FormattedStringText) -> Iterator[libcst.FormattedStringText]:
    yield from (node.with_changes(value=value) for value in sql_mutants(node.value))


def _left_out(node: libcst.Expr) -> Iterator[libcst.Expr]:
    """Without a call that is made for its effect."""
    if isinstance(node.value, libcst.Call):
        yield node.with_changes(value=libcst.Name("None"))


def main() -> None:
    """mutmut's command line, with the mutants of this file."""
    mutators.mutation_operators[:] = [
        *(pair for pair in mutators.mutation_operators if pair[1] is not mutators.operator_string),
        (libcst.BaseString, _string),
        (libcst.FormattedStringText, _formatted),
        (libcst.Expr, _left_out),
    ]
    cli()


if __name__ == "__main__":
    main()
