"""Log lines on a terminal."""

from __future__ import annotations

import io

import pytest
import structlog

from app.server import logging_setup


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_restore_logging")
def test_a_traceback_shows_no_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    logging_setup.configure()

    def fails(image: str) -> None:
        raise ValueError(f"{len(image)} characters are no image")

    try:
        fails("somebody's face")
    except ValueError:
        structlog.get_logger().exception("unexpected_error", path="/verify")
    text = terminal.getvalue()
    assert "unexpected_error" in text
    assert "/verify" in text
    assert "in fails" in text
    assert "ValueError: 15 characters" in text
    assert "face" not in text.replace("somebody's face\")", "")  # in the source line of the call
