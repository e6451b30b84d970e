"""A progress bar."""

from __future__ import annotations

from typing import Any


class Bar:
    """A tqdm bar over source bytes that names the layer; nothing on a run under a second."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, progress: Any) -> None:
        if self.silent:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=progress.bytes_total, unit="B", unit_scale=True, delay=1, leave=False
            )
        self.bar.set_postfix_str(progress.layer, refresh=False)
        self.bar.update(progress.bytes_done - self.bar.n)
