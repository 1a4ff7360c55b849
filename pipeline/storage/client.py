"""Clients of object stores through `obstore`: their settings and how their errors read.

Endpoint, region and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`, ...),
which obstore reads itself.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from dhr_batch.pipeline.errors import Refused

_LONGEST_MESSAGE = 300


def patience() -> float:
    """Seconds for which a call that fails is repeated. Raises Refused for what is no number."""
    text = os.environ.get("DHR_BATCH_STORAGE_PATIENCE", "60")
    try:
        return float(text)
    except ValueError:
        raise Refused(
            f"DHR_BATCH_STORAGE_PATIENCE={text} is not a number: give seconds, or unset it"
        ) from None


def options(timeout: float, retries: int, retry_seconds: float) -> dict[str, Any]:
    """Arguments of `obstore.store.from_url`.

    timeout: seconds for a single request. It is repeated by itself up to `retries` times, if it
    failed within `retry_seconds`.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    client: dict[str, Any] = {"timeout": timedelta(seconds=timeout)}
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    retry = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=retry_seconds),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2)},
    }
    return {"client_options": client, "retry_config": retry}


def message(error: BaseException) -> str:
    """The message of obstore without its debug dump and without the server's XML."""
    text = str(error).partition("\n\nDebug source")[0].partition(": <?xml")[0]
    return " ".join(text.split())[:_LONGEST_MESSAGE] or type(error).__name__
