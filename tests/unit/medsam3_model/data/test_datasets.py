"""Data sets written in the documented layouts, read back."""

import io
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medsam3_model.data.datasets import load_dataset, load_images
from medsam3_model.data.samples import split_of_group
from medsam3_model.errors import DatasetError
from tests.support.dataset_files import H, W, picture, save, spots


def test_one_concept(tmp_path: Path) -> None:
    save(tmp_path / "images/b.jpg", picture())
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "images/c.PNG", picture())
    save(tmp_path / "masks/a.png", spots().astype(np.uint8) * 255)
    save(tmp_path / "masks/b.png", np.zeros((H, W), np.uint8))
    (tmp_path / "images/Thumbs.db").write_bytes(b"x")
    dataset = load_dataset(tmp_path, concept="polyp")
    assert dataset.concepts == ("polyp",)
    assert [sample.name for sample in dataset] == ["a", "b", "c"]
    first, empty, missing = dataset
    found = first.read("polyp")
    assert found is not None
    assert np.array_equal(found.mask, spots())
    assert found.boxes.tolist() == [[10, 5, 20, 15], [30, 20, 50, 30]]
    assert found.labels.max() == 2
    assert np.array_equal(first.image(), picture())
    assert empty.read("polyp") is None  # an empty mask says the same as no mask
    assert missing.read("polyp") is None
    assert missing.concepts == frozenset()


def test_several_concepts_and_negatives(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save(tmp_path / f"images/{name}.png", picture())
        save(tmp_path / f"masks/left_lung/{name}.png", spots().astype(np.uint8) * 255)
    save(tmp_path / "masks/heart/y.png", spots().astype(np.uint8) * 255)
    save(tmp_path / "negatives/z.png", picture())
    dataset = load_dataset(tmp_path)
    assert dataset.concepts == ("heart", "left_lung")
    assert [(s.name, s.negative, sorted(s.concepts)) for s in dataset] == [
        ("x", False, ["left_lung"]),
        ("y", False, ["heart", "left_lung"]),
        ("z", True, []),
    ]
    dataset.check_concepts(["heart"])
    with pytest.raises(DatasetError, match=r"no masks of 'liver'.*heart, left_lung"):
        dataset.check_concepts(["heart", "liver"])


def instance_map() -> np.ndarray:
    labels = np.zeros((H, W), np.uint16)
    labels[5:15, 10:20] = 3
    labels[5:15, 20:26] = 4  # touches the first
    labels[20:30, 30:50] = 700
    return labels


@pytest.mark.parametrize("folder", ["instances", "masks"])
def test_sixteen_bit_files_number_the_instances(tmp_path: Path, folder: str) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / f"{folder}/a.png", instance_map())
    found = load_dataset(tmp_path).samples[0].read("object")
    assert found is not None
    assert np.array_equal(found.mask, instance_map() > 0)
    assert found.boxes.tolist() == [[10, 5, 20, 15], [20, 5, 26, 15], [30, 20, 50, 30]]


def test_instances_are_a_better_truth_than_the_mask_beside_them(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "instances/a.png", instance_map())
    save(tmp_path / "masks/a.png", (instance_map() > 0).astype(np.uint8) * 255)
    found = load_dataset(tmp_path).samples[0].read("object")
    assert found is not None
    assert len(found.boxes) == 3


def _mask_files() -> dict[str, tuple[np.ndarray | Image.Image, dict[str, Any]]]:
    mask = spots()
    palette = Image.fromarray(mask.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 250, 20, 20])
    colour = np.zeros((H, W, 3), np.uint8)
    colour[mask] = (0, 255, 0)
    return {
        "grey.png": (mask.astype(np.uint8) * 255, {}),
        "ones.png": (mask.astype(np.uint8), {}),
        "bits.png": (mask, {}),
        "lossy.jpg": (mask.astype(np.uint8) * 255, {"quality": 60}),
        "colour.png": (colour, {}),
        "palette.png": (palette, {}),
        "sixteen.png": (mask.astype(np.uint16) * 65535, {}),
        "float.tif": (mask.astype(np.float32) * 0.9, {}),
        "large_numbers.tif": (mask.astype(np.int32) * 2_000_000_000, {}),
        "transparent.png": (
            np.dstack([mask * np.uint8(255)] * 3 + [np.full((H, W), 255, "u1")]),
            {},
        ),
    }


