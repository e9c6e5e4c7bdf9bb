"""What is exported is read back: every label by its name, every picture, in every format."""

import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.datasets import ExportedVersion, VersionItem
from backend.corrections.export import FOR_EVALUATION, ExportFormat
from backend.corrections.export.export import export
from backend.corrections.export.pages import folder_name, folder_names
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import (
    CorrectedConcept,
    CorrectedInstance,
    CorrectedTask,
    PageImage,
)
from backend.errors import DatasetVersionError
from medsam3_model.data.datasets import load_dataset, load_images
from medsam3_model.errors import DatasetError
from medsam3_model.evaluation.evaluation import parse_prompts
from tests.support.exports import FIGURES, H, W, exported, png, sha256

# What `medsam3 evaluate` reads, exactly.
FORMATS = sorted(FOR_EVALUATION)
LABELS = {
    "plain": ["Tumor"],
    "a colon": ["BI-RADS: 4"],
    "percent signs": ["BI-RADS%3A 4", "100 %", "%"],
    "slashes": ["left/right", "a\\b", "/", "../up", "//"],
    "dots": [".hidden", "..", ".", "end.", "v1.2.png", "x.nii.gz"],
    "wildcards and pipes": ['<a> "b" | c? *', "$HOME", "~", "a;b&c=d", "Tumor=malignant"],
    "an emoji": ["🫀", "👩‍⚕️ seen"],
    "combining characters": ["Läsion", "La\u0308sion"],
    "other scripts": ["腫瘍", "опухоль", "ورم", "ﬁne", "fine"],
    "spaces": ["Tumor ", " Tumor", "Tumor", "  "],
    "reserved names": ["CON", "nul", "aux.txt", "COM1", "lpt9.x", "console"],
    "300 characters": ["x" * 300, "x" * 299 + "y", "ü" * 300],
    "case alone": ["Tumor", "tumor", "TUMOR", "ß", "SS"],
    "words of the layout": ["images", "masks", "annotations", "folders", "negatives", "Thumbs.db"],
    "underscores": ["left_lung", "left lung"],
    "control characters": ["two\nlines", "tab\there", "\x7f", "a\rb", "\u2028"],
    "numbers": ["4", "1e5", "true", "null"],
}


def spot(number: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[number % H, : 3 + number % 5] = True
    mask[-1 - number % 3, -4:] = True
    return mask


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", LABELS)
def test_every_label_comes_back_by_its_name(
    tmp_path: Path, format_: ExportFormat, kind: str
) -> None:
    labels = LABELS[kind]
    # A mask of its own for each label; a task with all of them, one with the first, one with none.
    all_of_them = {label: spot(number) for number, label in enumerate(labels)}
    drawn = [[all_of_them], [{labels[0]: spot(9)}], [{}]]
    dataset = exported(tmp_path, format_, drawn).check(labels)
    assert {sample.name for sample in dataset} == {f"task-{n:08d}" for n in (1, 2, 3)}
    groups = {sample.name: sample.group for sample in dataset}
    assert groups == {f"task-{n:08d}": f"patient {n // 2}" for n in (1, 2, 3)}


@pytest.mark.parametrize("kind", LABELS)
def test_every_label_goes_back_to_label_studio(tmp_path: Path, kind: str) -> None:
    labels = LABELS[kind]
    drawn = [[{label: spot(number) for number, label in enumerate(labels)}]]
    folder = exported(tmp_path, ExportFormat.MASKS, drawn).folder
    config = ElementTree.parse(folder / "label_config.xml")  # noqa: S314 ours
    assert sorted(tag.get("value") for tag in config.iter("Label")) == sorted(labels)
    (task,) = json.loads((folder / "label_studio.json").read_text())
    found = [region["value"]["brushlabels"] for region in task["annotations"][0]["result"]]
    assert sorted(found) == sorted([label] for label in labels)


@pytest.mark.parametrize("format_", FORMATS)
def test_pictures_of_an_export_count_false_alarms(tmp_path: Path, format_: ExportFormat) -> None:
    written = exported(tmp_path, format_, [[{"Tumor": spot(1)}], [{}]])
    images = load_images(written.folder)
    assert [(one.name, one.negative, one.truth) for one in images] == [
        ("task-00000001", True, {}),
        ("task-00000002", True, {}),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tumor=malignant", {"Tumor=malignant": "Tumor=malignant"}),
        ("Tumor=malignant=dark mass", {"Tumor=malignant": "dark mass"}),
        ("Tumor=dark mass", {"Tumor": "dark mass"}),
        ("BI-RADS: 4", {"BI-RADS: 4": "BI-RADS: 4"}),
        ("BI-RADS: 4 = dark mass", {"BI-RADS: 4": "dark mass"}),
        (" Tumor ", {" Tumor ": " Tumor "}),
    ],
)
def test_labels_with_signs_are_asked_for_by_name(
    tmp_path: Path, text: str, expected: dict[str, str]
) -> None:
    labels = ["Tumor", "Tumor=malignant", "BI-RADS: 4", " Tumor "]
    drawn = [[{label: spot(number) for number, label in enumerate(labels)}]]
    dataset = exported(tmp_path, ExportFormat.COCO, drawn).check(labels)
    assert parse_prompts([text], dataset) == expected


