"""Everything that `medsam3_model` raises about files, prompts and machines, in one tree.

MedSAM3Error                    also: no such device, or another process ended a training run
├── CheckpointError             a weights file is not what it should be
│   └── AdapterError            a LoRA file does not fit its base
├── ImageError                  an image cannot be read
│   └── ImageTooLargeError      it has more pixels or bytes than the limits allow
├── PromptError                 a prompt cannot be answered by this model
├── ModelMemoryError            memory ran out even for one image; the model stays usable
├── EmbeddingStoreError         the shared store of embeddings does not answer
└── DatasetError                images and masks are not as documented, or are missing

A slip in the calling program (a share outside 0 to 1, lists of different lengths) is a ValueError.
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


class EmbeddingStoreError(MedSAM3Error):
    """The shared store of embeddings does not answer; answers do not depend on it."""


class DatasetError(MedSAM3Error):
    """Images and masks do not follow the documented layout, or there are none."""