@pytest.mark.parametrize("kind", sorted(_mask_files()))
def test_every_way_of_saving_a_mask(tmp_path: Path, kind: str) -> None:
    content, options = _mask_files()[kind]
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    save(tmp_path / f"images/{Path(kind).stem}.png", picture())
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks" / kind, **options)
    found = load_dataset(tmp_path).samples[0].read("object")
    assert found is not None
    assert np.array_equal(found.mask, spots())
    assert len(found.boxes) == 2


def test_groups_and_attributes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / f"images/{name}.png", picture())
    save(tmp_path / "masks/a.png", spots().astype(np.uint8) * 255)
    (tmp_path / "groups.csv").write_text("name,group,phase\na,patient1,ED\nb.png,patient1,ES\n")
    dataset = load_dataset(tmp_path)
    assert [sample.group for sample in dataset] == ["patient1", "patient1", "c"]
    assert dataset.samples[1].attributes == {"phase": "ES"}
    assert {sample.group for sample in dataset} == {"c", "patient1"}


def test_a_squashed_image_gets_its_aspect_ratio_back(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture(64, 64))
    save(tmp_path / "masks/a.png", spots(64, 64).astype(np.uint8) * 255)
    (tmp_path / "groups.csv").write_text("name,group,orig_w,orig_h\na,g,600,400\n")
    sample = load_dataset(tmp_path).samples[0]
    image, found = sample.image(), sample.read("object")
    assert image.shape == (64, 96, 3)
    assert found is not None
    assert found.mask.shape == (64, 96)
    assert found.boxes.tolist() == [[15, 5, 30, 15], [45, 20, 75, 30]]


def test_rounding_is_no_squashing(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture(40, 60))
    save(tmp_path / "masks/a.png", spots().astype(np.uint8) * 255)
    (tmp_path / "groups.csv").write_text("name,group,orig_w,orig_h\na,g,605,400\n")
    assert load_dataset(tmp_path).samples[0].image().shape == (40, 60, 3)


def test_samples_travel_to_other_processes(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/a.png", spots().astype(np.uint8) * 255)
    sample = pickle.loads(pickle.dumps(load_dataset(tmp_path).samples[0]))  # noqa: S301
    assert sample.read("object").mask.sum() == spots().sum()


def test_template_slices_are_a_data_set_by_name() -> None:
    dataset = load_dataset("template")
    assert dataset.concepts == ("brain", "grey matter", "white matter")
    assert len(dataset) > 20
    image, brain = dataset.samples[10].image(), dataset.samples[10].read("brain")
    grey, white = (dataset.samples[10].read(name) for name in dataset.concepts[1:])
    assert brain is not None
    assert grey is not None
    assert white is not None
    assert image.shape == (*brain.mask.shape, 3)
    assert not (grey.mask & ~brain.mask).any()
    assert not (grey.mask & white.mask).all()


def rgba(colour: tuple[int, ...], background: tuple[int, ...]) -> np.ndarray:
    pixels = np.zeros((H, W, 4), np.uint8)
    pixels[...] = background
    pixels[spots()] = colour
    return pixels


def palette(colours: list[int], numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8), "L").convert("P")
    image.putpalette(colours)
    return image


def _stored() -> dict[str, Image.Image]:
    mask, numbers = spots(), instance_map().astype(np.uint8)
    inverse = Image.fromarray((~mask).astype(np.uint8) * 255).convert("P")
    inverse.putpalette([255, 255, 255] * 255 + [0, 0, 0])
    return {
        "black on transparent": Image.fromarray(rgba((0, 0, 0, 255), (0, 0, 0, 0))),
        "black on transparent white": Image.fromarray(rgba((0, 0, 0, 255), (255, 255, 255, 0))),
        "white on transparent": Image.fromarray(rgba((255, 255, 255, 255), (0, 0, 0, 0))),
        "red on transparent white": Image.fromarray(rgba((255, 0, 0, 255), (255, 255, 255, 0))),
        "dark on transparent": Image.fromarray(rgba((0, 0, 90, 255), (0, 0, 0, 0))),
        "half transparent": Image.fromarray(rgba((0, 0, 0, 100), (0, 0, 0, 0))),
        "white on black, all opaque": Image.fromarray(rgba((255, 255, 255, 255), (0, 0, 0, 255))),
        "white on black, all see-through": Image.fromarray(rgba((255, 9, 9, 9), (0, 0, 0, 9))),
        "grey with alpha": Image.fromarray(rgba((0, 0, 0, 255), (0, 0, 0, 0))).convert("LA"),
        "white first in the palette": inverse,
        "palette of colours": palette([0, 0, 0, 9, 9, 9, 200, 0, 0], numbers.clip(0, 2)),
    }


