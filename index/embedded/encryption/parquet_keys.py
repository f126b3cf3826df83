"""Encryption of parquet files exported from encrypted collections.

The files use Parquet modular encryption (https://parquet.apache.org/docs/file-format/data-pages/encryption/): AES-GCM
of every module, including the footer with the schema, with a data key per file, which the operator's key wraps. Needs
pyarrow.
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
    """Return whether a parquet file is encrypted.

    Raises:
        OSError.
    """
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def encryption_properties(keys: CollectionKeys) -> Any:
    """Return the `encryption_properties` for pyarrow's writer.

    Raises:
        LockedError: there is no operator's key.
    """
    if keys.operator is None:
        raise LockedError("a file cannot be encrypted without an operator's key")
    parquet, factory = _crypto_factory(keys)
    configuration = parquet.EncryptionConfiguration(
        footer_key=keys.operator.id, uniform_encryption=True, double_wrapping=False, data_key_length_bits=256
    )
    return factory.file_encryption_properties(parquet.KmsConnectionConfig(), configuration)


def decryption_properties(keys: CollectionKeys) -> Any:
    """Return the `decryption_properties` for pyarrow's reader, which raises LockedError if the key is missing."""
    parquet, factory = _crypto_factory(keys)
    return factory.file_decryption_properties(parquet.KmsConnectionConfig())


def _crypto_factory(keys: CollectionKeys) -> tuple[Any, Any]:
    """Return the module `pyarrow.parquet.encryption`, and its factory over the operator's key."""
    parquet = importlib.import_module("pyarrow.parquet.encryption")

    class OperatorKeyClient(parquet.KmsClient):  # type: ignore[misc,name-defined]
        """Key management service of pyarrow that is the operator's key in this process."""

        def wrap_key(self, key: bytes, id: str) -> str:
            """Return the file's data key as it is stored in the file."""
            return base64.b64encode(keys.operator_key(id, "the file").wrap(key, _ABOUT)).decode()

        def unwrap_key(self, wrapped: str, id: str) -> bytes:
            """Return the file's data key."""
            try:
                return keys.operator_key(id, "the file").unwrap(base64.b64decode(wrapped, validate=True), _ABOUT)
            except ValueError as error:
                raise InvalidError("the file's key is not valid base64") from error

    return parquet, parquet.CryptoFactory(lambda _: OperatorKeyClient())
