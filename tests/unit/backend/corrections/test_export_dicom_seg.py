"""DICOM SEG is read back by highdicom and by the reader that 3D Slicer has, frame by frame."""

import json
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from backend.corrections.export import ExportFormat
from backend.errors import DatasetVersionError, LabelConfigError
from backend.labeling.codes import LabelCode, SegmentCode, segment_codes
from backend.volumes.sources import StackSource
from medsam3_model.images.geometry import StackGeometry, nearest, page_of
from medsam3_model.images.limits import DEFAULT_LIMITS
from medsam3_model.images.rendering import SourceStack, StackOptions
from medsam3_model.images.stacks import find_stacks
from tests.support.exports import exported
from tests.support.stack_files import write_series
from tests.unit.medsam3_model.images.test_dicom import dicom

SEGIMAGE2ITKIMAGE = Path(sysconfig.get_path("scripts")) / "segimage2itkimage"
OBLIQUE = (0.8, 0.6, 0, -0.6, 0.8, 0)
CONFIG = """
<View>
  <Image name="image" valueList="$images"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Leber" code="SCT:10200004"/>
    <Label value="Läsion" code="SCT:52988006:Lesion of mine"/>
  </BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Leber"/></RectangleLabels>
</View>
"""


def imported(source: Path, plane: Any = "source") -> tuple[StackSource, StackGeometry]:
    (stack,) = find_stacks(source, StackOptions(plane=plane, window=(0, 255)), DEFAULT_LIMITS)
    assert isinstance(stack, SourceStack)
    return StackSource(str(source), stack.sha256, stack.geometry.as_json()), stack.geometry


