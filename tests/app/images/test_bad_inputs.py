"""The table of bad inputs, with a good picture after every tenth that must still be answered right."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.app import bad_inputs
from tests.app.bad_inputs import Case


@pytest.mark.parametrize("case", bad_inputs.cases(), ids=lambda case: case.name)
def test_each_bad_input_gets_its_problem(client: TestClient, case: Case) -> None:
    response = case.send(client)
    assert bad_inputs.is_problem(response, case), (response.status_code, response.text[:500])


def test_good_pictures_between_bad_ones_are_answered_right(client: TestClient) -> None:
    for number, case in enumerate(bad_inputs.cases()):
        case.send(client)
        if number % 10 == 9:
            good = client.post(bad_inputs.URL, content=bad_inputs.coffee(), headers=bad_inputs.JPEG)
            assert bad_inputs.is_espresso(good), case.name


@pytest.mark.parametrize("length", ["10000000000", "-1", "many"])
def test_a_declared_length_is_judged_before_the_body_is_read(client: TestClient, length: str) -> None:
    headers = bad_inputs.JPEG | {"content-length": length}
    response = client.post(bad_inputs.URL, content=b"", headers=headers)
    assert response.status_code == 413
    assert response.json()["type"] == "urn:vestibule:problem:body-too-large"
