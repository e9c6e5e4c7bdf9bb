"""Phantoms: drawn pictures whose truth is known."""

import numpy as np
import pytest
from scipy import ndimage

from medsam3_model.pretraining.phantoms.phantoms import PHANTOMS, phantom
from medsam3_model.pretraining.phrases import CONCEPT_PHRASES
from medsam3_model.training.prompts import BOX_ONLY

KINDS = sorted(PHANTOMS)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_picture(kind: str) -> None:
    first, second, other = phantom(kind, 3, 96), phantom(kind, 3, 96), phantom(kind, 4, 96)
    assert np.array_equal(first.image, second.image)
    assert not np.array_equal(first.image, other.image)
    for concept, layer in first.layers.items():
        assert np.array_equal(layer, second.layers[concept])


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_known_concepts(kind: str) -> None:
    made = phantom(kind, 0, 96)
    assert made.image.shape == (96, 96, 3)
    assert made.image.dtype == np.uint8
    assert made.image.std() > 3
    for concept, layer in made.layers.items():
        assert layer.shape == (96, 96)
        assert layer.dtype == np.uint16
        assert concept in CONCEPT_PHRASES or concept == BOX_ONLY


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "breast_ultrasound"])
def test_most_pictures_show_their_concepts(kind: str) -> None:
    shown = [any(layer.any() for layer in phantom(kind, s, 64).layers.values()) for s in range(20)]
    assert sum(shown) >= 12


def test_half_of_the_ultrasound_pictures_hold_no_mass() -> None:
    empty = [
        not phantom("breast_ultrasound", s, 48).layers["breast tumor"].any() for s in range(40)
    ]
    assert 12 <= sum(empty) <= 28


def test_masses_are_darker_than_what_is_around_them() -> None:
    darker = masses = 0
    for seed in range(40):
        made = phantom("breast_ultrasound", seed, 96)
        inside = made.layers["breast tumor"] > 0
        if inside.any():
            around = ndimage.binary_dilation(inside, iterations=8) & ~inside
            masses += 1
            darker += made.image[inside].mean() < made.image[around].mean()
    assert darker > 0.8 * masses > 8


def test_the_patients_left_lung_is_on_the_images_right() -> None:
    layers = phantom("chest_xray", 1, 96).layers
    columns = {side: np.nonzero(layers[f"{side} lung"])[1].mean() for side in ("left", "right")}
    assert columns["left"] > 48 > columns["right"]
    union = (layers["left lung"] > 0) | (layers["right lung"] > 0)
    assert np.array_equal(layers["lungs"] > 0, union)


def test_the_muscle_surrounds_the_cavity() -> None:
    layers = phantom("cardiac_mri", 5, 128).layers
    cavity, muscle = layers["left ventricle cavity"] > 0, layers["myocardium"] > 0
    assert not (cavity & muscle).any()
    rows, columns = np.nonzero(cavity)
    around = np.nonzero(muscle)
    assert around[0].min() < rows.min() < rows.max() < around[0].max()
    assert around[1].min() < columns.min() < columns.max() < around[1].max()


def test_the_cup_lies_in_the_disc() -> None:
    layers = phantom("fundus", 2, 96).layers
    assert not ((layers["optic cup"] > 0) & (layers["optic disc"] == 0)).any()


def test_nuclei_are_numbered() -> None:
    layer = phantom("microscopy", 7, 128).layers["cell nucleus"]
    assert len(np.unique(layer)) > 3
