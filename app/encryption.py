"""The operator's key, from the environment or from a file."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from index.embedded.encryption.aead import OperatorKey
from index.errors import InvalidError


def operator_key(text: SecretStr | None, file: Path | None) -> OperatorKey | None:
    """The key that is given in one of the two ways; None where it is in neither.

    Raises:
        InvalidError: it is in both, the file cannot be read, or it is no key.
    """
    if text is not None and file is not None:
        raise InvalidError(
            "VESTIBULE_ENCRYPTION_KEY and VESTIBULE_ENCRYPTION_KEY_FILE: the key is given twice; keep one of them"
        )
    if text is not None:
        return OperatorKey.from_text(text.get_secret_value())
    return None if file is None else read_key(file)


def read_key(file: Path) -> OperatorKey:
    """The key in a file, in base64.

    Raises:
        InvalidError: the file cannot be read, or holds no key.
    """
    try:
        return OperatorKey.from_text(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, InvalidError) as error:
        raise InvalidError(f"the encryption key in {file}: {error}") from error
