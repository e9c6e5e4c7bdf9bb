"""DICOM SEG: one segmentation object per task, `segmentations/task-....dcm`, a segment per label.

It refers to the objects of the series that the task was made of, frame by frame, and lies in their
study and frame of reference, with the patient as they name him. What a segment is comes from the
labeling config, see `backend.labeling.codes`. A segment's frames without a pixel are left out. UIDs
and times follow from the content, so that two exports are the same byte for byte.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.pages import ExportPage, PagesWithImages, write_file
from backend.corrections.export.volumes import check_sizes, checked_geometry, drawn_masks
from backend.corrections.mask_store import MaskStore
from backend.errors import DatasetVersionError, LabelConfigError
from backend.labeling.codes import LabelCode, SegmentCode, segment_codes
from backend.labeling.config import quoted

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medsam3_model.images.geometry import StackGeometry
    from medsam3_model.images.limits import ImageLimits

_NEEDS_HIGHDICOM = (
    "DICOM SEG is written by highdicom, which is not installed: "
    "pip install 'medsam3-label-studio[dicom-seg]'"
)
_SOFTWARE = "MedSAM-3 for Label Studio"
# DICOM's lesion types (CID 7159); what is in none of them is an anatomical structure.
_LESIONS = 7159
# Of the type 2: they must be there, and may be empty.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def write(
    version: ExportedVersion,
    pages: PagesWithImages,
    folder: Path,
    masks: MaskStore,
    *,
    label_config: str,
    limits: ImageLimits,
) -> None:
    """Write a dataset version into a folder.

    Raises:
        DatasetVersionError: highdicom is not installed; a label has no code; a task was not made of
            a DICOM series, or its files are not there any more or cannot be referred to.
    """
    try:
        import highdicom  # noqa: F401 - before anything is written
    except ImportError as error:
        raise DatasetVersionError(_NEEDS_HIGHDICOM) from error
    codes = _codes(version, label_config)
    _check_sources(version)
    for item, of_task in groupby(pages, key=lambda entry: entry[0].item):
        slices = [page for page, _ in of_task]
        labels = _labels(slices)
        if not labels:
            continue
        check_sizes(slices)
        stack = version.stacks[item.task.task_id]
        geometry = checked_geometry(stack, slices)
        headers = _headers(Path(stack.source), geometry, stack.source_sha256, limits, slices)
        drawn = _segments(geometry, headers, slices, labels, masks)
        stem = slices[0].stem.partition("-page-")[0]
        content = _written(headers, geometry, drawn, slices, {one: codes[one] for one in labels})
        write_file(folder / "segmentations" / f"{stem}.dcm", content)


def _labels(slices: Sequence[ExportPage]) -> list[str]:
    return sorted(
        {concept.label for page in slices for concept in page.concepts if concept.area} - {""}
    )


def _codes(version: ExportedVersion, label_config: str) -> Mapping[str, SegmentCode]:
    try:
        codes = segment_codes(label_config)
    except LabelConfigError as error:
        raise DatasetVersionError(str(error)) from error
    concepts = [concept for item in version.items for concept in item.task.concepts]
    labels = {concept.label for concept in concepts if concept.area} - {""}
    if without := sorted(labels - codes.keys()):
        raise DatasetVersionError(
            f"the labels {quoted(without)} have no code, which a DICOM segment needs: write into "
            f'the labeling config what they are, such as <Label value="{without[0]}" '
            'code="SCT:10200004:Liver"/> (SNOMED CT), or export as nifti'
        )
    return codes


def _check_sources(version: ExportedVersion) -> None:
    from medsam3_model.errors import ImageError

    for item in version.items:
        task = item.task
        if not any(concept.area for concept in task.concepts):
            continue
        stack = version.stacks.get(task.task_id)
        try:
            kind = stack.geometry().kind if stack else None
        except ImageError as error:
            raise DatasetVersionError(f"task {task.task_id}: {error}") from error
        if kind != "dicom":
            made_of = "an image" if kind is None else f"a {kind} file"
            instead = "nifti" if kind == "nifti" else "coco or masks"
            raise DatasetVersionError(
                f"task {task.task_id} was made of {made_of}, and a DICOM segmentation refers to a "
                f"DICOM series: import the series with medsam3 import, or export as {instead}"
            )


def _headers(
    source: Path,
    geometry: StackGeometry,
    sha256: str,
    limits: ImageLimits,
    slices: Sequence[ExportPage],
) -> list[Dataset]:
    """The headers of the slices, which one segmentation can refer to."""
    from medsam3_model.errors import ImageError
    from medsam3_model.images.instances import instance_headers

    task_id = slices[0].item.task.task_id
    try:
        headers = instance_headers(source, geometry, sha256, limits)
    except ImageError as error:
        raise DatasetVersionError(
            f"the series of task {task_id} is no longer where it was imported from: {error}; put "
            "it back, or export as nifti"
        ) from error
    several = {int(header.get("NumberOfFrames") or 1) for header in headers} != {1}
    if len(headers) > 1 and not geometry.frame_of_reference_uid:
        reason = "names no frame of reference, so nothing says that its slices are one volume"
    elif several and len({header.SOPInstanceUID for header in headers}) > 1:
        reason = "is in several multi-frame objects, and one segmentation refers to one of them"
    elif several and "PerFrameFunctionalGroupsSequence" not in headers[0]:
        reason = "is a multi-frame object of the old kind, which does not say where its frames are"
    else:
        return headers
    raise DatasetVersionError(f"the series of task {task_id} {reason}: export as nifti or masks")


def _segments(
    geometry: StackGeometry,
    headers: Sequence[Dataset],
    slices: Sequence[ExportPage],
    labels: Sequence[str],
    masks: MaskStore,
) -> Any:
    """Bool (frame, row, column, segment): frames of a multi-frame object in its own order."""
    from medsam3_model.images.geometry import masks_to_source

    frames = int(headers[0].get("NumberOfFrames") or 1)
    places = [instance.frame - 1 for instance in geometry.sop_instances]
    if frames == 1:
        frames, places = len(headers), list(range(len(headers)))
    segments = np.zeros((frames, *geometry.shape[1:], len(labels)), np.bool_)
    for number, label in enumerate(labels):
        segments[places, :, :, number] = masks_to_source(
            geometry, drawn_masks(slices, label, masks)
        )
    return segments


def _written(
    headers: Sequence[Dataset],
    geometry: StackGeometry,
    segments: Any,
    slices: Sequence[ExportPage],
    codes: Mapping[str, SegmentCode],
) -> bytes:
    """The object as a file."""
    import highdicom
    from highdicom.seg import Segmentation
    from pydicom.uid import generate_uid

    task = slices[0].item.task
    used = [headers[0]] if int(headers[0].get("NumberOfFrames") or 1) > 1 else list(headers)
    for header in used:
        for name in _MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, "")
    # Whatever is in them decides the UIDs, so that different objects never share one.
    content = [task.content_hash, slices[0].stem, repr(codes), highdicom.__version__]
    content += [str(header.SOPInstanceUID) for header in used]
    uids = {
        name: generate_uid(entropy_srcs=[name, *content])
        for name in ("series", "instance", "dimension")
    }
    measures = None
    if geometry.spacing is not None:
        between, rows, columns = geometry.spacing
        for header in used:
            # highdicom wants it, though many series leave it empty or out.
            header.SliceThickness = header.get("SliceThickness") or between
        measures = highdicom.PixelMeasuresSequence((rows, columns), used[0].SliceThickness, between)
    at = task.updated_at.astimezone(UTC) if task.updated_at.tzinfo else task.updated_at
    date, time = at.date(), at.time().replace(microsecond=0)
    try:
        dataset = Segmentation(
            used,
            segments,
            "BINARY",
            [
                _description(number, label, code, task.model_version)
                for number, (label, code) in enumerate(codes.items(), start=1)
            ],
            series_instance_uid=uids["series"],
            series_number=1,
            sop_instance_uid=uids["instance"],
            instance_number=1,
            manufacturer=_SOFTWARE,
            manufacturer_model_name=_SOFTWARE,
            software_versions=f"highdicom {highdicom.__version__}",
            device_serial_number="0",
            content_label="SEGMENTATION",
            pixel_measures=measures,
            series_description=f"Segmentation of task {task.task_id}",
            content_date=date,
            content_time=time,
            # Labels are in any script.
            specific_character_set="ISO_IR 192",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What it says may hold values of the header, and those are the patient's.
        raise DatasetVersionError(
            f"the series of task {task.task_id} lacks what a segmentation needs to refer to it "
            f"({getattr(error, 'name', None) or type(error).__name__}): export as nifti"
        ) from None
    dataset.InstanceCreationDate = dataset.ContentDate
    dataset.InstanceCreationTime = dataset.ContentTime
    # The last one is highdicom itself, at the time of the export.
    equipment: Any = dataset.ContributingEquipmentSequence[-1]
    equipment.ContributionDateTime = f"{at:%Y%m%d%H%M%S}"
    for sequence in (dataset.DimensionOrganizationSequence, dataset.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = uids["dimension"]
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _description(number: int, label: str, code: SegmentCode, model_version: str | None) -> Any:
    import highdicom
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    category = code.category
    if category is None:
        lesion = code.type.value in {
            known.value
            for known in codes.cid7159.concepts.values()
            if known.scheme_designator == code.type.scheme
        }
        kind = (
            codes.SCT.MorphologicallyAbnormalStructure if lesion else codes.SCT.AnatomicalStructure
        )
        category = LabelCode("SCT", kind.value, kind.meaning)
    algorithm = None
    if model_version:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=_SOFTWARE[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=model_version[:64],
        )
    return SegmentDescription(
        number,
        label[:64],
        _concept(category, label),
        _concept(code.type, label),
        # An annotator has corrected or accepted it, or has drawn it without the model.
        "SEMIAUTOMATIC" if model_version else "MANUAL",
        algorithm,
    )


def _concept(code: LabelCode, label: str) -> Any:
    """The code with its meaning: the config's, else the shortest that DICOM has, else the label."""
    from highdicom.sr import CodedConcept

    meaning = code.meaning or _meanings(code.scheme).get(code.value) or label
    return CodedConcept(code.value, code.scheme, meaning[:64])


@cache
def _meanings(scheme: str) -> Mapping[str, str]:
    from pydicom.sr.codedict import codes

    if scheme not in codes.schemes():
        return {}
    concepts = getattr(codes, scheme).concepts.values()
    # The shortest is the last: "Liver", not "Liver structure (body structure)".
    longest_first = sorted(concepts, key=lambda concept: -len(concept.meaning))
    return {concept.value: concept.meaning for concept in longest_first}
