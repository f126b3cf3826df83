"""What is logged on a terminal."""

from __future__ import annotations

import io

import pytest
import structlog

from app.server import logging_setup


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_restore_logging")
def test_a_traceback_tells_where_and_not_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    logging_setup.configure()

    def fails(picture: str) -> None:
        raise ValueError(f"{len(picture)} characters are none of ours")

    try:
        fails("somebody's face")
    except ValueError:
        structlog.get_logger().exception("unexpected_error", path="/verify")
    told = terminal.getvalue()
    assert "unexpected_error" in told
    assert "/verify" in told
    assert "in fails" in told
    assert "ValueError: 15 characters" in told
    assert "face" not in told.replace("somebody's face\")", "")  # the line of the call is the program's
