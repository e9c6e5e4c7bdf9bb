"""Everything that `medsam3_model` raises on purpose.

MedSAM3Error
├── CheckpointError       a weights file is not what it should be
│   └── AdapterError      a LoRA file that does not fit its base
├── ImageError            an image cannot be read
│   └── ImageTooLargeError
├── PromptError           a prompt cannot be answered by this model
├── ModelMemoryError      memory ran out even for one image; the model stays usable
└── DatasetError          a folder of images and masks is not as documented
"""


class MedSAM3Error(Exception):
    """Root of the model's errors; the message says what happened and what to do next."""


class CheckpointError(MedSAM3Error):
    """A weights file is missing, damaged, unsafe or of another model."""


class AdapterError(CheckpointError):
    """A LoRA adapter does not fit the base checkpoint."""


class ImageError(MedSAM3Error):
    """An image cannot be read: damaged, of an unknown format, or without the asked page."""


class ImageTooLargeError(ImageError):
    """An image's header announces more pixels or bytes than the limits allow."""


class PromptError(MedSAM3Error):
    """A prompt is malformed, or of a kind that the loaded model cannot answer."""


class ModelMemoryError(MedSAM3Error):
    """Memory ran out even for a single image; the model itself stays usable."""


class DatasetError(MedSAM3Error):
    """A folder of images and masks does not follow the documented layout."""
