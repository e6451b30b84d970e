"""Names from a workflow are not trusted: nothing outside ComfyUI's folders is read or written."""

from __future__ import annotations

import pytest
import torch

from roundsmith.bridge import files, memory, paths
from roundsmith.converters import Recipe
from roundsmith.errors import CheckpointError, DestinationExistsError
from roundsmith.nodes.inspect_file import InspectFile
from roundsmith.tests.models import MODEL_FILE

ESCAPES = [
    "../evil",
    "a/../../evil",
    "..",
    "/tmp/evil",
    "\\evil",
    "..\\evil",
    "C:\\evil",
    "C:evil",
    "~/evil",
    "",
    "  ",
    "a/.. /b",
    "name\0",
    "con|pipe",
    "stream:name",
    "dot.",
]
SOURCE = f"diffusion_models/{MODEL_FILE}"
TINY = Recipe(format="float8_e4m3fn", exclude=("double", "single"))


@pytest.mark.parametrize("folder", list(paths.FOLDERS))
@pytest.mark.parametrize("name", ESCAPES)
def test_escapes_are_refused(base, folder, name):
    with pytest.raises(CheckpointError, match="refused"):
        paths.resolve_destination(folder, name)


def test_links_are_not_followed(base, tmp_path):
    """Neither a folder on the way nor the file itself may be a link that leads outside."""
    (base / "output" / "way-out").symlink_to(tmp_path, target_is_directory=True)
    target = tmp_path / "victim.safetensors"
    target.write_bytes(b"precious")
    (base / "output" / "link.safetensors").symlink_to(target)
    for name in ("way-out/evil", "link"):
        with pytest.raises(CheckpointError, match="link"):
            paths.resolve_destination("output", name)
    for prefix in ("way-out/evil", "../evil", "/tmp/evil", ""):
        with pytest.raises(CheckpointError):
            paths.next_output_path(prefix)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_a_linked_model_folder_names_the_way_out(base, tmp_path):
    """Models on another drive are read through a link; nothing is written through it."""
    link = base / "models" / "diffusion_models" / "other-drive"
    link.symlink_to(tmp_path, target_is_directory=True)
    try:
        with pytest.raises(CheckpointError, match="choose folder 'output' instead"):
            paths.resolve_destination("diffusion_models", "other-drive/new", link.parent)
    finally:
        link.unlink()


def test_names_inside_are_kept(base):
    path = paths.resolve_destination("output", "a folder/my model v1.2")
    assert path == base / "output" / "a folder" / "my model v1.2.safetensors"
    assert paths.resolve_destination("checkpoints", "x.safetensors").parent.name == "checkpoints"


@pytest.mark.parametrize("source", ["diffusion_models/../../x", "loras/x", "/etc/passwd", "nope"])
def test_only_listed_files_are_read(base, source):
    with pytest.raises(CheckpointError, match="not among"):
        files.quantize_file(source, "output", "x", TINY)
    with pytest.raises(CheckpointError, match="not among"):
        InspectFile.execute(source)


def test_quantize_file(base):
    path, report = files.quantize_file(SOURCE, "output", "sub/fp8", TINY)
    assert path == base / "output" / "sub" / "fp8.safetensors" and path.exists()
    assert report.summary()
    with pytest.raises(DestinationExistsError):
        files.quantize_file(SOURCE, "output", "sub/fp8", TINY)
    again, _ = files.quantize_file(SOURCE, "output", "sub/fp8", TINY, overwrite=True)
    assert again == path


def test_quantize_file_names_the_result(base):
    path, _ = files.quantize_file(SOURCE, "same as source", "", TINY, overwrite=True)
    stem = MODEL_FILE.removesuffix(".safetensors")
    assert path == base / "models" / "diffusion_models" / f"{stem}-float8_e4m3fn.safetensors"


def test_quantizing_makes_room_on_the_gpu(base, monkeypatch):
    """For the largest layer in float32, on the device ComfyUI knows by number."""
    asked = []
    monkeypatch.setattr(memory.mm, "free_memory", lambda *arguments: asked.append(arguments))
    memory.make_room(TINY.model_copy(update={"device": "cpu"}), [(8, 8)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    memory.make_room(TINY, [(8, 8)])
    assert not asked
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for device in ("auto", "cuda", "cuda:1"):
        memory.make_room(TINY.model_copy(update={"device": device}), [(8, 8), (100, 10), (7000,)])
    devices = [torch.device("cuda", index) for index in (0, 0, 1)]
    assert asked == [(memory.WORKING + 4000, device) for device in devices]


def test_quantize_file_makes_room(base, monkeypatch):
    shapes = []
    monkeypatch.setattr(files, "make_room", lambda recipe, found: shapes.extend(found))
    files.quantize_file(SOURCE, "output", "roomy", TINY)
    assert (1792, 256) in shapes


def test_inspect(base, quantized):
    source = f"diffusion_models/{quantized('nvfp4').name}"
    table, as_json, _ = InspectFile.execute(source).args
    assert "single_blocks.0.linear1" in table and "flux" in table and source in table
    assert "loads with: stock ComfyUI or Roundsmith" in table and "made with: {" in table
    assert str(base) not in as_json and '"format": "nvfp4"' in as_json


def test_inspect_says_where_only_our_loaders_read(base, quantized):
    table = InspectFile.execute(f"diffusion_models/{quantized('int8_lodewise').name}").args[0]
    assert "loads with: Roundsmith's loader nodes" in table
