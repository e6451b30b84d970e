"""JSON as checkpoints must have it: UTF-8, no key twice, no NaN."""

from __future__ import annotations

import json
from typing import Any

from ..errors import CheckpointError


def parse_json(text: bytes, what: str) -> Any:
    """Parse the JSON in a file's bytes. Raises CheckpointError, naming ``what``."""
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not valid JSON ({error}): the file is damaged or was written by a faulty "
            "program; fetch or export it again"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key!r} occurs twice")
            seen.add(key)
    return result


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
