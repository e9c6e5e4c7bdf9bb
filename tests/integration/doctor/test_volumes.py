"""`medsam3 doctor` and the log say when an image is a volume of which one slice is read."""

import base64
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from backend.doctor.volumes import volume_remark
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import decode
from backend.labeling.config import parse_label_config
from backend.settings import Settings
from tests.support.http_server import Site
from tests.support.tokens import LEGACY_TOKEN

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="label" toName="image"><Label value="Tumor"/></BrushLabels></View>"""


def stack(slices: int) -> bytes:
    file = io.BytesIO()
    ramp = np.arange(slices * 20 * 30, dtype=np.uint32).reshape(slices, 20, 30) % 251
    tifffile.imwrite(file, ramp.astype(np.uint8), photometric="minisblack")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (stack(5), "task 8 is a volume or stack of 5 slices: only its middle one, slice 3"),
        (stack(1), ""),
        (b"no image", ""),
    ],
    ids=["stack", "picture", "damaged"],
)
def test_doctor_says_that_the_first_task_is_a_volume(
    tmp_path: Path, content: bytes, said: str
) -> None:
    site = Site()
    inline = "data:image/tiff;base64," + base64.b64encode(content).decode()
    tasks = json.dumps({"tasks": [{"id": 8, "data": {"image": inline}}], "total": 1})
    site.answers["/api/tasks"] = (200, {"Content-Type": "application/json"}, tasks.encode())
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path,
        label_studio_url=site.url,
        label_studio_api_key=LEGACY_TOKEN,
    )
    try:
        with LabelStudio.from_settings(settings) as client:
            remark = volume_remark(client, settings, 1, parse_label_config(CONFIG))
    finally:
        site.close()
    assert (said in remark) if said else remark == ""


def test_the_log_says_which_slice_of_which_task_was_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        pixels = decode(stack(5), settings, task_id=8)
        decode(stack(1), settings, task_id=9)
    assert pixels.shape == (20, 30, 3)
    assert "task 8 is a volume or stack of 5 slices: only its middle one, slice 3" in caplog.text
    assert "task 9" not in caplog.text
