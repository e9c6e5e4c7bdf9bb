"""Views of training images: geometry, looks and errors of drawn boxes."""

import numpy as np
import pytest
import torch

from medsam3_model.training.augmentation import (
    WHOLE,
    View,
    disturb_box,
    random_look,
    random_view,
    sample_image,
    sample_labels,
)


def _square(size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    image = np.zeros((size, size, 3), np.uint8)
    labels = np.zeros((1, size, size), np.uint16)
    image[20:50, 30:70] = 255
    labels[0, 20:50, 30:70] = 7
    return image, labels


def test_the_whole_view_keeps_image_and_labels() -> None:
    image, labels = _square()
    pixels = sample_image(image, WHOLE, 96)
    assert pixels.shape == (3, 96, 96)
    torch.testing.assert_close(pixels, torch.from_numpy(image).permute(2, 0, 1) / 255)
    assert torch.equal(sample_labels(labels, WHOLE, 96)[0], torch.from_numpy(labels[0]).long())


@pytest.mark.parametrize("seed", range(12))
def test_image_and_labels_move_together(seed: int) -> None:
    image, labels = _square()
    rng = np.random.default_rng(seed)
    view = random_view(rng, "skin", 1.3)
    bright = sample_image(image, view, 72)[0] > 0.5
    inside = sample_labels(labels, view, 72)[0] == 7
    assert (bright == inside).float().mean() > 0.97


def test_labels_are_never_mixed() -> None:
    _, labels = _square()
    labels[0, 60:80, 10:20] = 2
    for seed in range(10):
        view = random_view(np.random.default_rng(seed), "colon", 1.0)
        assert set(sample_labels(labels, view, 48).unique().tolist()) <= {0, 2, 7}


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    checkers = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    view = View(((1.0, 0.0, 0.001), (0.0, 1.0, 0.001)))
    pixels = sample_image(np.repeat(checkers[..., None], 3, axis=2), view, 64)
    assert (pixels[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.02


def test_outside_of_the_image_is_black_or_mirrored() -> None:
    image = np.full((32, 32, 3), 200, np.uint8)
    twice = ((2.0, 0.0, 0.0), (0.0, 2.0, 0.0))
    assert sample_image(image, View(twice), 32)[:, 0, 0].max() == 0
    assert sample_image(image, View(twice, mirrored_outside=True), 32).min() > 0.7


def test_sided_families_are_never_mirrored() -> None:
    for seed in range(50):
        (a, b, _), (c, d, _) = random_view(np.random.default_rng(seed), "chest", 1.0).matrix
        assert a * d - b * c > 0


def test_other_families_are_mirrored_at_times() -> None:
    signs = set()
    for seed in range(50):
        (a, b, _), (c, d, _) = random_view(np.random.default_rng(seed), "skin", 1.0).matrix
        signs.add(a * d - b * c > 0)
    assert signs == {True, False}


def test_looks_stay_in_range_and_follow_the_seed() -> None:
    pixels = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    changed = 0
    for seed in range(30):
        first = random_look(pixels, np.random.default_rng(seed))
        assert first.shape == pixels.shape
        assert first.min() >= 0
        assert first.max() <= 1
        assert torch.equal(first, random_look(pixels, np.random.default_rng(seed)))
        changed += not torch.equal(first, pixels)
    assert changed > 15


def test_box_errors_have_the_asked_size() -> None:
    rng = np.random.default_rng(0)
    box = np.array([0.4, 0.3, 0.6, 0.7], np.float32)
    errors = np.stack([disturb_box(box, 0.08, rng) - box for _ in range(4000)])
    assert np.abs(errors.mean(axis=0)).max() < 0.002
    assert errors.std(axis=0) == pytest.approx([0.016, 0.032, 0.016, 0.032], rel=0.06)


def test_disturbed_boxes_stay_boxes_inside_the_image() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        box = disturb_box(np.array([0.0, 0.1, 0.9, 1.0], np.float32), 0.5, rng)
        assert box.dtype == np.float32
        assert 0 <= box[0] < box[2] <= 1
        assert 0 <= box[1] < box[3] <= 1


def test_no_error_leaves_the_box() -> None:
    box = np.array([0.2, 0.1, 0.5, 0.9], np.float32)
    assert np.array_equal(disturb_box(box, 0.0, np.random.default_rng(0)), box)
