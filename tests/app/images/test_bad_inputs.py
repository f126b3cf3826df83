"""Every bad input gets its problem, and valid images sent between them are still classified correctly."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.app import bad_inputs
from tests.app.bad_inputs import Case


@pytest.mark.parametrize("case", bad_inputs.cases(), ids=lambda case: case.name)
def test_bad_input_gets_its_problem(client: TestClient, case: Case) -> None:
    response = case.send(client)
    assert bad_inputs.is_problem(response, case), (response.status_code, response.text[:500])


def test_valid_image_is_classified_correctly_after_bad_inputs(client: TestClient) -> None:
    for number, case in enumerate(bad_inputs.cases()):
        case.send(client)
        if number % 10 == 9:
            response = client.post(bad_inputs.URL, content=bad_inputs.coffee(), headers=bad_inputs.JPEG)
            assert bad_inputs.is_espresso(response), case.name


@pytest.mark.parametrize("length", ["10000000000", "-1", "many"])
def test_declared_length_is_checked_before_the_body_is_read(client: TestClient, length: str) -> None:
    headers = bad_inputs.JPEG | {"content-length": length}
    response = client.post(bad_inputs.URL, content=b"", headers=headers)
    assert response.status_code == 413
    assert response.json()["type"] == "urn:vestibule:problem:body-too-large"
