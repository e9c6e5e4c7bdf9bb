"""The SDK's converter is the reference: same bytes out, same masks in."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle

from backend.errors import RleError
from backend.labeling import brush_rle

SAMPLES = Path(__file__).parents[3] / "data" / "label_studio"

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
bool_masks = hnp.arrays(np.bool_, shapes)
# Few distinct values, so that runs of all lengths occur.
value_masks = hnp.arrays(np.uint8, shapes, elements=st.sampled_from([0, 0, 0, 1, 127, 128, 255]))


def run_masks(seed: int, height: int, width: int, mean_run: float) -> np.ndarray:
    """A mask with geometric run lengths around `mean_run` pixels."""
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(1 / mean_run, size=height * width)
    on = np.arange(lengths.size) % 2 == 1
    return np.repeat(on, lengths)[: height * width].reshape(height, width)


def sdk_alpha(rle: list[int], height: int, width: int) -> np.ndarray:
    return decode_rle(rle).reshape(height, width, 4)[..., 3] > 0


@given(bool_masks)
def test_bool_masks_encode_to_the_sdks_bytes_and_come_back(mask):
    rle = brush_rle.encode(mask)
    assert rle == mask2rle(mask.astype(np.uint8) * np.uint8(255))
    assert all(type(value) is int for value in rle)
    np.testing.assert_array_equal(brush_rle.decode(rle, *mask.shape), mask)


@given(value_masks)
def test_uint8_masks_are_written_as_they_are(mask):
    rle = brush_rle.encode(mask)
    assert rle == mask2rle(mask)
    np.testing.assert_array_equal(brush_rle.decode(rle, *mask.shape), mask > 0)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 170),
    st.integers(1, 170),
    st.sampled_from([1.01, 1.5, 3.0, 20.0, 300.0, 1e5]),
)
def test_larger_masks_of_all_run_lengths(seed, height, width, mean_run):
    mask = run_masks(seed, height, width, mean_run)
    rle = brush_rle.encode(mask)
    assert rle == mask2rle(mask.astype(np.uint8) * np.uint8(255))
    np.testing.assert_array_equal(brush_rle.decode(rle, height, width), mask)


@settings(deadline=None)
@given(st.data())
def test_any_rgba_stream_decodes_as_in_the_sdk(data):
    """Channels that differ, runs that end inside a pixel, single values: the alpha rule is > 0."""
    height, width = data.draw(shapes)
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=60))
    values = data.draw(
        st.lists(st.sampled_from([0, 1, 3, 255]), min_size=len(lengths), max_size=len(lengths))
    )
    total = height * width * 4
    rgba = np.resize(np.repeat(np.array(values, dtype=np.uint8), lengths), total)
    rle = encode_rle(rgba)
    np.testing.assert_array_equal(
        brush_rle.decode(rle, height, width), sdk_alpha(rle, height, width)
    )


class PacketWriter:
    """Writes any legal stream, literal packets and odd run sizes included."""

    def __init__(self, num_values: int, run_sizes: tuple[int, int, int, int] = (3, 4, 8, 16)):
        self.run_sizes = run_sizes
        self.bits = f"{num_values:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in run_sizes)

    def run(self, length: int, value: int, index: int) -> None:
        self.bits += f"1{index:02b}{length - 1:0{self.run_sizes[index]}b}{value:08b}"

    def literal(self, values: list[int], index: int) -> None:
        self.bits += f"0{index:02b}{len(values) - 1:0{self.run_sizes[index]}b}"
        self.bits += "".join(f"{value:08b}" for value in values)

    def rle(self) -> list[int]:
        bits = self.bits + "0" * (-len(self.bits) % 8)
        return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@settings(deadline=None)
@given(st.data())
def test_literal_packets_and_other_run_sizes(data):
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    run_sizes = data.draw(st.sampled_from([(3, 4, 8, 16), (1, 2, 3, 4), (16, 1, 7, 12)]))
    left = height * width * 4
    writer = PacketWriter(left, run_sizes)
    while left:
        index = int(rng.integers(4))
        length = int(rng.integers(1, min(1 << run_sizes[index], left, 700) + 1))
        if rng.random() < 0.5:
            writer.literal(rng.choice([0, 0, 7, 255], size=length).tolist(), index)
        else:
            writer.run(length, int(rng.choice([0, 9, 255])), index)
        left -= length
    rle = writer.rle()
    np.testing.assert_array_equal(
        brush_rle.decode(rle, height, width), sdk_alpha(rle, height, width)
    )


def test_many_short_literals_in_a_long_stream():
    """Too long for the short path, and no run packet for the lanes to fall in step with."""
    rng = np.random.default_rng(3)
    rgba = rng.integers(0, 256, size=120 * 130 * 4).astype(np.uint8)
    rle = encode_rle(rgba)
    expected = rgba.reshape(120, 130, 4)[..., 3] > 0
    np.testing.assert_array_equal(brush_rle.decode(rle, 120, 130), expected)


@pytest.mark.parametrize("kind", ["noise", "checkerboard", "stripes", "ones"])
def test_streams_long_enough_for_many_lanes(kind):
    rng = np.random.default_rng(11)
    mask = {
        "noise": rng.random((700, 900)) > 0.5,
        "checkerboard": np.indices((700, 900)).sum(axis=0) % 2 == 0,
        "stripes": np.broadcast_to(np.arange(900) % 7 < 3, (700, 900)),
        # All-ones values keep a lane that is out of step from finding a zero to fall in with.
        "ones": np.where(rng.random((700, 900)) > 0.5, 255, 127).astype(np.uint8),
    }[kind]
    rle = brush_rle.encode(mask)
    np.testing.assert_array_equal(brush_rle.decode(rle, 700, 900), mask > 0)


@pytest.mark.parametrize("pixels", [16384, 16385, 16386, 16448, 32768, 32769, 70000])
def test_runs_at_the_16_bit_limit(pixels):
    """A run over 65,536 values is split, and its rest stays in a 16-bit packet."""
    mask = np.zeros((1, pixels + 3), dtype=np.uint8)
    mask[0, :pixels] = 255
    rle = brush_rle.encode(mask)
    assert rle == mask2rle(mask)
    np.testing.assert_array_equal(brush_rle.decode(rle, *mask.shape), mask > 0)
    many_runs = np.concatenate([mask, np.tile(np.array([[255, 0]], dtype=np.uint8), 200)], axis=1)
    assert brush_rle.encode(many_runs) == mask2rle(many_runs)


def test_the_extra_byte_when_the_stream_is_already_aligned():
    lengths = {width: len(brush_rle.encode(np.ones((1, width), dtype=bool))) for width in (2, 4)}
    # 53 header bits + 14 = 67 bits; 53 + 15 = 68 bits: both end inside the ninth byte.
    assert lengths == {2: 9, 4: 9}
    aligned = np.array([[255, 255, 0, 0, 255, 0, 255, 0, 0, 0]], dtype=np.uint8)
    for width in range(1, 11):
        assert brush_rle.encode(aligned[:, :width]) == mask2rle(aligned[:, :width])


def test_masks_that_are_not_contiguous_or_not_uint8():
    mask = np.random.default_rng(0).random((31, 47)) > 0.4
    assert brush_rle.encode(mask.T) == brush_rle.encode(np.ascontiguousarray(mask.T))
    assert brush_rle.encode(mask[::2, ::-1]) == brush_rle.encode(mask[::2, ::-1].copy())
    assert brush_rle.encode(mask.astype(np.int64) * 255) == brush_rle.encode(mask)


def test_a_region_drawn_in_the_editor():
    """Recorded from a submitted annotation: the editor encodes brush regions anew on submit."""
    sample = json.loads((SAMPLES / "brush_region.json").read_text())
    height, width = sample["original_height"], sample["original_width"]
    rle = sample["value"]["rle"]
    mask = brush_rle.decode(rle, height, width)
    np.testing.assert_array_equal(mask, sdk_alpha(rle, height, width))
    assert mask.any()
    assert not mask.all()


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (np.zeros((0, 5), dtype=bool), "not empty"),
        (np.zeros((2, 3, 4), dtype=np.uint8), "height, width"),
        (np.zeros((2, 2), dtype=np.float32), "bool or integers"),
        (np.full((2, 2), 256, dtype=np.int32), r"0\.\.255"),
        (np.full((2, 2), -1, dtype=np.int8), r"0\.\.255"),
        (np.broadcast_to(np.zeros(1, dtype=bool), (1 << 15, 1 << 15)), "larger than its RLE"),
    ],
)
def test_masks_that_have_no_rle(mask, match):
    with pytest.raises(RleError, match=match):
        brush_rle.encode(mask)


class TestLyingStreams:
    mask = run_masks(5, 90, 110, 3.0)
    rle = brush_rle.encode(mask)

    @pytest.mark.parametrize("size", [(90, 111), (110, 91), (1, 1), (50_000, 50_000)])
    def test_a_header_that_does_not_fit_the_image(self, size):
        with pytest.raises(RleError, match="announces 39600 values"):
            brush_rle.decode(self.rle, *size)

    def test_a_huge_header_is_refused_before_anything_is_allocated(self):
        """Announced and expected agree on 3.2 GB of values, but the stream holds almost none."""
        huge = brush_rle.encode(np.ones((2, 2), dtype=bool))
        huge[:4] = list((20_000 * 20_000 * 4).to_bytes(4, "big"))
        with pytest.raises(RleError, match="cut off"):
            brush_rle.decode(huge, 20_000, 20_000)
        with pytest.raises(RleError, match="cut off"):
            brush_rle.decode(huge + [0] * 1000, 20_000, 20_000)

    @pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 10)])
    def test_an_image_without_pixels(self, size):
        with pytest.raises(RleError, match="no brush mask"):
            brush_rle.decode(self.rle, *size)

    def test_other_word_sizes(self):
        bad = list(self.rle)
        bad[4] = 15 << 3 | bad[4] & 7
        with pytest.raises(RleError, match="16-bit values"):
            brush_rle.decode(bad, 90, 110)

    @pytest.mark.parametrize("bad", [[], [1, 2, 3], "text", None, [0.5] * 20, [300] * 20, 7])
    def test_not_a_list_of_bytes(self, bad):
        with pytest.raises(RleError):
            brush_rle.decode(bad, 90, 110)

    def test_one_value_out_of_range_far_behind_the_header(self):
        with pytest.raises(RleError, match=r"integers 0\.\.255"):
            brush_rle.decode([*self.rle[:-1], 256], 90, 110)

    @settings(deadline=None)
    @given(st.integers(0, len(rle) - 2))
    def test_every_truncation_is_refused(self, length):
        with pytest.raises(RleError):
            brush_rle.decode(self.rle[:length], 90, 110)

    def test_truncation_of_a_short_stream(self):
        rle = brush_rle.encode(np.eye(6, dtype=bool))
        for length in range(len(rle) - 1):
            with pytest.raises(RleError):
                brush_rle.decode(rle[:length], 6, 6)

    @pytest.mark.parametrize("padding", [0, 300])
    def test_a_run_past_the_last_value(self, padding):
        writer = PacketWriter(2 * 2 * 4)
        writer.run(17, 255, 2)
        with pytest.raises(RleError, match="1 values too long"):
            brush_rle.decode(writer.rle() + [0] * padding, 2, 2)

    @pytest.mark.parametrize("cut", [1, 200])
    def test_a_literal_cut_in_the_middle(self, cut):
        writer = PacketWriter(10 * 10 * 4)
        writer.literal([255] * 400, 3)
        with pytest.raises(RleError, match="cut off"):
            brush_rle.decode(writer.rle()[:-cut], 10, 10)

    @settings(deadline=None, max_examples=200)
    @given(st.binary(min_size=0, max_size=600))
    def test_noise_behind_a_good_header_never_crashes(self, noise):
        try:
            mask = brush_rle.decode(self.rle[:7] + list(noise), 90, 110)
        except RleError:
            return
        assert mask.shape == (90, 110)
