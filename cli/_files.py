"""The files a command names: it writes over none of them, and tells before the work what cannot be
written.

A command reads files, makes a *result*, a checkpoint, and writes *side files* beside it: a report,
a recipe, a picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from ..checkpoints.partial import create_partial, discard_partial, publish
from ..errors import CheckpointError, DestinationExistsError, RecipeError

Named = Mapping[str, Path | str | Iterable[Path] | None]
"""Files by what names them: a flag, or an argument as the usage shows it."""

_MODELS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}


@dataclass(frozen=True)
class SideFile:
    """A file that a command writes beside its result; it appears under its name when complete.

    Attributes:
        flag: what names it, ``--report``.
        path: the file.
        overwrite: replace a file that exists; None: the command has no such flag.
        suffix: without the flag, files of this suffix are replaced all the same; "": none are.
    """

    flag: str
    path: Path
    overwrite: bool | None = None
    suffix: str = ""

    def check(self) -> None:
        """Raises RecipeError for a file that cannot be written, DestinationExistsError for one that
        is not to be replaced."""
        said, folder = f"{self.flag} {self.path}", self.path.parent
        if os.path.isdir(self.path):
            raise RecipeError(f"{said}: that is a folder: give the name of a file in it")
        if not os.path.isdir(folder):
            raise RecipeError(f"{said}: there is no folder {folder}: create it first")
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise RecipeError(f"{said}: that is a device or a pipe: give the name of a file")
        if os.path.lexists(self.path):
            self._check_existing(said)
        try:
            discard_partial(create_partial(self.path))
        except OSError as error:
            raise RecipeError(
                f"{said} cannot be written there: {error.strerror or error}; give another name"
            ) from error

    def write(self, content: str | bytes) -> None:
        """Write text, as UTF-8 that ends its last line, or bytes.

        Raises CheckpointError where it cannot be written, DestinationExistsError where a file that
        is not to be replaced came there meanwhile.
        """
        if isinstance(content, str):
            content = (content.rstrip("\n") + "\n").encode(errors="backslashreplace")
        try:
            partial = create_partial(self.path)
            try:
                partial.write_bytes(content)
                publish(partial, self.path, self._replaces)
            finally:
                discard_partial(partial)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror or error}") from error

    def draw(self, image: Any) -> None:
        """Write a PIL image as PNG. Raises as :meth:`write`."""
        png = BytesIO()
        image.save(png, format="PNG")
        self.write(png.getvalue())

    @property
    def _replaces(self) -> bool:
        if self.overwrite is not None:
            return self.overwrite
        return bool(self.suffix) and self.path.suffix.lower() == self.suffix

    def _check_existing(self, said: str) -> None:
        if self.path.suffix.lower() in _MODELS:
            raise RecipeError(f"{said} exists and is named as a model: give another name")
        if self._replaces:
            return
        if self.overwrite is not None:
            raise DestinationExistsError(f"{said} exists: give another name, or --overwrite")
        why = (
            f"its name does not end in {self.suffix}" if self.suffix else "overwriting is no option"
        )
        raise DestinationExistsError(f"{said} exists, and {why}: give another name")


def check_files(
    reads: Named, results: Named | None = None, sides: Iterable[SideFile | None] = ()
) -> None:
    """Refuse, before any work, a command that would write over a file it names.

    Args:
        reads: what is read; a checkpoint stands for its index and its shards too.
        results: the checkpoints that are made; they may replace nothing of ``reads``.
        sides: what else is written: no file of ``reads`` or ``results``, and not twice the same.

    Raises:
        CheckpointError: a result that is read.
        RecipeError, DestinationExistsError: a side file that is another file, or that cannot be
            written.
    """
    written = [side for side in sides if side is not None]
    read, made = list(_each(reads)), list(_each(results or {}))
    others = [*read, *made]
    for side in written:
        for name, path in others:
            if _same(side.path, path):
                raise RecipeError(
                    f"{side.flag} {side.path}: that is the file {name} names: give another name"
                )
        others.append((side.flag, side.path))
    for _, result in made:
        for name, path in read:
            if _same(result, path):
                raise CheckpointError(
                    f"{result} is the file {name} names: choose another destination"
                )
    for side in written:
        side.check()


def side_file(
    flag: str, path: Path | None, overwrite: bool | None = None, suffix: str = ""
) -> SideFile | None:
    """The side file of a flag, where it was given."""
    return None if path is None else SideFile(flag, path, overwrite, suffix)


def _each(named: Named) -> Iterator[tuple[str, Path]]:
    for name, given in named.items():
        if given is None:
            continue
        for path in [Path(given)] if isinstance(given, (str, Path)) else given:
            yield name, path
            if path.is_dir() or path.name.lower().endswith(".index.json"):
                with suppress(CheckpointError), Checkpoint.open(path) as checkpoint:
                    yield from ((name, file) for file in (checkpoint.path, *checkpoint.files))


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, whatever they are called; it need not exist."""
    names = [os.path.normcase(os.path.realpath(path)) for path in (one, other)]
    if names[0] == names[1]:
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
