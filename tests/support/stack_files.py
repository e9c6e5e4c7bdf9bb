"""Slices of DICOM series as a scanner sends them, each a file of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from tests.unit.medsam3_model.images.test_dicom import dicom

CT = "1.2.840.10008.5.1.4.1.1.2"
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)


def write_series(
    folder: Path,
    volume: np.ndarray,
    *,
    positions: Sequence[float] | None = None,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.5, 0.5),
    **tags: object,
) -> None:
    """Write slices (slice, row, column) along the normal, 3 mm apart, in a shuffled order.

    Names and instance numbers contradict the positions.
    """
    folder.mkdir(exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    places = [3.0 * index for index in range(len(volume))] if positions is None else positions
    series = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "SOPClassUID": CT,
        "PixelSpacing": list(spacing),
        "ImageOrientationPatient": list(orientation),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PatientName": "Planted^Secret",
    } | tags
    order = np.random.default_rng(0).permutation(len(volume))
    for number, index in enumerate(order):
        position = [float(value) for value in np.array([-10, 20, 5]) + places[index] * normal]
        content = dicom(
            volume[index],
            **series,
            SOPInstanceUID=generate_uid(),
            InstanceNumber=number + 1,
            ImagePositionPatient=position,
        )
        (folder / f"{generate_uid()}").write_bytes(content)
