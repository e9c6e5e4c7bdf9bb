"""Regions that unpack to far more than they weigh, or were drawn on another image."""

import base64
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backend.corrections import mask_store, submissions
from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.mask_store import MaskStore
from backend.corrections.submissions import Pages, read_regions
from backend.errors import QuarantineError
from backend.labeling import brush_rle
from tests.support.regions import brush, region

PAGES = Pages({"image": 0}, ("/data/upload/1/x.png",))
SIDE = 10_000


def brush_of(side: int) -> list[int]:
    """The run lengths of an image that is all foreground, without making that image."""
    values = side * side * 4
    bits, count = brush_rle._header(values), 53
    while values:
        length = min(values, 1 << 16)
        bits, count = bits << 27 | 0b111 << 24 | (length - 1) << 8 | 255, count + 27
        values -= length
    size = count // 8 + 1
    return list((bits << (8 * size - count)).to_bytes(size, "big"))


def png_url(width: int, height: int) -> str:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 6, 0, 0, 0))

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(content).decode()


WHOLE = [[0, 0], [100, 0], [100, 100], [0, 100]]
VALUES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "brush": ("brushlabels", lambda: {"format": "rle", "rle": brush_of(SIDE)}),
    "bitmask": ("bitmasklabels", lambda: {"imageDataURL": png_url(SIDE, SIDE)}),
    "polygon": ("polygonlabels", lambda: {"points": WHOLE, "closed": True}),
    "rectangle": ("rectanglelabels", lambda: {"x": 0, "y": 0, "width": 100, "height": 100}),
    "ellipse": ("ellipselabels", lambda: {"x": 50, "y": 50, "radiusX": 50, "radiusY": 50}),
    "vector": (
        "vectorlabels",
        lambda: {"closed": True, "vertices": [{"x": x, "y": y} for x, y in WHOLE]},
    ),
}


def many(kind: str, count: int, side: int) -> list[dict[str, Any]]:
    type_, value = VALUES[kind]
    content = {**value(), type_: ["Tumor"]}
    return [region(f"r{n}", "control", type_, content, side, side) for n in range(count)]


@pytest.mark.parametrize("kind", VALUES)
def test_regions_of_another_size_than_the_image_are_refused_before_they_are_read(kind: str) -> None:
    result = many(kind, 30, SIDE)
    tracemalloc.start()
    try:
        with pytest.raises(QuarantineError, match=r"'r0' .* 10000×10000 .* image has 64×64"):
            read_regions(result, PAGES, max_pixels=1e8, image_sizes={0: (64, 64)})
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["brush", "polygon", "rectangle", "ellipse", "vector"])
def test_all_masks_of_an_annotation_share_one_limit(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(submissions, "MAX_UNPACKED_BYTES", 2 * 2**20)
    monkeypatch.setitem(
        VALUES, "brush", ("brushlabels", lambda: {"format": "rle", "rle": brush_of(1000)})
    )
    assert len(read_regions(many(kind, 2, 1000), PAGES, max_pixels=1e8)) == 2
    with pytest.raises(QuarantineError, match="take more than 2 MB"):
        read_regions(many(kind, 30, 1000), PAGES, max_pixels=1e8)


def test_regions_too_many_for_a_large_image_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "_MAX_PAINTED_PIXELS", 5 * 100 * 100)
    speck = {"points": [[0, 0], [1, 0], [1, 1]], "polygonlabels": ["Tumor"]}
    specks = [region(f"r{n}", "c", "polygonlabels", speck, 100, 100) for n in range(6)]
    assert len(read_regions(specks[:5], PAGES, max_pixels=1e8)) == 5
    with pytest.raises(QuarantineError, match="100×100 pixels: 5 can be read"):
        read_regions(specks, PAGES, max_pixels=1e8)


BITMASKS = {
    "announces 65000 pixels a side": (png_url(65_000, 65_000), 1000, "far too many pixels"),
    "announces another size": (png_url(20_000, 1), 10, "20000"),
    "holds no transparency": (
        "data:image/png;base64,"
        "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNgYGBg+A8AAQQBAO58MOsAAAAASUVO"
        "RK5CYII=",
        2,
        "no transparency",
    ),
}


@pytest.mark.parametrize("name", BITMASKS)
def test_bitmasks_that_are_no_masks_are_refused(name: str) -> None:
    url, side, words = BITMASKS[name]
    value = {"imageDataURL": url, "bitmasklabels": ["Tumor"]}
    with pytest.raises(QuarantineError, match=f"'a' .*cannot be read: .*{words}"):
        read_regions([region("a", "c", "bitmasklabels", value, side, side)], PAGES, max_pixels=1e10)


@pytest.mark.parametrize("rle", [10**10, "x" * 99, {"0": 1}, [[1]] * 99, [2**300] * 99, None])
def test_run_lengths_that_are_no_list_of_bytes_are_refused(rle: object) -> None:
    value = {"format": "rle", "rle": rle, "brushlabels": ["Tumor"]}
    with pytest.raises(QuarantineError, match=r"'a' .*cannot be read"):
        read_regions([region("a", "c", "brushlabels", value, 9, 9)], PAGES, max_pixels=1e8)


@pytest.mark.parametrize("kind", ["polygon", "rectangle", "ellipse", "vector"])
def test_a_large_shape_takes_little_more_than_its_mask(kind: str) -> None:
    side = 6000
    tracemalloc.start()
    try:
        (found,) = read_regions(many(kind, 1, side), PAGES, max_pixels=1e8)
        # The mask, and the copy that is cut out of it; a piece of the work beside them.
        assert tracemalloc.get_traced_memory()[1] < 2 * side**2 + 200 * 2**20
    finally:
        tracemalloc.stop()
    assert found.mask.area > side**2 * 0.78


@pytest.mark.parametrize("x", [1e300, -1e300, 1e12, float("inf"), float("nan")])
def test_coordinates_out_of_reach_are_refused(x: float) -> None:
    value = {"points": [[x, 0], [50, 50], [0, 50]], "polygonlabels": ["Tumor"]}
    with pytest.raises(QuarantineError, match="within reach"):
        read_regions([region("a", "c", "polygonlabels", value, 9, 9)], PAGES, max_pixels=1e8)


def test_a_polygon_of_endless_edges_is_refused_before_it_is_filled() -> None:
    points = [[0.0, 0.0], [1.0, 100.0]] * 100_000
    value = {"points": points, "polygonlabels": ["Tumor"]}
    with pytest.raises(QuarantineError, match="too often"):
        read_regions([region("a", "c", "polygonlabels", value, SIDE, 9)], PAGES, max_pixels=1e8)


def test_what_follows_the_last_run_length_is_not_held() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:4, 1:7] = True
    drawn = brush("a", mask, "Tumor")
    drawn["value"]["rle"] += [0] * 4_000_000
    # The decoder's tables are made once, at the first long stream: they are not counted.
    read_regions([drawn], PAGES, max_pixels=1e8)
    tracemalloc.start()
    try:
        (found,) = read_regions([drawn], PAGES, max_pixels=1e8)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert np.array_equal(found.mask.full(), mask)


def test_many_masks_of_a_large_image_are_written_a_few_at_a_time(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_store, "_BATCH_BYTES", 2**18)
    masks = []
    for number in range(16):
        full = np.zeros((1000, 800), bool)
        full[number, :5] = True
        masks.append(CroppedMask.of(full))
    store = MaskStore(str(tmp_path))
    store.put_all(masks[:1])
    tracemalloc.start()
    try:
        names = store.put_all(masks)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    for name, mask in zip(names, masks, strict=True):
        assert np.array_equal(store.get(name), mask.full())
