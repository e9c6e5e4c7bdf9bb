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


# Other programs train on these, so each image is a file that they read; `medsam3 evaluate` reads
# the others.
FOR_OTHER_TRAINERS = frozenset({ExportFormat.YOLO, ExportFormat.NNUNET})


class OverlapRule(StrEnum):
    """What becomes of a pixel with several labels, where a format keeps one."""

    REFUSE = "refuse"
    SMALLEST = "smallest"  # the label that has the fewest pixels in the image
