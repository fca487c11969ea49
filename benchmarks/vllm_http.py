"""Requests to a server, refusals included; for benchmarks and tests."""

import json
import urllib.error
import urllib.request
from typing import Any


def http(method: str, url: str, body: Any = None, key: str = "none") -> tuple[int, str]:
    """Return status and text of an answer, whatever the status is.

    Args:
        method: GET, PUT or POST.
        url: the whole address.
        body: sent as JSON, or None.
        key: of the API.

    Raises:
        OSError: there is no answer.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()
