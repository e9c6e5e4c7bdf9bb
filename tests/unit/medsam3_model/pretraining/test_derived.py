"""Training images that are made from others."""

import numpy as np

from medsam3_model.pretraining.data import SourceImage
from medsam3_model.pretraining.derived import (
    healthy_parts,
    painted_cups,
    with_findings,
    without_findings,
)


def _photograph(box: tuple[int, int, int, int] | None, concept: str = "polyp") -> SourceImage:
    """100 × 160 pixels; a finding in rows and columns `box` is brighter than the rest."""
    image = np.full((100, 160, 3), 100, np.uint8)
    layer = np.zeros((100, 160), np.uint16)
    if box is not None:
        layer[box[0] : box[1], box[2] : box[3]] = 1
        image[layer > 0] = 200
    return SourceImage("one", "colon", image, 1.6, {concept: layer})


def test_healthy_parts_lie_beside_the_finding_and_keep_its_name_as_absent() -> None:
    rng = np.random.default_rng(0)
    for box in ((10, 40, 20, 60), (60, 99, 100, 159), (0, 30, 0, 160)):
        parts = healthy_parts([_photograph(box)], rng)
        assert len(parts) == 2
        for part in parts:
            assert part.image.max() == 100
            assert not part.layers["polyp"].any()
            assert part.layers["polyp"].shape == part.image.shape[:2]
            assert min(part.image.shape[:2]) >= 30
            assert abs(part.aspect - part.image.shape[1] / part.image.shape[0]) < 1e-9


def test_an_image_that_is_all_finding_or_all_dark_has_no_healthy_part() -> None:
    rng = np.random.default_rng(0)
    assert healthy_parts([_photograph((5, 95, 5, 155))], rng) == []
    dark = _photograph((10, 40, 20, 60))
    dark.image[dark.layers["polyp"] == 0] = 20
    assert healthy_parts([dark], rng) == []


def test_scans_with_and_without_findings_are_told_apart() -> None:
    ill, well = _photograph((10, 40, 20, 60)), _photograph(None)
    assert with_findings([ill, well]) == [ill]
    assert without_findings([ill, well]) == [well]


def test_a_painted_cup_is_brighter_and_within_the_disc() -> None:
    retina = _photograph((30, 70, 60, 100), "optic disc")
    pictures = painted_cups([retina, _photograph(None, "optic disc")], np.random.default_rng(0))
    assert len(pictures) == 4
    assert pictures[0].image.shape == retina.image.shape
    for picture in pictures:
        disc, cup = picture.layers["optic disc"] > 0, picture.layers["optic cup"] > 0
        assert cup.any()
        assert not (cup & ~disc).any()
        assert picture.image[cup].mean() > picture.image[disc & ~cup].mean()
        assert disc.shape == picture.image.shape[:2]
