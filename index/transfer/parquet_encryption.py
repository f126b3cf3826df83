"""Encryption of Parquet files by the operator's key.

Parquet modular encryption (https://parquet.apache.org/docs/file-format/data-pages/encryption/): AES-GCM of every
module, including the footer with the schema, with a data key for each file, which the operator's key wraps.
"""

from __future__ import annotations

import base64
import importlib
from pathlib import Path
from typing import Any

from index.errors import InvalidError, LockedError
from index.operator_key import OperatorKey, matching_key

_ENCRYPTED_MAGIC = b"PARE"  # of a file whose footer is encrypted
_ABOUT = "data key of a parquet file"


def is_encrypted(path: Path) -> bool:
    """Return whether a parquet file is encrypted.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_ENCRYPTED_MAGIC)) == _ENCRYPTED_MAGIC


def for_writing(key: OperatorKey | None) -> Any:
    """Return the `encryption_properties` for pyarrow's writer.

    Raises:
        LockedError: there is no operator's key.
    """
    if key is None:
        raise LockedError("a file cannot be encrypted without an operator's key")
    parquet, factory = _crypto_factory(key)
    configuration = parquet.EncryptionConfiguration(
        footer_key=key.id, uniform_encryption=True, double_wrapping=False, data_key_length_bits=256
    )
    return factory.file_encryption_properties(parquet.KmsConnectionConfig(), configuration)


def for_reading(key: OperatorKey | None) -> Any:
    """Return the `decryption_properties` for pyarrow's reader, which raises LockedError if the key is missing."""
    parquet, factory = _crypto_factory(key)
    return factory.file_decryption_properties(parquet.KmsConnectionConfig())


def _crypto_factory(key: OperatorKey | None) -> tuple[Any, Any]:
    """Return the module `pyarrow.parquet.encryption`, and its factory over the operator's key."""
    parquet = importlib.import_module("pyarrow.parquet.encryption")

    class OperatorKeyClient(parquet.KmsClient):  # type: ignore[misc,name-defined]
        """A key management service for pyarrow that wraps keys with the operator's key, in this process."""

        def wrap_key(self, data_key: bytes, id: str) -> str:
            """Return the data key, wrapped, in the form that the file stores."""
            return base64.b64encode(matching_key(key, id, "the file").wrap(data_key, _ABOUT)).decode()

        def unwrap_key(self, wrapped: str, id: str) -> bytes:
            """Return the file's data key."""
            try:
                return matching_key(key, id, "the file").unwrap(base64.b64decode(wrapped, validate=True), _ABOUT)
            except ValueError as error:
                raise InvalidError("the file's key is not valid base64") from error

    return parquet, parquet.CryptoFactory(lambda _: OperatorKeyClient())
