"""What the head of an answer says of its coverage."""

from workers.query.coverage import MAX_HEADER_CHARS, Coverage, Missing, headers_of


def test_the_head_of_an_answer_says_who_is_missing_in_what_a_head_can_hold():
    def headers(*missing: Missing) -> dict[str, str]:
        return headers_of(Coverage(2, 2 - len(missing), not missing, 1, 0, ["ing1"], list(missing)))

    assert headers() == {"Minitrue-Complete": "true"}
    found = headers(Missing("ing2", 1, "is away"), Missing("ing3", 1, "no\r\nbüs"))
    assert found == {"Minitrue-Complete": "false", "Minitrue-Missing": "ing2: is away; ing3: no??b?s"}
    assert len(headers(Missing("ing2", 1, "x" * 5000))["Minitrue-Missing"]) == MAX_HEADER_CHARS
