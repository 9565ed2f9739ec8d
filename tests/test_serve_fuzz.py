"""Requests made up from the server's own OpenAPI page, right and wrong ones: whatever comes, it is never the server
that fails. A few in `make test`, 5,000 in `make api-fuzz`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from served_models import four, serving

FEW, ALL = 60, 5000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    references = four(tmp_path_factory.mktemp("served"))
    with serving(references, engine={"cache_tokens": 4096}, max_new_tokens=4, max_n=3, max_rows=8) as url:
        yield url


def page(url: str) -> dict[str, Any]:
    """The server's page, with the names of its models where any text would do: else nearly all would be unknown."""
    described: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    for name, schema in described["components"]["schemas"].items():
        if name.endswith("Request") and "model" in schema["properties"]:
            schema["properties"]["model"] = {"enum": ["chat", "labels", "encoder", "t5", "nobody"]}
            for most in {"max_tokens", "max_completion_tokens", "max_output_tokens"} & schema["properties"].keys():
                schema["properties"][most] = {"type": "integer", "minimum": 1, "maximum": 4}
    return described


def try_all(url: str, number: int) -> Counter[int]:
    """The statuses of so many requests, alike many for every route that does work, and as many right as wrong ones."""
    schema = schemathesis.openapi.from_dict(page(url))
    operations = [found.ok() for found in schema.get_all_operations()]
    kinds = [(operation, mode) for operation, mode in itertools.product(operations, GenerationMode)
             if mode is GenerationMode.POSITIVE or operation.method == "post"]  # a bare GET cannot be wrong
    each = number // sum(operation.method == "post" for operation, _ in kinds)  # the others have few forms
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=60) as client:
        for operation, mode in kinds:

            @given(operation.as_strategy(generation_mode=mode))
            @settings(max_examples=each, deadline=None, database=None, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))
            @seed(0)
            def try_one(case: Any) -> None:
                response = case.call(base_url=url, timeout=60)
                statuses[response.status_code] += 1
                assert response.status_code < 500, case.as_curl_command()
                if response.status_code >= 400:
                    assert response.json()["error"]["message"], case.as_curl_command()

            try_one()
        assert client.get("/health").json() == {"status": "ok"}
    return statuses


def test_a_few(url: str) -> None:
    statuses = try_all(url, FEW)
    assert statuses[200] > FEW // 25
    assert statuses[400] > FEW // 4


@pytest.mark.long
def test_thousands(url: str) -> None:
    statuses = try_all(url, ALL)
    print(dict(statuses))
    assert sum(statuses.values()) >= ALL
    assert statuses[200] > ALL // 25
