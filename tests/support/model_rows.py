"""Rows of a project with two versions, the newer one judged by the gate and not promoted."""

from backend.services import Services
from backend.tables import GateVerdict, ModelVersion, Project

PART = {"images": 6, "incumbent": 0.4, "candidate": 0.7, "difference": 0.3, "low": 0.1, "high": 0.5}
REASON = "“polyp” (T+I) loses 0.030 Dice, at most 0.020 is tolerated"


def add_versions(services: Services, *, detector: str | None = None) -> None:
    """Project 7, `tiny-base` for any project, `tiny-p7-new` for this one."""
    figures = {
        "overall": PART,
        "concepts": [{"concept": "polyp", "mode": mode, **PART} for mode in ("T", "T+I")],
    }
    with services.database.session() as session:
        session.add(Project(id=7, title="Polyps", model_version="tiny-base"))
        session.add(ModelVersion(version="tiny-base", checkpoint="tiny"))
        session.add(
            ModelVersion(
                version="tiny-p7-new",
                checkpoint="tiny",
                detector=detector,
                project_id=7,
                parent="tiny-base",
                run_id="run",
            )
        )
        session.add(
            GateVerdict(
                run_id="run",
                candidate="tiny-p7-new",
                incumbent="tiny-base",
                passed=False,
                reasons=[REASON],
                figures=figures,
            )
        )
