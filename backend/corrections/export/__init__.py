"""Dataset versions as files: one module for each format."""

from enum import StrEnum


class ExportFormat(StrEnum):
    """What can be written; docs/corrections.md lists the files of each."""

    COCO = "coco"
    MASKS = "masks"
    NIFTI = "nifti"
    HF_DATASET = "hf-dataset"
    YOLO = "yolo"
    NNUNET = "nnunet"
    DICOM_SEG = "dicom-seg"
    COCO_VIDEO = "coco-video"


# Other programs train on these, so each image is a file that they read.
FOR_OTHER_TRAINERS = frozenset({ExportFormat.YOLO, ExportFormat.NNUNET})
# These refer to the images where they are, and hold none.
WITHOUT_IMAGES = frozenset({ExportFormat.DICOM_SEG})
# These have a task's pages as frames of a video.
OF_VIDEOS = frozenset({ExportFormat.COCO_VIDEO})
# `medsam3 evaluate` reads these.
FOR_EVALUATION = frozenset(ExportFormat) - FOR_OTHER_TRAINERS - WITHOUT_IMAGES - OF_VIDEOS


class OverlapRule(StrEnum):
    """What becomes of a pixel with several labels, where a format keeps one."""

    REFUSE = "refuse"
    SMALLEST = "smallest"  # the label that has the fewest pixels in the image
