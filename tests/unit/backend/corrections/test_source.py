"""Facts of image files: the size that is recorded is the size that the model sees."""

import io

import pytest
from PIL import Image

from backend.corrections.source import image_facts
from medsam3_model.images.reading import read_image

_ORIENTATION = 0x0112


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_the_recorded_size_is_that_of_the_pixels(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "grey").save(file, form, exif=exif)
    facts = image_facts(file.getvalue())
    assert (facts.height, facts.width) == read_image(file.getvalue()).shape[:2]
