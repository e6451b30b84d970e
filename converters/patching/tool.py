"""Running a tool on a file: where the result goes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoints import Checkpoint
from ...errors import CheckpointError, RecipeError
from .changes import ChangeReport
from .patch import CancelCallback, Patch, ProgressCallback


@dataclass(frozen=True)
class Destination:
    """Where a tool's result goes.

    Attributes:
        path: the file to write; None: in place, or nowhere in a dry run.
        overwrite: replace another file of that name.
        in_place: replace the source itself.
        dry_run: write nothing.
    """

    path: Path | None = None
    overwrite: bool = False
    in_place: bool = False
    dry_run: bool = False

    def resolve(self, source: Checkpoint) -> Path | None:
        """The file to write; None for a dry run. Raises CheckpointError, RecipeError."""
        if self.dry_run:
            return None
        own = {info.file.resolve() for info in source.tensors.values()} | {source.path.resolve()}
        if self.in_place:
            if self.path is not None and self.path.resolve() not in own:
                raise RecipeError(
                    f"in place and the destination {self.path} contradict each other: give one"
                )
            if len(source.files) != 1 or source.path.suffix.lower() == ".json":
                raise CheckpointError(
                    f"{source.path} is a checkpoint in shards, which cannot be changed in place: "
                    "give a destination"
                )
            return source.files[0].resolve()
        if self.path is None:
            raise RecipeError(f"no destination for {source.path}: give one, or ask for in place")
        if self.path.resolve() in own:
            raise CheckpointError(
                f"{self.path} is the source itself: choose another destination, or ask for in place"
            )
        return self.path


@dataclass(frozen=True)
class Tool:
    """What a tool would do to a file.

    Attributes:
        title: the tool, in a word or two.
        patch: the changes.
        notes, facts: as in :class:`~.changes.ChangeReport`.
    """

    title: str
    patch: Patch
    notes: Iterable[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def run_tool(
    src: str | Path,
    make: Callable[[Checkpoint], Tool],
    destination: Destination,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> ChangeReport:
    """Open ``src``, let ``make`` say what changes, and write it.

    In place, a file with nothing to change is left alone; a new file is written all the same.
    """
    with Checkpoint.open(src) as source:
        dst = destination.resolve(source)
        tool = make(source)
        patch, notes = tool.patch, list(tool.notes)
        changes, copied, size = patch.changes(), len(patch.copied), patch.size
        if dst is not None and (changes or not destination.in_place):
            overwrite = destination.overwrite or destination.in_place
            notes += patch.write(dst, overwrite=overwrite, progress=progress, cancel=cancel)
    path = "" if dst is None else str(dst)
    return ChangeReport(
        tool.title, str(src), path, changes, copied, size, tuple(notes), tool.facts
    )
