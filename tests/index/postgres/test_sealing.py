"""Sealed values and lookups."""

from __future__ import annotations

import pytest

from index.errors import CorruptError
from index.postgres.store.sealing import Lookups, seal, unseal


def test_a_sealed_value_is_read_with_its_own_key_only() -> None:
    key, sealed = seal(b"a crop")
    assert unseal(key, sealed) == b"a crop"
    assert b"a crop" not in sealed
    for other, value in ((seal(b"a crop")[0], sealed), (bytes(32), sealed), (key, sealed[:-1]), (key, b"")):
        with pytest.raises(CorruptError):
            unseal(other, value)


def test_lookups_tell_subjects_values_and_galleries_apart() -> None:
    lookups = Lookups(bytes(32))
    assert lookups.subject(1, "ada") == lookups.subject(1, "ada")
    assert lookups.value(1, "floor", 1) == lookups.value(1, "floor", 1.0)
    different = [
        lookups.subject(1, "ada"),
        lookups.subject(2, "ada"),
        Lookups(bytes(31) + b"1").subject(1, "ada"),
        lookups.value(1, "floor", 1),
        lookups.value(1, "floor", True),
        lookups.value(1, "floor", "1"),
        lookups.value(1, "level", 1),
    ]
    assert len(set(different)) == len(different)
