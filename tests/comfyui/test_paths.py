"""Names from a workflow are not trusted: nothing outside ComfyUI's folders is read or written."""

from __future__ import annotations

import pytest

from roundsmith.bridge import files, paths
from roundsmith.converters import Recipe
from roundsmith.errors import CheckpointError, DestinationExistsError
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


def test_names_inside_are_kept(base):
    path = paths.resolve_destination("output", "a folder/my model v1.2")
    assert path == base / "output" / "a folder" / "my model v1.2.safetensors"
    assert paths.resolve_destination("checkpoints", "x.safetensors").parent.name == "checkpoints"


@pytest.mark.parametrize("source", ["diffusion_models/../../x", "loras/x", "/etc/passwd", "nope"])
def test_only_listed_files_are_read(base, source):
    with pytest.raises(CheckpointError, match="not among"):
        files.quantize_file(source, "output", "x", TINY)
    with pytest.raises(CheckpointError, match="not among"):
        files.inspect_file(source)


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


def test_inspect(base, quantized):
    found = files.inspect_file(f"diffusion_models/{quantized('nvfp4').name}")
    assert "flux" in found.summary and "32 nvfp4" in found.summary
    assert '"format": "nvfp4"' in found.json
    assert "single_blocks.0.linear1" in found.table