@pytest.mark.parametrize("format_", FORMATS)
def test_pages_come_back_one_by_one(tmp_path: Path, format_: ExportFormat) -> None:
    drawn = [[{"Tumor": spot(1)}, {}, {"Tumor": spot(2), "Cyst": spot(3)}], [{"Cyst": spot(4)}]]
    dataset = exported(tmp_path, format_, drawn).check(["Tumor", "Cyst"])
    assert len(dataset) == 4


def saved(format_: str, mode: str = "L", **options: Any) -> bytes:
    buffer = io.BytesIO()
    grey = np.arange(H * W, dtype=np.uint8).reshape(H, W)
    pixels = grey.astype(np.uint16) * 200 if mode == "I;16" else grey
    image = Image.fromarray(pixels)
    (image if mode in ("L", "I;16") else image.convert(mode)).save(buffer, format_, **options)
    return buffer.getvalue()


def volume(kind: type = nibabel.Nifti1Image) -> bytes:
    values = np.arange(W * H * 3, dtype=np.int16).reshape(W, H, 3)
    content: bytes = kind(values, np.eye(4)).to_bytes()
    return content


def dicom() -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    file.Rows, file.Columns = H, W
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.PixelData = np.arange(H * W, dtype=np.uint8).tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


IMAGES = {
    "PNG": (lambda: saved("PNG"), ".png"),
    "PNG of 16 bits": (lambda: saved("PNG", "I;16"), ".png"),
    "JPEG": (lambda: saved("JPEG"), ".jpg"),
    "TIFF": (lambda: saved("TIFF"), ".tif"),
    "WebP": (lambda: saved("WEBP", "RGB"), ".webp"),
    "BMP": (lambda: saved("BMP"), ".bmp"),
    "GIF": (lambda: saved("GIF"), ".gif"),
    "AVIF": (lambda: saved("AVIF", "RGB"), ".avif"),
    "JPEG 2000": (lambda: saved("JPEG2000"), ".jp2"),
    "JPEG 2000 without a box": (lambda: saved("JPEG2000", no_jp2=True), ".j2k"),
    "PGM": (lambda: saved("PPM"), ".ppm"),
    "PPM": (lambda: saved("PPM", "RGB"), ".ppm"),
    "PBM": (lambda: saved("PPM", "1"), ".ppm"),
    "DICOM": (dicom, ".dcm"),
    "NIfTI": (volume, ".nii"),
    "NIfTI 2": (lambda: volume(nibabel.Nifti2Image), ".nii"),
    "NIfTI, packed": (lambda: gzip.compress(volume()), ".nii.gz"),
}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", IMAGES)
def test_every_picture_comes_back(tmp_path: Path, format_: ExportFormat, kind: str) -> None:
    make, suffix = IMAGES[kind]
    written = exported(
        tmp_path,
        format_,
        [[{"Tumor": spot(1)}], [{}]],
        make(),
        reference="/data/local-files/?d=set/8e26f0a1-scan",
    )
    for sample in written.check(["Tumor"]):
        assert sample.image().shape == (H, W, 3)
        assert sample.image_path.name == sample.name + suffix


ADDRESSES = [
    "/data/local-files/?d=dir/x",
    "data:image/png;base64,iVBORw0KGgo=",
    "https://pacs.example.org/wado?id=1.2.840.5",
    "https://pacs.example.org/picture.php?id=7",
    "/data/upload/1/8e26f0a1-scan",
    "/data/upload/1/8e26f0a1-scan.2026",
    "/data/upload/1/x.jpg",
    "s3://bucket/x.DCM",
    "x.PNG?X-Amz-Signature=1",
]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("reference", ADDRESSES)
def test_the_suffix_comes_from_the_content(
    tmp_path: Path, format_: ExportFormat, reference: str
) -> None:
    written = exported(tmp_path, format_, [[{"Tumor": spot(1)}]], reference=reference)
    (sample,) = written.check(["Tumor"])
    assert sample.image_path.suffix == ".png"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("content", [b"<svg/>", b"\x1f\x8b", b" ", b"P6", b"\0\0\0\x18ftypheic"])
