"""Every bad input gets its problem, and a valid image after it is still classified correctly."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.app import bad_inputs
from tests.app.bad_inputs import Case


@pytest.mark.parametrize("case", bad_inputs.cases(), ids=lambda case: case.name)
def test_bad_input_gets_its_problem_and_the_next_request_is_answered(client: TestClient, case: Case) -> None:
    response = case.send(client)
    assert bad_inputs.is_problem(response, case), (response.status_code, response.text[:500])
    assert bad_inputs.is_espresso(client.post(bad_inputs.URL, content=bad_inputs.coffee(), headers=bad_inputs.JPEG))


@pytest.mark.parametrize("length", ["10000000000", "-1", "many"])
def test_declared_length_is_checked_before_the_body_is_read(client: TestClient, length: str) -> None:
    headers = bad_inputs.JPEG | {"content-length": length}
    response = client.post(bad_inputs.URL, content=b"", headers=headers)
    assert response.status_code == 413
    assert response.json()["type"] == "urn:vestibule:problem:body-too-large"
