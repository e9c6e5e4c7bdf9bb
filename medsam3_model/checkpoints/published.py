"""Published checkpoints that load as they are, by name: what to fetch, and what it can answer.

Nothing heavy is imported here, so that a command may list them without torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint on the Hugging Face hub.

    Attributes:
        name: as its authors call it.
        repository: its hub id.
        file: the one file to fetch; None: whatever weights the repository has, safetensors first.
        adapter_to: hub id of the checkpoint that it is an adapter to; None for a whole model.
        answers: the prompts that it takes.
    """

    name: str
    repository: str
    file: str | None
    adapter_to: str | None
    answers: str


SAM3 = PublishedCheckpoint(
    "SAM 3", "facebook/sam3", None, None, "text, exemplar boxes, clicks, strokes"
)
SAM31 = PublishedCheckpoint(
    "SAM 3.1",
    "facebook/sam3.1",
    "sam3.1_multiplex.pt",
    None,
    "text, exemplar boxes, clicks, strokes; its video tracker is left out",
)
MEDSAM3_V1 = PublishedCheckpoint(
    "MedSAM3-v1",
    "lal-Joey/MedSAM3_v1",
    "best_lora_weights.pt",
    "facebook/sam3",
    "medical text; clicks run on the adapted encoder",
)
MEDICAL_SAM3 = PublishedCheckpoint(
    "Medical-SAM3",
    "Chongcong/Medical-SAM3",
    "checkpoint_2D.pt",
    None,
    "medical text, exemplar boxes",
)
PUBLISHED = (SAM3, SAM31, MEDSAM3_V1, MEDICAL_SAM3)


def by_repository(repository: str) -> PublishedCheckpoint | None:
    """The checkpoint of a hub id, however its letters are written."""
    same = (one for one in PUBLISHED if one.repository.lower() == repository.lower())
    return next(same, None)


def is_medical_sam3(weights: Path) -> bool:
    """Whether a weights file is Medical-SAM3's: its tensors are named as SAM 3's, so by its path.

    Its name or a folder's begins with "medical-sam3" in some spelling, or it is in the hub's cache
    of that repository, or has the distinctive name that it is published under.
    """
    folder = weights.parent
    # In the hub's cache a snapshot is in models--owner--name/snapshots/<commit>/.
    named = (
        folder.parent.parent.name.rsplit("--", 1)[-1] if folder.parent.name == "snapshots" else ""
    )
    names = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (weights.stem, folder.name, named))
    published = weights.name in ("checkpoint_2D.pt", "checkpoint_3D.pt")
    return published or any(name.startswith("medicalsam3") for name in names)
