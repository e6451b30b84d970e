"""What a tool changed in a checkpoint: before and after, entry by entry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..progress import human_bytes

ABSENT = "–"


@dataclass(frozen=True)
class Change:
    """One thing that is other than before.

    Attributes:
        entry: the layer, the tensor, or the metadata's key.
        what: what of it: a key of the layer's JSON, ``shape``, ``name``, ``value``, ``added``,
            ``removed``.
        before, after: JSON values, or a tensor in short; None: not there.
        where: ``comfy_quant``, ``header``, both, ``tensor`` or ``metadata``.
    """

    entry: str
    what: str
    before: Any
    after: Any
    where: str


@dataclass(frozen=True)
class ChangeReport:
    """What a tool did to a file, or would do.

    Attributes:
        title: the tool, in a word or two.
        source: the file it read.
        path: the file it wrote; "" where it wrote none.
        changes: what is other than before; the codes never are.
        copied: tensors whose bytes are those of the source.
        bytes: size of the result.
        notes: what to know of the file, or of the result.
        facts: what the tool found the file to be, by name.
    """

    title: str
    source: str
    path: str
    changes: tuple[Change, ...]
    copied: int
    bytes: int
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """A few lines for a person."""
        what = f"{len(self.changes)} changes" if len(self.changes) != 1 else "1 change"
        kinds = Counter(f"{change.where} {change.what}" for change in self.changes)
        counted = ", ".join(f"{n} × {kind}" for kind, n in kinds.most_common(6))
        more = ", …" if len(kinds) > 6 else ""
        lines = [f"{name}: {_short(value)}" for name, value in self.facts.items()]
        lines.append(f"{self.title}: {what} ({counted}{more})" if kinds else
                     f"{self.title}: nothing to change")  # fmt: skip
        if self.path:
            lines.append(f"{self.path}: {human_bytes(self.bytes)}, {self.copied} tensors as before")
        else:
            lines.append(f"nothing was written; the file would take {self.bytes:,} bytes")
        return "\n".join(lines)

    def table(self) -> str:
        """All changes, one a line, then the notes and the summary."""
        rows = [("entry", "where", "what", "before", "after")]
        rows += [(x.entry, x.where, x.what, _short(x.before), _short(x.after))
                 for x in self.changes]  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        shown = [*lines, ""] if self.changes else []
        return "\n".join([*shown, *(f"note: {note}" for note in self.notes), self.summary()])

    def json(self) -> str:
        """The report for machines."""
        return json.dumps(asdict(self), ensure_ascii=False)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; 1, 1.0 and true are not. Keys may be in any order."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _short(value: Any) -> str:
    if value is None:
        return ABSENT
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
