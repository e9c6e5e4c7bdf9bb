"""Everything that `backend` raises on purpose, in one tree.

BackendError
├── LabelConfigError          the labeling config cannot be served
├── RegionError               a region is not one that Label Studio would show
│   └── RleError              a brush RLE is damaged or lies about its size
├── LabelStudioError          Label Studio answered with an error
│   ├── LabelStudioAuthError          the token is missing, wrong or expired
│   └── LabelStudioUnavailableError   it cannot be reached, or timed out
├── ImageSourceError          an image of a task cannot be fetched
│   └── ImageUnavailableError         its host does not answer now
├── VolumeError               a volume or video cannot become a task, or be measured
├── SettingsError             a setting is missing or contradicts another
├── PeopleError               a token cannot be made or revoked
├── QueueError                Redis cannot be reached
├── StorageUnavailableError   the object store of masks and detectors cannot be reached
├── CorrectionsError          the corrections cannot be read or written
│   ├── MaskError             a mask file is missing or damaged
│   ├── QuarantineError       one annotation cannot be used; the others go on
│   └── DatasetVersionError   a dataset version cannot be made or read
├── PropagationError          the rest of a stack cannot be drawn
├── ModelVersionError         a version is not there, or may not serve
├── AgentError                the agent cannot go on; the prediction without it stands
│   ├── AgentConsentError     the settings do not allow that anything is sent
│   ├── AgentServerError      the language model's server gave no usable answer
│   └── AgentCallError        the language model's call cannot be understood
├── AgentInterruptedError     the agent's worker was told to stop; the run goes on later
└── TrainingError             a training run cannot start or go on
    ├── CancelledError        somebody cancelled the run
    └── StoppedError          the trainer was told to stop; the run goes on later
"""

from enum import StrEnum


class BackendError(Exception):
    """Root of the backend's errors; the message says what happened and what to do next."""


class PeopleError(BackendError):
    """A token cannot be made or revoked; the message says why."""


class LabelConfigError(BackendError):
    """The labeling config cannot be served; the message says what to change in it."""


class RegionError(BackendError):
    """A region is not one that Label Studio's editor would show."""


class RleError(RegionError):
    """A brush RLE is damaged, or its header does not fit the image."""


class LabelStudioError(BackendError):
    """Label Studio answered a request with an error."""

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


class LabelStudioAuthError(LabelStudioError):
    """Label Studio refused the token."""


class LabelStudioUnavailableError(LabelStudioError):
    """Label Studio cannot be reached or did not answer in time; trying again later helps."""


class ImageSourceError(BackendError):
    """An image of a task cannot be fetched; the message names what to change."""


class ImageUnavailableError(ImageSourceError):
    """The host of an image does not answer, or is busy; trying again later helps.

    Attributes:
        PATIENCE_S: how long work that waits for an image is tried again: its host may be gone for
            good, or may never have been there.
    """

    PATIENCE_S = 3600.0


class VolumeError(BackendError):
    """A volume cannot become a task, or a task be measured; the message says what to change."""


class PropagationError(BackendError):
    """The rest of a stack cannot be drawn; the message says what to change."""


class SettingsError(BackendError):
    """A setting is missing or contradicts another."""


class QueueError(BackendError):
    """The job queue cannot be reached."""


class StorageUnavailableError(BackendError):
    """The object store cannot be reached, or refuses; trying again later helps."""


class CorrectionsError(BackendError):
    """Root of the corrections' errors."""


class MaskError(CorrectionsError):
    """A mask file is missing or damaged."""


class Trouble(StrEnum):
    """Why an annotation is quarantined, and so what can heal it."""

    CONTENT = "content"  # a new version of the annotation
    IMAGE = "image"  # the image coming back, or a new version
    CONFIG = "config"  # the labeling config taking its labels back, or a new version
    UNFORESEEN = "unforeseen"  # trying again, perhaps; the worker's log tells more


class QuarantineError(CorrectionsError):
    """One annotation cannot be used; `trouble` says what would heal it."""

    def __init__(self, trouble: Trouble, reason: str) -> None:
        super().__init__(reason)
        self.trouble = trouble


class DatasetVersionError(CorrectionsError):
    """A dataset version cannot be made or read; the message says why."""


class ModelVersionError(BackendError):
    """A version or its weights are not there, or it may not serve; the message says what to do."""


class AgentError(BackendError):
    """The agent cannot go on; what the model predicted without it stands."""


class AgentConsentError(AgentError):
    """The settings do not allow that an image is sent to a language model."""


class AgentServerError(AgentError):
    """The server of the language model gave no usable answer in time."""

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


class AgentCallError(AgentError):
    """A language model's call cannot be understood; the sentence tells it why."""


class AgentInterruptedError(BackendError):
    """The agent's worker was told to stop, or lost the run to another one; it goes on there."""


class TrainingError(BackendError):
    """A run cannot be started or cannot go on; the message says why and what to do."""


class CancelledError(TrainingError):
    """The run was cancelled while it was at work."""


class StoppedError(TrainingError):
    """The trainer was told to stop; its state is kept, and the run goes on later."""


def unforeseen(error: Exception) -> str:
    """What is stored and shown of an error that nobody foresaw.

    Its text may hold anything, so only its type leaves the worker.
    """
    return f"unexpected {type(error).__name__}; the worker's log has the traceback"