@pytest.mark.parametrize("kind", sorted(_stored()))
def test_every_place_in_which_a_file_holds_its_mask(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "images/a.png", picture())
    (tmp_path / "masks").mkdir()
    _stored()[kind].save(tmp_path / "masks/a.png")
    found = load_dataset(tmp_path).samples[0].read("object")
    assert found is not None
    expected = instance_map() > 0 if kind == "palette of colours" else spots()
    assert np.array_equal(found.mask, expected)


def test_a_transparent_colour_is_background(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/a.png", spots().astype(np.uint8) * 7, transparency=0)
    found = load_dataset(tmp_path).samples[0].read("object")
    assert found is not None
    assert np.array_equal(found.mask, spots())


def _unclear() -> dict[str, tuple[str, bytes, str]]:
    def file(image: Image.Image, format_: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        return buffer.getvalue()

    mask = spots()
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    numbers = mask.astype(np.uint8) * 200
    numbers[30:, :5] = 3
    floats = mask.astype(np.float32)
    floats[0, 0] = np.nan
    pages = file(grey, "TIFF", save_all=True, append_images=[grey])
    see_through = Image.fromarray(rgba((255, 0, 0, 0), (0, 0, 0, 0)))
    return {
        "numbers on both sides of 128": ("a.png", file(Image.fromarray(numbers), "PNG"), "apart"),
        "several pages": ("a.tif", pages, "pages"),
        "ink of a printer": ("a.tif", file(grey.convert("CMYK"), "TIFF"), "saved as CMYK"),
        "not a number": ("a.tif", file(Image.fromarray(floats), "TIFF"), "finite"),
        "transparent everywhere": ("a.png", file(see_through, "PNG"), "transparent everywhere"),
        "65,000 pixels a side": ("a.png", huge_png(65_000, 65_000), "cannot be read"),
        "no picture": ("a.png", b"<html>404</html>", "cannot be read"),
    }


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + bytes((8, 0, 0, 0, 0)))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", sorted(_unclear()))
def test_a_mask_that_says_nothing_clear_is_an_error(tmp_path: Path, kind: str) -> None:
    name, content, words = _unclear()[kind]
    save(tmp_path / "images/a.png", picture())
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).write_bytes(content)
    sample = load_dataset(tmp_path).samples[0]
    with pytest.raises(DatasetError, match=words):
        sample.read("object")


@pytest.mark.parametrize("name", ["a.npy", "a.svg", "a.json", "a.mat", "a.txt", "a", "a.png.gz"])
@pytest.mark.parametrize("place", ["masks", "masks/polyp", "instances", "instances/polyp"])
def test_a_mask_in_a_format_that_is_not_read_is_an_error(
    tmp_path: Path, place: str, name: str
) -> None:
    for image in ("a", "b"):
        save(tmp_path / f"images/{image}.png", picture())
    save(tmp_path / place / "b.png", spots().astype(np.uint16))
    (tmp_path / place / name).write_bytes(b"{}")
    with pytest.raises(DatasetError, match="would count as absent"):
        load_dataset(tmp_path)


