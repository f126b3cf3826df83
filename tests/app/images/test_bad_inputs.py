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