def test_what_nobody_reads_is_not_exported(
    tmp_path: Path, format_: ExportFormat, content: bytes
) -> None:
    with pytest.raises(DatasetVersionError, match="task 1 is in no format that can be read"):
        exported(tmp_path, format_, [[{"Tumor": spot(1)}]], content)


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_without_images_says_so_when_it_is_read(
    tmp_path: Path, format_: ExportFormat
) -> None:
    written = exported(tmp_path, format_, [[{"Tumor": spot(1)}]], read_image=None)
    with pytest.raises(DatasetError, match="images"):
        load_dataset(written.folder)


def test_folders_differ_on_every_file_system() -> None:
    labels = [label for kind in LABELS.values() for label in kind]
    folders = folder_names(labels)
    assert folders.keys() == set(labels)
    assert len({name.casefold() for name in folders.values()}) == len(folders)
    for name in folders.values():
        assert len(name.encode()) <= 110
        assert not set(name) & set('/\\:*?"<>|\n\r\t')
        assert not name.endswith((".", " "))
        assert not name.startswith(".")
    assert folder_name("BI-RADS: 4") == folders["BI-RADS: 4"] == "BI-RADS%3A 4"
    assert folder_name("CON") == "%43ON"
    assert folder_names(["Tumor", "Cyst"]) == {"Tumor": "Tumor", "Cyst": "Cyst"}


def test_boxes_beside_outlines_are_no_part_of_the_mask(tmp_path: Path) -> None:
    outline, box = spot(1), np.ones((H, W), bool)
    for format_ in FORMATS:
        root = tmp_path / format_
        store = MaskStore(str(root / "store"))
        names = store.put_all([CroppedMask.of(outline), CroppedMask.of(box)])
        task = CorrectedTask(
            "r", 1, 7, 1, 1, datetime(2026, 1, 1, tzinfo=UTC), "c", False, None, None, "g",
            (PageImage("x.png", sha256(png()), W, H),),
            (CorrectedConcept(0, "Tumor", H, W, 1, names[0]),),
            (
                CorrectedInstance(0, "Tumor", "a", "brushlabels", 1, names[0]),
                CorrectedInstance(0, "Tumor", "b", "rectanglelabels", 1, names[1]),
            ),
        )  # fmt: skip
        version = ExportedVersion(7, "spring", "d", 0, (VersionItem(task, "val"),))
        export(
            version, store, root / "out", format_, statistics=FIGURES, read_image=lambda page: png()
        )
        found = load_dataset(root / "out").samples[0].read("Tumor")
        assert found is not None
        assert np.array_equal(found.mask, outline)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"folders": {"a": 1}}', '{"folders": []}', '{"names": {}}']
)
def test_damaged_names_of_concepts_are_refused(tmp_path: Path, content: str) -> None:
    written = exported(tmp_path, ExportFormat.MASKS, [[{"Tumor": spot(1)}]])
    (written.folder / "concepts.json").write_text(content)
    with pytest.raises(DatasetError, match=r"concepts\.json cannot be read"):
        load_dataset(written.folder)


METADATA = {
    "no JSON": ("{", "cannot be read"),
    "a list": ("[1]", "needs file_name"),
    "no concept": ({"concept": None}, "needs file_name"),
    "a mask elsewhere": ({"mask_file_name": "../../x.png"}, "not in"),
    "a mask that is gone": ({"mask_file_name": "masks/x.png"}, "not in"),
    "an image that is gone": ({"file_name": "images/y.png"}, "names no image"),
}


@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata_are_refused(tmp_path: Path, name: str) -> None:
    changed, words = METADATA[name]
    written = exported(tmp_path, ExportFormat.HF_DATASET, [[{"Tumor": spot(1)}]])
    (path,) = written.folder.glob("*/metadata.jsonl")
    row = json.loads(path.read_text())
    path.write_text(changed if isinstance(changed, str) else json.dumps(row | changed))
    with pytest.raises(DatasetError, match=words):
        load_dataset(written.folder)


def test_volumes_of_other_tools_are_refused(tmp_path: Path) -> None:
    written = exported(tmp_path, ExportFormat.NIFTI, [[{"Tumor": spot(1)}]])
    (path,) = written.folder.glob("masks/*/*.nii.gz")
    path.write_bytes(gzip.compress(volume()))
    with pytest.raises(DatasetError, match="in the patient's space"):
        load_dataset(written.folder).samples[0].read("Tumor")
    path.write_bytes(b"\x1f\x8bdamaged")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset(written.folder).samples[0].read("Tumor")
