from __future__ import annotations

import orjson
import pytest

from mini_visa.gateway.endpoints import problem_response
from mini_visa.gateway.problems import FieldError, Problem, bad_input, busy, not_found


@pytest.mark.parametrize(
    "problem",
    [
        bad_input(FieldError("amount", "is required")),
        not_found("payment"),
        busy("busy", "Later."),
        busy("rate-limited", "Later.", status=429, retry_after_s=0),
        Problem(413, "too-large", "Less."),
        Problem(417, "expectation-failed", "No."),
        Problem(422, "request-id-reused", "No."),
        Problem(504, "timed-out", "No."),
    ],
    ids=lambda problem: problem.kind,
)
def test_a_problem_is_what_rfc_9457_says(problem: Problem) -> None:
    response = problem_response(problem)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.status == problem.status
    assert isinstance(response.body, bytes)
    body = orjson.loads(response.body)
    assert body["status"] == problem.status and body["type"] == f"urn:mini-visa:problem:{problem.kind}"
    assert body["title"] and body["detail"] == problem.detail
    assert (int(response.headers.get("Retry-After", 0)) >= 1) == (problem.status in (429, 503))


def test_bad_input_names_each_field() -> None:
    problem = bad_input(FieldError("pan", "is required"), FieldError("amount", "is required"))
    assert problem.detail == "pan is required (and 1 more)"
    assert orjson.loads(problem.body())["errors"] == [
        {"field": "pan", "message": "is required"},
        {"field": "amount", "message": "is required"},
    ]
