"""The operator's key for parquet files of encrypted collections.

They are encrypted as Parquet itself has it (https://parquet.apache.org/docs/file-format/data-pages/encryption/):
AES-GCM of every module, the footer with the schema among them, by a data key of the file's own, which the operator's
key wraps. Needs pyarrow.
"""

from __future__ import annotations

import base64
import importlib
from pathlib import Path
from typing import Any

from index.embedded.encryption.data_keys import CollectionKeys
from index.errors import InvalidError, LockedError

_MAGIC = b"PARE"  # of a file whose footer is encrypted
_ABOUT = "data key of a parquet file"


def is_encrypted(path: Path) -> bool:
    """Whether a parquet file is encrypted whole.

    Raises:
        OSError.
    """
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def encryption(keys: CollectionKeys) -> Any:
    """What pyarrow's writer needs: its `encryption_properties`.

    Raises:
        LockedError: there is no operator's key.
    """
    if keys.operator is None:
        raise LockedError("a file cannot be encrypted without an operator's key")
    parquet, factory = _factory(keys)
    asked = parquet.EncryptionConfiguration(
        footer_key=keys.operator.id, uniform_encryption=True, double_wrapping=False, data_key_length_bits=256
    )
    return factory.file_encryption_properties(parquet.KmsConnectionConfig(), asked)


def decryption(keys: CollectionKeys) -> Any:
    """What pyarrow's reader needs: its `decryption_properties`. It raises LockedError where the key is not here."""
    parquet, factory = _factory(keys)
    return factory.file_decryption_properties(parquet.KmsConnectionConfig())


def _factory(keys: CollectionKeys) -> tuple[Any, Any]:
    parquet = importlib.import_module("pyarrow.parquet.encryption")

    class Wrapping(parquet.KmsClient):  # type: ignore[misc,name-defined]
        """Stands where pyarrow expects a service that keeps keys."""

        def wrap_key(self, key: bytes, id: str) -> str:
            """The file's data key as it is written in the file."""
            return base64.b64encode(keys.wrapping(id, "the file").wrap(key, _ABOUT)).decode()

        def unwrap_key(self, wrapped: str, id: str) -> bytes:
            """The file's data key."""
            try:
                return keys.wrapping(id, "the file").unwrap(base64.b64decode(wrapped, validate=True), _ABOUT)
            except ValueError as error:
                raise InvalidError("the file's key is not what was written") from error

    return parquet, parquet.CryptoFactory(lambda _: Wrapping())
