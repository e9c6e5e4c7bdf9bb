"""Finding what the embedding cache keeps of an image, without loading it."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from medsam3_model.embedding_files import remove_embeddings


def entry(path: Path, image_key: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = torch.tensor(list(f'{{"image_key": "{image_key}"}}'.encode()), dtype=torch.uint8)
    save_file({"last_hidden_state": torch.zeros(3, 4), "notes": notes}, path)
    return path.stat().st_size


def test_only_the_named_images_go(tmp_path: Path) -> None:
    first = entry(tmp_path / "aa" / "1.safetensors", "f" * 64)
    page = entry(tmp_path / "ab" / "2.safetensors", "f" * 64 + ":1")
    entry(tmp_path / "ac" / "3.safetensors", "e" * 64)
    assert remove_embeddings(tmp_path, {"f" * 64}) == (2, first + page)
    assert [path.name for path in tmp_path.glob("*/*")] == ["3.safetensors"]


def test_damaged_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / "x.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "aa" / "y.safetensors").write_bytes(b"")
    assert remove_embeddings(tmp_path, {"f" * 64}) == (0, 0)
    assert len(list(tmp_path.glob("*/*"))) == 2


def test_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert remove_embeddings(tmp_path / "none", {"f" * 64}) == (0, 0)
