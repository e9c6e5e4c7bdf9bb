"""Everything that `backend` raises on purpose.

BackendError
├── LabelConfigError          the labeling config cannot be served
├── RegionError               a region is not one that Label Studio would show
│   └── RleError              a brush RLE is damaged or lies about its size
├── LabelStudioError          Label Studio answered with an error
│   ├── LabelStudioAuthError          the token is missing, wrong or expired
│   └── LabelStudioUnavailableError   it cannot be reached, or timed out
├── ImageSourceError          an image of a task cannot be fetched
├── SettingsError             a setting is missing or contradicts another
└── QueueError                Redis cannot be reached
"""


class BackendError(Exception):
    """Root of the backend's errors; the message says what happened and what to do next."""


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


class SettingsError(BackendError):
    """A setting is missing or contradicts another."""


class QueueError(BackendError):
    """The job queue cannot be reached."""
