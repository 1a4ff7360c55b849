"""Settings of `obstore` clients, and their error messages.

Endpoint, region and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`, ...),
which obstore reads itself.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from typing import Any

from dhr_batch.pipeline.errors import Refused

_LONGEST_MESSAGE = 300
# A month. Far longer times cannot be represented.
_LONGEST_PATIENCE = 2_592_000


def patience() -> float:
    """Return the number of seconds for which a failing call is repeated.

    Raises:
        Refused: If the environment variable is not such a number.
    """
    text = os.environ.get("DHR_BATCH_STORAGE_PATIENCE", "60")
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) <= _LONGEST_PATIENCE:
            return seconds
    raise Refused(
        f"DHR_BATCH_STORAGE_PATIENCE={text}",
        f"it is not a number from 0 to {_LONGEST_PATIENCE}",
        "give seconds, or unset it",
    )


def options(timeout: float, retries: int, retry_seconds: float) -> dict[str, Any]:
    """Return keyword arguments for `obstore.store.from_url`.

    Args:
        timeout: Seconds for a single request.
        retries: How often obstore itself repeats a failed request.
        retry_seconds: Seconds after which obstore stops repeating a request.
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
    """Return an obstore error message without its debug output and without the server's XML."""
    text = str(error).partition("\n\nDebug source")[0].partition(": <?xml")[0]
    return " ".join(text.split())[:_LONGEST_MESSAGE] or type(error).__name__
