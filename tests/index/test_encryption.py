"""Encryption is standard AES-GCM; a value can be decrypted only in its place and with its key."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as Primitive
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from index.embedded import encryption
from index.embedded.encryption import PLAINTEXT, AeadCipher
from index.errors import CorruptError, InvalidError, LockedError
from index.operator_key import OVERHEAD, OperatorKey

KEY = bytes(range(32))
CIPHER = AeadCipher(KEY)
# Written by version 1: "Zoë" encrypted as the subject of row 7, and its lookup text.
GOLDEN = bytes.fromhex("6a2bee99f86f0a14689b7cca219f64a1b924c0e3f5c523e42a7bbbe69ac7b7d4")
LOOKUP = "83b277adf57759370e92e189237dd7eb"


def derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.new(key, b"vestibule " + purpose, hashlib.sha256).digest()


def test_an_encrypted_value_is_a_nonce_a_ciphertext_and_a_tag() -> None:
    stored = CIPHER.encrypt(b"image", "crop", 7)
    nonce, ciphertext, tag = stored[:12], stored[12:-16], stored[-16:]
    primitive = Primitive(algorithms.AES256(derived(KEY, b"seal")), modes.GCM(nonce, tag)).decryptor()
    primitive.authenticate_additional_data(b"crop|7")
    assert primitive.update(ciphertext) + primitive.finalize() == b"image"
    assert len(stored) == 5 + CIPHER.overhead == 5 + OVERHEAD
    assert len({CIPHER.encrypt(b"image", "crop", 7)[:12] for _ in range(100)}) == 100


def test_values_of_version_1_are_decrypted() -> None:
    assert CIPHER.decrypt(GOLDEN, "subject", LOOKUP, 7).decode() == "Zoë"
    assert CIPHER.lookup("Zoë") == LOOKUP
    assert hmac.new(derived(KEY, b"lookup"), "Zoë".encode(), "sha256").hexdigest()[:32] == LOOKUP


def test_a_changed_or_moved_value_is_refused() -> None:
    stored = CIPHER.encrypt(b"image", "crop", 7)
    assert CIPHER.decrypt(stored, "crop", 7) == b"image"
    changed = [stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :] for place in range(len(stored))]
    for data in (*changed, stored[:-1], stored + b"\0", stored[: OVERHEAD - 1], b"", None):
        with pytest.raises(CorruptError, match=r"^the encrypted crop of 7 is damaged or misplaced$"):
            CIPHER.decrypt(data, "crop", 7)
    for cipher, about in ((CIPHER, ("crop", 8)), (CIPHER, ("vector", 7)), (AeadCipher(KEY[::-1]), ("crop", 7))):
        with pytest.raises(CorruptError):
            cipher.decrypt(stored, *about)


def test_the_plaintext_cipher_changes_nothing() -> None:
    assert PLAINTEXT.decrypt(PLAINTEXT.encrypt(b"x", "crop", 7), "crop", 8) == b"x"
    assert (PLAINTEXT.decrypt(None, "crop", 7), PLAINTEXT.lookup("x")) == (b"", "x")
    assert (PLAINTEXT.overhead, PLAINTEXT.encrypted_file_size(3)) == (0, 3)
    assert b"".join(PLAINTEXT.encrypt_file(b"xyz", b"about")) == PLAINTEXT.decrypt_file(b"xyz", b"other") == b"xyz"


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 30, 35])
def test_a_file_is_encrypted_in_chunks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "CHUNK_BYTES", 10)
    data = bytes(range(size))
    chunks = [bytes(chunk) for chunk in CIPHER.encrypt_file(memoryview(data), b"name", b"header")]
    assert [len(chunk) for chunk in chunks] == [min(10, size - at) + OVERHEAD for at in range(0, size, 10)]
    stored = b"".join(chunks)
    assert CIPHER.encrypted_file_size(size) == len(stored)
    assert CIPHER.decrypt_file(memoryview(stored), b"name", b"header") == data
    changed = {b"".join(chunks[:-1]), b"".join(chunks[::-1]), stored[:-1], stored[:-OVERHEAD]}
    changed |= {stored + stored[: 10 + OVERHEAD]}
    changed |= {stored[:at] + bytes([stored[at] ^ 0x80]) + stored[at + 1 :] for at in range(0, len(stored), 7)}
    for wrong in changed - {stored, b""}:
        with pytest.raises(CorruptError):
            CIPHER.decrypt_file(wrong, b"name", b"header")
    if size:
        with pytest.raises(CorruptError, match=r"^another name: the encrypted content is damaged or misplaced$"):
            CIPHER.decrypt_file(stored, b"another name", b"header")


def test_an_operators_key_wraps_data_keys_and_has_an_id() -> None:
    key = OperatorKey.from_text(f" {base64.b64encode(KEY).decode()}\n")
    assert key.id == OperatorKey(KEY).id == derived(KEY, b"id").hex()[:16]
    wrapped = key.wrap(b"d" * 32, "data key of 1")
    assert key.unwrap(wrapped, "data key of 1") == b"d" * 32
    with pytest.raises(LockedError, match=f"^the data key of 2 cannot be unwrapped by the operator's key {key.id}$"):
        key.unwrap(wrapped, "data key of 2")
    with pytest.raises(LockedError):
        OperatorKey(KEY[::-1]).unwrap(wrapped, "data key of 1")


@pytest.mark.parametrize("text", ["", "not base64!", base64.b64encode(KEY[1:]).decode(), "é"])
def test_an_invalid_key_is_refused_and_not_repeated_in_the_error(text: str) -> None:
    with pytest.raises(InvalidError, match="expected a key") as refused:
        OperatorKey.from_text(text)
    assert not text or text not in str(refused.value)
