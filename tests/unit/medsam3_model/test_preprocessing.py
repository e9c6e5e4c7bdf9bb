"""Pictures and boxes on their way into the model."""

import numpy as np
import pytest
import torch

from medsam3_model.errors import PromptError
from medsam3_model.preprocessing import model_boxes, per_phrase_boxes, text_mask, to_pixel_values


def test_pixels_are_squared_and_scaled() -> None:
    rgb = np.zeros((30, 60, 3), np.uint8)
    rgb[:, 30:] = (255, 128, 0)
    pixels = to_pixel_values(rgb, 24)
    assert pixels.shape == (1, 3, 24, 24)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0, :, 12, 2], torch.tensor([-1.0, -1.0, -1.0]))
    expected = torch.tensor([1.0, 128 / 127.5 - 1, -1.0])
    torch.testing.assert_close(pixels[0, :, 12, 21], expected)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((3, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(PromptError, match="uint8"):
        to_pixel_values(wrong, 24)


def test_masks_of_both_paddings() -> None:
    end = 49407
    ids = torch.tensor([[1, 5, end, 0, 0], [1, end, end, end, end], [1, 5, 6, 7, end]])
    expected = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert text_mask(ids, end).int().tolist() == expected


def test_boxes_for_all_phrases_or_for_each() -> None:
    one, _ = per_phrase_boxes([1, 2, 3, 4], None, 2)
    assert [row.tolist() for row in one] == [[[1, 2, 3, 4]]] * 2
    shared, labels = per_phrase_boxes(np.array([[0, 0, 1, 1], [1, 1, 2, 2]]), [1, 0], 3)
    assert len(shared) == 3
    assert [label.tolist() for label in labels] == [[1, 0]] * 3
    each, labels = per_phrase_boxes([[[0, 0, 1, 1]], [], np.zeros((0, 4))], [[0], [], None], 3)
    assert [len(row) for row in each] == [1, 0, 0]
    assert labels[0].tolist() == [0]


def test_boxes_become_fractions_and_are_padded() -> None:
    rows, labels = per_phrase_boxes([[[10, 20, 30, 60]], []], [[0], []], 2)
    boxes, box_labels = model_boxes(rows, labels, (100, 200))
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.1, 0.4, 0.1, 0.4]))
    # A phrase without boxes has one padding box: transformers needs it for its geometry token.
    assert boxes.shape == (2, 1, 4)
    assert box_labels.tolist() == [[0], [-10]]


def test_boxes_that_reach_over_the_edge_are_cut() -> None:
    rows, labels = per_phrase_boxes([[-50, -50, 100, 50]], None, 1)
    boxes, _ = model_boxes(rows, labels, (100, 200))
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.25, 0.25, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        (None, [1], "without boxes"),
        ([[1, 2, 3]], None, r"\(M, 4\)"),
        ([[1, 2, 1, 4]], None, "empty"),
        ([[5, 2, 1, 4]], None, "empty"),
        ([[0, 0, float("nan"), 4]], None, "finite"),
        ([[0, 0, 1, 1]], [1, 0], "as many labels"),
        ([[0, 0, 1, 1]], [2], "1 .* or 0"),
        ([[[0, 0, 1, 1]]] * 3, None, "for 3 phrases, but there are 2"),
        ([[[0, 0, 1, 1]]] * 2, [[1]], "box_labels were given for 1"),
    ],
)
def test_bad_boxes_are_refused(boxes: object, labels: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        per_phrase_boxes(boxes, labels, 2)
