"""Which tasks a pre-annotation is about: what the command and the console ask for."""

from dataclasses import dataclass

from backend.errors import BackendError
from backend.labeling.config import quoted


@dataclass(frozen=True)
class PreannotateOptions:
    """Which of the tasks without a prediction of the version in service to predict.

    Attributes:
        limit: the first so many, by id; None: all.
        unlabelled: only tasks without annotations.
        labels: only regions of these labels, by value; also for tasks whose prediction was made
            without them, and what it has of other labels stays. Empty: all labels.
        tab: only tasks that this tab of the Data Manager shows, by its id; None: of the project.
        sample: predict a few of them to look at, and push nothing; see `preview.request_sample`.

    Raises:
        BackendError: the limit is no number of tasks, or the tab no number of a tab.
    """

    limit: int | None = None
    unlabelled: bool = False
    labels: tuple[str, ...] = ()
    tab: int | None = None
    sample: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.limit is not None and self.limit < 1:
            raise BackendError("The limit is a number of tasks from 1; leave it out for all tasks.")
        if self.tab is not None and self.tab < 1:
            raise BackendError(
                "A tab is named by the number in its address, after `tab=`; leave it out for all "
                "tasks of the project."
            )
        object.__setattr__(self, "labels", tuple(dict.fromkeys(self.labels)))

    def __str__(self) -> str:
        which = "unlabelled tasks" if self.unlabelled else "tasks"
        which = f"all {which}" if self.limit is None else f"the first {self.limit} {which}"
        which = f"{which} of tab {self.tab}" if self.tab is not None else which
        which = f"{which}, only {quoted(self.labels)}" if self.labels else which
        return f"a sample of {which}" if self.sample else which


EVERYTHING = PreannotateOptions()