def pages(geometry: StackGeometry, truth: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Masks of a volume as somebody would draw them on its pages."""
    height, width = (
        nearest(page, length)
        for page, length in zip(geometry.page_size, geometry.slice_size, strict=True)
    )
    return [
        {
            label: drawn[np.ix_(height, width)]
            for label, volume in truth.items()
            if (drawn := page_of(volume, geometry, page)).any()
        }
        for page in range(geometry.pages)
    ]


def volumes(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Two labels that overlap, with slices that hold one, both or none."""
    liver, lesion = np.zeros(shape, bool), np.zeros(shape, bool)
    liver[1:4, 2:6, 3:8] = True
    liver[2, 2, 3] = False
    lesion[3:5, 4:7, 1:5] = True
    return {"Leber": liver, "Läsion": lesion}


def write_enhanced(path: Path) -> None:
    """An enhanced CT of three frames that are not in the order of their positions."""
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 2
    orientation.ImageOrientationPatient = list(OBLIQUE)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for place in (2.0, 0.0, 4.0):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [1.0, 2.0, place]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    content = dicom(
        np.zeros((3, 8, 10), np.uint16),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        StudyInstanceUID="1.2.3",
        SeriesInstanceUID="1.2.3.4",
        FrameOfReferenceUID="1.2.3.5",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
    path.write_bytes(content)


@pytest.mark.parametrize("plane", ["source", "coronal"])
def test_a_series_comes_back(tmp_path: Path, plane: str) -> None:
    source = tmp_path / "study"
    write_series(source, np.full((6, 8, 10), 1124, np.uint16), orientation=OBLIQUE, PatientID="K7")
    (source / "report.txt").write_text("no DICOM")
    stack, geometry = imported(source, plane)
    truth = volumes(geometry.shape)
    drawn = [pages(geometry, truth)]
    for folder in (tmp_path / "one", tmp_path / "two"):
        exported(
            folder, ExportFormat.DICOM_SEG, drawn, stacks={1: stack}, label_config=CONFIG
        )  # fmt: skip
    file = tmp_path / "one/out/segmentations/task-00000001.dcm"
    again = tmp_path / "two/out/segmentations/task-00000001.dcm"
    assert file.read_bytes() == again.read_bytes()
    assert not list((tmp_path / "one/out").rglob("*.png"))

    segmentation = highdicom.seg.segread(file)
    assert segmentation.FrameOfReferenceUID == geometry.frame_of_reference_uid
    assert segmentation.StudyInstanceUID == geometry.study_instance_uid
    assert (segmentation.PatientID, segmentation.PatientName) == ("K7", "Planted^Secret")
    types = {
        segment.segment_label: (
            segment.segmented_property_type,
            segment.segmented_property_category,
        )
        for segment in segmentation.SegmentSequence
    }
    assert {label: kind.meaning for label, (kind, _) in types.items()} == {
        "Leber": "Liver",
        "Läsion": "Lesion of mine",
    }
    assert types["Leber"][1].value == "91723000"
    assert types["Läsion"][1].value == "49755003"
    assert all(segment.algorithm_type.value == "MANUAL" for segment in segmentation.SegmentSequence)
    uids = [instance.instance_uid for instance in geometry.sop_instances]
    assert {uid for _, _, uid in segmentation.get_source_image_uids()} == set(uids)
    # Frame for frame, by the objects that they refer to.
    read = segmentation.get_pixels_by_source_instance(uids, ignore_spatial_locations=False)
    numbers = {
        segment.segment_label: segment.segment_number for segment in segmentation.SegmentSequence
    }
    for label, mask in truth.items():
        np.testing.assert_array_equal(read[..., numbers[label] - 1] != 0, mask)
    _check_with_slicers_reader(file, tmp_path / "slicer", geometry, truth, numbers)


def _check_with_slicers_reader(
    file: Path,
    folder: Path,
    geometry: StackGeometry,
    truth: Mapping[str, np.ndarray],
    numbers: Mapping[str, int],
) -> None:
    """Every voxel where the series' positions put it, whatever axes the reader chooses."""
    folder.mkdir()
    options = ["--inputDICOM", file, "--outputDirectory", folder, "--outputType", "nii"]
    subprocess.run([SEGIMAGE2ITKIMAGE, *options], check=True, capture_output=True, timeout=60)
    described = json.loads((folder / "meta.json").read_text())["segmentAttributes"]
    labels = {segment["SegmentLabel"] for (segment,) in described}
    assert labels == set(truth)
    for label, mask in truth.items():
        image: Any = nibabel.load(folder / f"{numbers[label]}.nii.gz")
        found = nibabel.affines.apply_affine(image.affine, np.argwhere(image.dataobj))
        affine = np.reshape(geometry.affine, (4, 4))
        expected = nibabel.affines.apply_affine(affine, np.argwhere(mask))
        np.testing.assert_allclose(_sorted(found), _sorted(expected), atol=1e-3)


def _sorted(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(np.round(points, 2).T)]


def test_frames_of_a_multi_frame_object_are_named_by_their_numbers(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "enhanced.dcm")
    stack, geometry = imported(tmp_path / "enhanced.dcm")
    truth = {"Leber": np.zeros(geometry.shape, bool)}
    truth["Leber"][0, 2:4, 5:9] = True
    drawn = [pages(geometry, truth)]
    written = exported(
        tmp_path, ExportFormat.DICOM_SEG, drawn, stacks={1: stack}, label_config=CONFIG
    )
    (file,) = (written.folder / "segmentations").iterdir()
    segmentation = highdicom.seg.segread(file)
    instance = geometry.sop_instances[0]
    assert instance.frame == 2
    assert segmentation.NumberOfFrames == 1
    read = segmentation.get_pixels_by_source_frame(
        instance.instance_uid, [instance.frame], ignore_spatial_locations=False
    )
    np.testing.assert_array_equal(read[0, ..., 0] != 0, truth["Leber"][0])
    (group,) = segmentation.PerFrameFunctionalGroupsSequence
    assert group.PlanePositionSequence[0].ImagePositionPatient == [1, 2, 0]


def test_what_no_segmentation_can_be_made_of_is_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "study"
    write_series(source, np.full((5, 8, 10), 1124, np.uint16))
    stack, geometry = imported(source)
    drawn = [pages(geometry, volumes(geometry.shape))]
    volume = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((10, 8, 5), np.uint8), np.eye(4)), volume)
    nifti, _ = imported(volume)
    without = CONFIG.replace(' code="SCT:52988006:Lesion of mine"', "")
    cases: list[tuple[dict[int, StackSource], str, str]] = [
        ({1: stack}, without, '"Läsion" have no code.*SCT:10200004'),
        ({1: stack}, CONFIG.replace("SCT:52988006", "lesion"), "which is no code: write code="),
        ({}, CONFIG, "task 1 was made of an image.*medsam3 import, or export as coco or masks"),
        ({1: nifti}, CONFIG, "task 1 was made of a nifti file.*export as nifti"),
    ]

    def refused(name: str, stacks: dict[int, StackSource], config: str, words: str) -> None:
        with pytest.raises(DatasetVersionError, match=words) as error:
            exported(
                tmp_path / name, ExportFormat.DICOM_SEG, drawn, stacks=stacks, label_config=config
            )
        assert "Planted" not in str(error.value)
        assert not (tmp_path / name / "out/segmentations").exists()

    for number, case in enumerate(cases):
        refused(str(number), *case)
    path = next(source.iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"xx")
    refused("changed", {1: stack}, CONFIG, "task 1 is no longer .* files have changed; put it back")
    path.unlink()
    refused("gone", {1: stack}, CONFIG, "1 of its 5 DICOM objects are missing; put it back")
    path.write_bytes(content)
    for uid in ("FrameOfReferenceUID",):
        for file in source.iterdir():
            header = pydicom.dcmread(file)
            delattr(header, uid)
            header.save_as(file)
    refused("nowhere", {1: imported(source)[0]}, CONFIG, "names no frame of reference")


def test_codes_of_labels() -> None:
    assert segment_codes(CONFIG) == {
        "Leber": SegmentCode(LabelCode("SCT", "10200004")),
        "Läsion": SegmentCode(LabelCode("SCT", "52988006", "Lesion of mine")),
    }
    label = '<View><BrushLabels name="m" toName="i">{}</BrushLabels></View>'
    whole = '<Label value="x" code="DCM:125040" category="SCT:85756007:Tissue"/>'
    assert segment_codes(label.format(whole))["x"].category == LabelCode(
        "SCT", "85756007", "Tissue"
    )
    for text, words in (
        ('code="10200004"', "no code"),
        ('code="SCT:"', "no code"),
        ('code="SCT:10200005"', "no identifier of SNOMED CT"),
        ('code="SCT:T-62000"', "no identifier of SNOMED CT"),
        ('code="SCT:10200004:a:b"', "no code"),
        ('category="SCT:85756007"', "a category and no code"),
    ):
        with pytest.raises(LabelConfigError, match=words):
            segment_codes(label.format(f'<Label value="x" {text}/>'))
    two = '<Label value="x" code="SCT:10200004"/><Label value="x" code="SCT:78961009"/>'
    with pytest.raises(LabelConfigError, match="two codes"):
        segment_codes(label.format(two))
