"""Dataset versions as files: one module for each format."""

from enum import StrEnum


class ExportFormat(StrEnum):
    """What can be written; docs/corrections.md lists the files of each."""

    COCO = "coco"
    MASKS = "masks"
    NIFTI = "nifti"
    HF_DATASET = "hf-dataset"
