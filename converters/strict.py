"""Settings that are validated, immutable, and say which setting is wrong."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import FormatError, RecipeError


class Strict(BaseModel):
    """A frozen pydantic model without unknown fields. Raises :class:`RecipeError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise RecipeError(_explain(type(self).__name__, error)) from error


def _explain(what: str, error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        cause = (item.get("ctx") or {}).get("error")
        message = str(cause) if isinstance(cause, (ValueError, FormatError)) else item["msg"]
        if item["type"] == "extra_forbidden":
            message = "no such setting"
        shown = f" (got {item['input']!r})" if where and cause is None else ""
        lines.append(f"{what}{'.' if where else ''}{where}: {message}{shown}")
    return "; ".join(lines)
