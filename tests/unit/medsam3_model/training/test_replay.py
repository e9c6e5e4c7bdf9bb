"""The images that are replayed for the bundled model."""

import numpy as np

from medsam3_model.data.template import TEMPLATE_DEMO_SLICES
from medsam3_model.pretraining.phrases import CONCEPT_PHRASES
from medsam3_model.training.replay import REPLAY_FOLDER, bundled_replay

MOST_BYTES = 5 * 2**20


def test_every_concept_of_the_model_is_replayed_and_some_are_denied() -> None:
    images = bundled_replay()
    assert len({one.key for one in images}) == len(images)
    present: set[str] = set()
    absent: set[str] = set()
    for one in images:
        layers = one.layers()
        sizes = {layer.shape for layer in layers.values()}
        assert len(sizes) == 1
        for phrase, layer in layers.items():
            (present if layer.any() else absent).add(phrase)
    assert present == set(CONCEPT_PHRASES)
    assert {"polyp", "skin lesion", "cell nucleus", "brain"} <= absent


def test_images_are_as_large_as_their_masks() -> None:
    for one in bundled_replay()[::9]:
        image = one.read()
        assert image.dtype == np.uint8
        assert {layer.shape for layer in one.layers().values()} == {image.shape[:2]}


def test_what_the_demo_shows_is_not_among_them() -> None:
    names = {path.stem for path in (REPLAY_FOLDER / "images").iterdir()}
    shown = {f"template-mni152_axial_{index:03d}" for index in TEMPLATE_DEMO_SLICES}
    assert any(name.startswith("template-") for name in names)
    assert not names & shown


def test_they_stay_small_and_name_their_sources() -> None:
    files = [path for path in REPLAY_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    told = (REPLAY_FOLDER / "README.md").read_text(encoding="utf-8")
    for path in (REPLAY_FOLDER / "images").iterdir():
        assert f"`{path.name.split('-')[0]}-*`" in told
