"""What a sync with Label Studio did, as it is stored and shown."""

from dataclasses import dataclass


@dataclass
class SyncReport:
    """What a sync looked at and repaired, in annotations unless said otherwise."""

    project_id: int
    changed_tasks: int = 0  # tasks with annotations that changed since the last time
    read: int = 0
    revisions: int = 0  # versions that the store did not have
    deleted: int = 0
    restored: int = 0  # known versions that the store held for deleted or quarantined
    quarantined: int = 0
    failed: int = 0  # left as they were, for the next sync
    labels_changed: int = 0  # judged again because the labeling config changed
    seconds: float = 0.0

    @property
    def repaired(self) -> int:
        """How many annotations the store had missed or held wrongly."""
        return (
            self.revisions + self.deleted + self.restored + self.quarantined + self.labels_changed
        )