def test_masks_in_folders_of_folders_are_an_error(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/polyp/b/a.png", spots().astype(np.uint8) * 255)
    with pytest.raises(DatasetError, match="has folders in it"):
        load_dataset(tmp_path)


def test_files_without_an_extension_are_what_their_first_bytes_say(tmp_path: Path) -> None:
    upload = save(tmp_path / "images/8e26f0a1-scan.v2.png", picture())
    upload.rename(upload.with_suffix(""))
    (tmp_path / "images/notes").write_text("no picture")
    save(tmp_path / "masks/8e26f0a1-scan.v2.png", spots().astype(np.uint8) * 255)
    (tmp_path / "masks/Thumbs.db").write_bytes(b"x")
    (sample,) = load_dataset(tmp_path)
    assert sample.name == "8e26f0a1-scan.v2"
    assert sample.image().shape == (H, W, 3)
    assert sample.read("object") is not None


# --- splits


@given(st.text(max_size=20), st.integers(0, 100), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_validation_share_only_adds_groups(
    group: str, seed: int, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    if split_of_group(group, seed=seed, val_fraction=small) == "val":
        assert split_of_group(group, seed=seed, val_fraction=large) == "val"
    assert split_of_group(group, seed=seed, val_fraction=0) == "train"
    assert split_of_group(group, seed=seed, val_fraction=1) == "val"


def test_the_split_is_the_same_for_ever() -> None:
    """Known answers: whoever changes the hash moves images that models were trained on."""
    val = [f"patient{i:03}" for i in range(20) if split_of_group(f"patient{i:03}") == "val"]
    assert val == ["patient001", "patient004", "patient008", "patient015"]


def test_the_split_has_about_the_size_that_was_asked_for() -> None:
    groups = [f"g{i}" for i in range(4000)]
    for seed in (0, 1):
        share = sum(split_of_group(g, seed=seed, val_fraction=0.2) == "val" for g in groups) / 4000
        assert share == pytest.approx(0.2, abs=0.02)
    first = [split_of_group(g, seed=0) for g in groups]
    assert first != [split_of_group(g, seed=1) for g in groups]


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_share_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_of_group("a", val_fraction=fraction)


def test_groups_never_straddle_the_split(tmp_path: Path) -> None:
    lines = ["name,group"]
    for i in range(60):
        save(tmp_path / f"images/{i}.png", picture(4, 4))
        lines.append(f"{i},patient{i // 3}")
    save(tmp_path / "masks/0.png", np.full((4, 4), 255, np.uint8))
    (tmp_path / "groups.csv").write_text("\n".join(lines))
    dataset = load_dataset(tmp_path)
    train, val = (dataset.split(part, val_fraction=0.4) for part in ("train", "val"))
    assert len(train) > 0
    assert len(val) > 0
    assert len(train) + len(val) == 60
    assert not {sample.group for sample in train} & {sample.group for sample in val}


# --- what is not as documented


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no masks.*images/NAME\.png"):
        load_dataset(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DatasetError, match="no images/"):
        load_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match="holds no images"):
        load_dataset(tmp_path)
    save(tmp_path / "images/a.png", picture())
    with pytest.raises(DatasetError, match="holds no masks"):
        load_dataset(tmp_path)
    stray = save(tmp_path / "masks/a_mask.png", spots().astype(np.uint8) * 255)
    with pytest.raises(DatasetError, match=r"no image of that name \(a_mask\)"):
        load_dataset(tmp_path)
    stray.rename(tmp_path / "masks/a.png")
    load_dataset(tmp_path)
    twin = save(tmp_path / "images/a.bmp", picture())
    with pytest.raises(DatasetError, match=r"a\.bmp and a\.png .* same name"):
        load_dataset(tmp_path)
    twin.unlink()
    negative = save(tmp_path / "negatives/a.png", picture())
    with pytest.raises(DatasetError, match="both images/ and negatives/"):
        load_dataset(tmp_path)
    negative.unlink()
    save(tmp_path / "masks/polyp/a.png", spots().astype(np.uint8) * 255)
    with pytest.raises(DatasetError, match="both files and subfolders"):
        load_dataset(tmp_path)


def test_a_csv_without_its_columns_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/a.png", spots().astype(np.uint8) * 255)
    (tmp_path / "groups.csv").write_text("image;patient\na;1\n")
    with pytest.raises(DatasetError, match="columns 'name' and 'group'"):
        load_dataset(tmp_path)


def test_a_damaged_or_misfitting_mask_is_named_when_it_is_read(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "images/b.png", picture())
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_bytes(b"<html>404</html>")
    save(tmp_path / "masks/b.png", np.full((9, 9), 255, np.uint8))
    damaged, misfit = load_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"a\.png cannot be read"):
        damaged.read("object")
    truth = misfit.read("object")
    assert truth is not None
    with pytest.raises(DatasetError, match="'b' is 9×9 pixels, but the image is 60×40"):
        misfit.check_size("object", truth, misfit.image())


def test_an_instance_map_in_colour_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "instances/a.png", picture())
    with pytest.raises(DatasetError, match="no instance map"):
        load_dataset(tmp_path).samples[0].read("object")


# --- images alone


def test_any_folder_of_images_is_a_set_of_negatives(tmp_path: Path) -> None:
    save(tmp_path / "plain/a.png", picture())
    save(tmp_path / "labelled/images/b.png", picture())
    save(tmp_path / "labelled/masks/b.png", spots().astype(np.uint8) * 255)
    for folder, name in (("plain", "a"), ("labelled", "b")):
        images = load_images(tmp_path / folder)
        assert [(s.name, s.negative, s.concepts) for s in images] == [(name, True, frozenset())]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no images"):
        load_images(tmp_path / "empty")
