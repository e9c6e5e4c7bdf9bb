"""Rows of agents' runs, one with its pictures kept and one that failed: for what shows them."""

import hashlib
import io
from typing import Any

from PIL import Image

from backend.services import Services
from backend.tables import AgentPicture, AgentRun, LabelConfigText, SuggestionState, now


def _jpeg() -> bytes:
    kept = io.BytesIO()
    Image.new("L", (64, 48), 90).save(kept, "JPEG")
    return kept.getvalue()


RUN, FAILED = "a" * 32, "b" * 32
# What a language model could write to do harm, in a page and in a terminal.
SAID = "choose <script>alert(1)</script>\x1b[31m"
PICTURE = _jpeg()
SENT, NOT_KEPT = hashlib.sha256(PICTURE).hexdigest(), "c" * 64


def add_agent_runs(services: Services, project_id: int = 7) -> None:
    """A run on task 11 that changed its prediction, and one on task 12 whose server was gone."""
    exchange = {
        "question": 0,
        "action": {"name": "Choose", "masks": [2]},
        "text": "Label: Tumor",
        "pictures": [SENT, NOT_KEPT],
        "answer": SAID,
        "error": "",
        "requests": 1,
        "prompt_tokens": 900,
        "completion_tokens": 30,
        "seconds": 1.5,
    }
    outcome = {
        "label": "Tumor",
        "page": None,
        "ending": "chosen",
        "reason": "the language model chose mask 2\x1b[2J",
        "by_agent": True,
        "rounds": 1,
        "log": ["choose: mask 2"],
        "masks": [],
    }
    with services.database.session() as session:
        session.merge(LabelConfigText(hash="agent", xml="<View/>"))
        session.flush()
        session.add(
            _run(
                project_id,
                id=RUN,
                task_id=11,
                instruction="the larger one",
                prediction_id=RUN,
                exchanges=[exchange],
                outcomes=[outcome],
                requests=1,
                prompt_tokens=900,
                completion_tokens=30,
                seconds=1.5,
                cost=0.0012,
            )
        )
        session.add(AgentPicture(run_id=RUN, sha256=SENT, jpeg=PICTURE))
        session.add(
            _run(
                project_id,
                id=FAILED,
                task_id=12,
                state=SuggestionState.FAILED,
                error="the server cannot be reached",
            )
        )


def _run(project_id: int, **fields: Any) -> AgentRun:
    return AgentRun(
        **{
            "suggestion_id": fields["id"],
            "project_id": project_id,
            "config_hash": "agent",
            "model_version": "tiny-1",
            "questions": [],
            "state": SuggestionState.DONE,
            "finished_at": now(),
            **fields,
        }
    )
