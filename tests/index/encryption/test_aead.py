"""What is sealed is AES-GCM as its standard has it, is read only where it was written, and only by its key."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as Primitive
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from index.embedded.encryption import aead as sealing
from index.embedded.encryption.aead import OVERHEAD, PLAINTEXT, AeadCipher, OperatorKey
from index.errors import CorruptError, InvalidError, LockedError

KEY = bytes(range(32))
# Written by version 1, to be read for ever: "Zoë" as the subject of the row 7, and what it is looked up by.
SEALED = bytes.fromhex("6a2bee99f86f0a14689b7cca219f64a1b924c0e3f5c523e42a7bbbe69ac7b7d4")
LOOKUP = "83b277adf57759370e92e189237dd7eb"


def derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.new(key, b"vestibule " + purpose, hashlib.sha256).digest()


def test_a_sealed_value_is_a_nonce_a_ciphertext_and_a_tag() -> None:
    sealed = AeadCipher(KEY).encrypt(b"picture", "crop", 7)
    nonce, ciphertext, tag = sealed[:12], sealed[12:-16], sealed[-16:]
    primitive = Primitive(algorithms.AES256(derived(KEY, b"seal")), modes.GCM(nonce, tag)).decryptor()
    primitive.authenticate_additional_data(b"crop|7")
    assert primitive.update(ciphertext) + primitive.finalize() == b"picture"
    assert len(sealed) == AeadCipher(KEY).encrypted_size(7) == 7 + OVERHEAD
    assert len({AeadCipher(KEY).encrypt(b"picture", "crop", 7)[:12] for _ in range(100)}) == 100


def test_what_was_sealed_once_is_read_for_ever() -> None:
    assert AeadCipher(KEY).decrypt(SEALED, "subject", LOOKUP, 7).decode() == "Zoë"
    assert (
        AeadCipher(KEY).lookup("Zoë")
        == LOOKUP
        == hmac.new(derived(KEY, b"lookup"), "Zoë".encode(), "sha256").hexdigest()[:32]
    )


def test_it_is_read_only_where_it_was_written_and_whole() -> None:
    aead = AeadCipher(KEY)
    sealed = aead.encrypt(b"picture", "crop", 7)
    assert aead.decrypt(sealed, "crop", 7) == b"picture"
    changed = [sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :] for place in range(len(sealed))]
    for data in (*changed, sealed[:-1], sealed + b"\0", sealed[: OVERHEAD - 1], b"", None):
        with pytest.raises(CorruptError, match=r"^the encrypted crop of 7 is damaged or was moved there$"):
            aead.decrypt(data, "crop", 7)
    for about in (("crop", 8), ("vector", 7), ("crop",)):
        with pytest.raises(CorruptError):
            aead.decrypt(sealed, *about)
    with pytest.raises(CorruptError):
        AeadCipher(KEY[::-1]).decrypt(sealed, "crop", 7)


def test_plain_changes_nothing() -> None:
    assert PLAINTEXT.decrypt(PLAINTEXT.encrypt(b"x", "crop", 7), "crop", 8) == b"x"
    assert (
        PLAINTEXT.decrypt(None, "crop", 7),
        PLAINTEXT.lookup("x"),
        PLAINTEXT.encrypted_size(3),
        PLAINTEXT.encrypted_file_size(3),
    ) == (
        b"",
        "x",
        3,
        3,
    )
    assert b"".join(PLAINTEXT.encrypt_file(b"xyz", b"about")) == PLAINTEXT.decrypt_file(b"xyz", b"other") == b"xyz"


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 30, 35])
def test_a_large_one_is_sealed_in_pieces(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "CHUNK_BYTES", 10)
    aead, data = AeadCipher(KEY), bytes(range(size))
    pieces = [bytes(piece) for piece in aead.encrypt_file(memoryview(data), b"name", b"header")]
    assert [len(piece) for piece in pieces] == [min(10, size - at) + OVERHEAD for at in range(0, size, 10)]
    whole = b"".join(pieces)
    assert aead.encrypted_file_size(size) == len(whole)
    assert aead.decrypt_file(memoryview(whole), b"name", b"header") == data
    wrong = [
        b"".join(pieces[:-1]),
        b"".join(pieces[::-1]),
        whole[:-1],
        whole[:-OVERHEAD],
        whole + whole[: 10 + OVERHEAD],
    ]
    for changed in (one for one in wrong if one not in (whole, b"")):
        with pytest.raises(CorruptError):
            aead.decrypt_file(changed, b"name", b"header")
    for place in range(0, len(whole), 7):
        changed = whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :]
        with pytest.raises(CorruptError):
            aead.decrypt_file(changed, b"name", b"header")
    if size:
        with pytest.raises(
            CorruptError, match=r"^the encrypted content of another name is damaged or belongs to another file$"
        ):
            aead.decrypt_file(whole, b"another name", b"header")


def test_an_operators_key_wraps_and_is_known_by_its_id() -> None:
    key = OperatorKey.from_text(f" {base64.b64encode(KEY).decode()}\n")
    assert key.id == OperatorKey(KEY).id == derived(KEY, b"id").hex()[:16]
    wrapped = key.wrap(b"d" * 32, "data key of 1")
    assert key.unwrap(wrapped, "data key of 1") == b"d" * 32
    with pytest.raises(LockedError, match=f"^the data key of 2 cannot be unwrapped by the operator's key {key.id}$"):
        key.unwrap(wrapped, "data key of 2")
    with pytest.raises(LockedError):
        OperatorKey(KEY[::-1]).unwrap(wrapped, "data key of 1")


@pytest.mark.parametrize("text", ["", "not base64!", base64.b64encode(KEY[1:]).decode(), "é"])
def test_what_is_no_key_is_refused_without_being_told(text: str) -> None:
    with pytest.raises(InvalidError, match="expected a key") as refused:
        OperatorKey.from_text(text)
    assert not text or text not in str(refused.value)
