"""Every conversion mode of convert-to-quant 1.3.4 beside ours: the same input, tensor by tensor.

    python benchmarks/compatibility.py --peer-python PEER/bin/python [--all] [mode ...]

convert-to-quant runs in an environment of its own (tests/peer/make_fixtures.py says how it is
made). Each tensor is equal, or differs in a way that ``compatibility_reasons.py`` has a name and a
check for; docs/compatibility.md says why for each name. Anything else is marked ``?``, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from compatibility_compare import Difference, File, compare
from compatibility_modes import LAYER_CONFIG, MODES, Mode
from compatibility_reasons import Layers, reason
from compatibility_sources import write_sources


@dataclass
class Peer:
    """convert-to-quant as a process of its own; what it wrote is kept in ``folder``."""

    python: Path
    folder: Path
    sources: dict[str, Path]
    files: dict[str, Path]

    def run(self, mode: Mode) -> tuple[Path, str]:
        """Its file for a mode and the source's name; without the layer of zeros if it ends there.

        Raises SystemExit where it writes nothing either way.
        """
        tried = [mode.source]
        if mode.source == "model":
            tried.append("model_nonzero")
        said = ""
        for name in tried:
            said = self._run(mode, self.source(name))
            if (self.files[mode.name]).is_file():
                return self.files[mode.name], name
        raise SystemExit(f"{mode.name}: convert-to-quant wrote nothing\n{said}")

    def source(self, name: str) -> Path:
        """The input of that name: a source, or what the peer made in another mode."""
        return self.sources.get(name) or self.files[name]

    def _run(self, mode: Mode, source: Path) -> str:
        number = [m.name for m in MODES].index(mode.name)
        out = self.folder / f"{number}.safetensors"
        config = self.folder / "layers.json"
        config.write_text(json.dumps(LAYER_CONFIG))
        words = [
            str(config) if word == "LAYER_CONFIG"
            else str(self.files[word[1:-1]]) if word.startswith("{") else word
            for word in mode.options
        ]  # fmt: skip
        self.files[mode.name] = out
        if mode.lora:
            self.files[mode.name] = self.folder / f"{number}_lora.safetensors"
            words += ["--lora-output", str(self.files[mode.name])]
        if out.is_file():
            return ""
        named = [str(source)] if mode.module != "convert_to_quant" else ["-i", str(source)]
        command = [str(self.python), "-m", f"convert_to_quant.{mode.module}", *named]
        command += ["-o", str(out), *words]
        one = {**os.environ, "OMP_NUM_THREADS": "1"}  # small layers: more threads only wait
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one)
        return f"{done.stdout}\n{done.stderr}"


def needed(names: Sequence[str]) -> list[Mode]:
    """The modes named (all where none is), and those whose files they start from, in order."""
    wanted = set(names) or {mode.name for mode in MODES}
    for mode in reversed(MODES):
        if mode.name in wanted:
            wanted |= {mode.source} | {w[1:-1] for w in mode.options if w.startswith("{")}
    return [mode for mode in MODES if mode.name in wanted]


def show(mode: Mode, path: Path, source: Path, ours: Path, every: bool) -> Counter[str]:
    """Print a mode's differences; how many tensors differ for which reason, ``=`` for equal."""
    peer, own, start = File.read(path), File.read(ours), File.read(source)
    layers = Layers(start, peer, own, mode.learned)
    counts: Counter[str] = Counter()
    for found in compare(peer, own):
        if isinstance(found, Difference):
            why = reason(found, layers)
            counts[why] += 1
            print(f"  {why:18} {found.name:44} {found.kind}: {found.shown}")
        else:
            counts["="] += 1
            if every:
                print(f"  {'=':18} {found}")
    return counts


def main(words: Sequence[str] | None = None) -> int:
    """Run every mode; the exit status says whether each difference has its reason."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=Path, required=True, help="has convert-to-quant")
    parser.add_argument("--dir", type=Path, help="keeps the files; default: temporary")
    parser.add_argument("--all", action="store_true", help="list equal tensors too")
    parser.add_argument("modes", nargs="*", help="names of modes; default: every one")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="roundsmith-compatibility-") as temporary:
        folder = arguments.dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        peer = Peer(arguments.peer_python, folder, write_sources(folder), {})
        for mode in needed(arguments.modes):
            began = time.perf_counter()
            path, name = peer.run(mode)
            took = time.perf_counter() - began
            source, ours = peer.source(name), folder / "ours.safetensors"
            mode.ours(source, ours, peer.files)
            without = " (without the layer of zeros)" * (name != mode.source)
            print(f"\n{mode.name}{without}, theirs in {took:.0f} s", flush=True)
            table[mode.name] = show(mode, path, source, ours, arguments.all)
    print(f"\n{'mode':34}{'equal':>7}  differing, by reason")
    for mode_name, counts in table.items():
        rest = ", ".join(f"{n} {why}" for why, n in sorted(counts.items()) if why != "=")
        print(f"{mode_name:34}{counts['=']:7}  {rest or '–'}")
    unexplained = sum(counts["?"] for counts in table.values())
    print(f"\n{unexplained} differences without a reason")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
