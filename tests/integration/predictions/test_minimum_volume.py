"""Small objects of a stack are left out of its prediction where the stack can be measured."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from backend.errors import VolumeError
from backend.labeling.brush_rle import decode
from backend.labeling.config import parse_label_config
from backend.labeling.stack_objects import stack_objects
from backend.models.versions import default_version
from backend.predictions.inference import Inference
from backend.predictions.minimum_volume import minimum_volume
from backend.services import Services
from backend.tables import Suggestion
from backend.volumes.tables import Stack
from medsam3_model.data.template import template_slice
from medsam3_model.images.geometry import StackGeometry
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.images import png

CONFIG = """
<View>
  <Image name="image" valueList="$images"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Brain" prompt="brain" min_volume_ml="{}"/><Label value="Other" prompt=""/>
  </BrushLabels>
</View>
"""
SIZE = (224, 197)
# The lower end of the brain, nuclei instead of a slice, and two slices of the brain's middle: an
# object of one slice and one of two.
PAGES = [
    template_slice(20).image[:224],
    phantom("microscopy", 2).image[:, :197],
    template_slice(90).image[:224],
    template_slice(92).image[:224],
]
VOXEL_ML = 0.001
CUBES = tuple(float(value) for value in np.eye(4).ravel())  # a millimetre along each side
GEOMETRY = StackGeometry("nifti", (4, *SIZE), CUBES, 0, 1, 2, False, False, False, SIZE)


def store(services: Services, geometry: StackGeometry) -> None:
    with services.database.session() as session:
        session.add(
            Stack(
                project_id=7,
                task_id=1,
                source="scan.nii",
                source_sha256="0" * 64,
                geometry=geometry.as_json(),
            )
        )


def refusal(services: Services, pages: int = 4, default_ml: float = 0.0, written: str = "5") -> str:
    """Why a stack's objects have no volume; empty where nothing was to be left out."""
    config = parse_label_config(CONFIG.format(written))
    data = {"images": ["page.png"] * pages}
    with services.database.reading() as session:
        try:
            minimum = minimum_volume(session, 7, 1, config.images[0], data, config, default_ml)
        except VolumeError as error:
            return str(error)
    assert minimum is None
    return ""


def test_the_prediction_has_the_objects_that_are_large_enough(services: Services) -> None:
    store(services, GEOMETRY)
    pages = ["data:image/png;base64," + base64.b64encode(png(page)).decode() for page in PAGES]
    row = Suggestion(
        project_id=7,
        task_id=1,
        task_data={"images": pages},
        model_version=default_version(services),
    )
    inference = Inference(services)
    everything = inference.predict(row, CONFIG.format("0")).regions
    masks = [(region["item_index"], decode(region["value"]["rle"], *SIZE)) for region in everything]
    pixels = {index: one.pixels for one in stack_objects(masks) for index in one.instances}
    least = max(pixels.values())
    large = inference.predict(row, CONFIG.format(f"{(least - 0.5) * VOXEL_ML:.4f}")).regions
    expected = [region["value"] for at, region in enumerate(everything) if pixels[at] == least]
    assert [region["item_index"] for region in everything] == [0, 2, 3]
    assert [region["item_index"] for region in large] == [2, 3]
    assert [region["value"] for region in large] == expected


def test_a_stack_without_a_size_of_voxels_is_refused_by_name(services: Services) -> None:
    assert "it was not imported as a volume" in refusal(services)
    store(services, replace(GEOMETRY, kind="video", affine=None))
    assert '"Brain" has a min_volume_ml' in refusal(services)
    assert "its source (video) has none" in refusal(services)


def test_other_pages_than_those_that_were_imported_are_refused(services: Services) -> None:
    store(services, GEOMETRY)
    assert "the task has 3 pages, and 4 were imported" in refusal(services, pages=3)


def test_the_setting_leaves_nothing_out_where_volumes_are_not_known(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    assert refusal(services, default_ml=5.0, written="0") == ""
    assert "MEDSAM3_MIN_VOLUME_ML leaves nothing of task 1 out" in caplog.text
