"""Promotion: puts a version into service for a project, and takes it back.

The row of the project says which version is in service; workers read it for every prediction, so
the next one after the transaction carries the new version. A job tells Label Studio afterwards
(`backend.training.roll_out`), as often as it takes.
"""

import logging

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import ModelVersionError, QueueError
from backend.models import versions
from backend.models.detectors import DetectorStore
from backend.people import audit
from backend.processes.queues import Handler, QueueName, enqueue
from backend.services import Services
from backend.tables import GateVerdict, ModelVersion, Project, Promotion, PromotionKind

log = logging.getLogger(__name__)


def promote(
    services: Services,
    project_id: int,
    version: str,
    *,
    kind: PromotionKind = PromotionKind.MANUAL,
    force: bool = False,
) -> Promotion:
    """Put a version into service for a project.

    Args:
        services: database and Redis.
        project_id: the project.
        version: a registered version, of this project or of none.
        kind: how it came to this.
        force: also a version that did not pass the gate; the promotion then says so.

    Raises:
        ModelVersionError: the version is not there, another project's, or did not pass.
    """
    with services.database.session() as session:
        row = session.scalar(select(ModelVersion).where(ModelVersion.version == version))
        default = versions.default_version(services)
        if row is None and version != default:
            raise ModelVersionError(f"There is no version {version}: `medsam3 models list`.")
        if row is not None and row.project_id not in (None, project_id):
            raise ModelVersionError(
                f"Version {version} was trained for project {row.project_id}, not for {project_id}."
            )
        if row is not None and row.detector:
            DetectorStore(services.settings).path(row.detector)
            if kind == PromotionKind.MANUAL and not has_passed(session, row):
                if not force:
                    raise ModelVersionError(
                        f"Version {version} did not pass the gate (`medsam3 models show "
                        f"{version}`): promote it with --force if you know better; that is noted."
                    )
                kind = PromotionKind.FORCED
        made = _put_into_service(
            session, services, project_id, version, kind, row.run_id if row else None
        )
    enqueue_roll_out(services, made.id)
    return made


def rollback(services: Services, project_id: int) -> Promotion:
    """Put the version into service that was there before the present one.

    Rolling back twice goes back two promotions, not to and fro.

    Raises:
        ModelVersionError: nothing was ever promoted, or all of it is rolled back.
    """
    with services.database.session() as session:
        last = last_standing(session, project_id)
        if last is None:
            raise ModelVersionError(
                f"Project {project_id} has no promotion that could be taken back."
            )
        made = _put_into_service(
            session, services, project_id, last.previous, PromotionKind.ROLLBACK, last.run_id
        )
    enqueue_roll_out(services, made.id)
    return made


def last_standing(session: Session, project_id: int) -> Promotion | None:
    """The promotion that a rollback would take back; None where all of them are, or none was."""
    history = session.scalars(
        select(Promotion).where(Promotion.project_id == project_id).order_by(Promotion.id)
    ).all()
    # A rollback takes the last standing promotion back, like a closing bracket.
    standing: list[Promotion] = []
    for row in history:
        if row.kind != PromotionKind.ROLLBACK:
            standing.append(row)
        elif standing:
            standing.pop()
    return standing[-1] if standing else None


def enqueue_roll_out(services: Services, promotion_id: int, attempt: int = 0) -> None:
    """Have an ingest worker tell Label Studio."""
    try:
        enqueue(
            services.redis,
            QueueName.INGEST,
            Handler.ROLL_OUT,
            [str(promotion_id)],
            job_id=f"roll-out-{promotion_id}-{attempt}",
        )
    except QueueError as error:
        log.warning("promotion %s: %s", promotion_id, error)


def _put_into_service(
    session: Session,
    services: Services,
    project_id: int,
    version: str,
    kind: PromotionKind,
    run_id: str | None,
) -> Promotion:
    project = session.get(Project, project_id, with_for_update=True)
    if project is None:
        project = Project(id=project_id)
        session.add(project)
    made = Promotion(
        project_id=project_id,
        version=version,
        previous=project.model_version or versions.default_version(services),
        kind=kind,
        run_id=run_id,
    )
    project.model_version = version
    session.add(made)
    session.flush()
    action = (
        audit.AuditedAction.ROLL_BACK
        if kind == PromotionKind.ROLLBACK
        else audit.AuditedAction.PROMOTE
    )
    audit.record(session, action, project_id=project_id, subject=version, detail=kind)
    return made


def verdict_of(session: Session, row: ModelVersion) -> GateVerdict | None:
    """What the gate said about a version; None where it was not asked."""
    return verdict_about(row, session.get(GateVerdict, row.run_id) if row.run_id else None)


def verdict_about(row: ModelVersion, verdict: GateVerdict | None) -> GateVerdict | None:
    """What the verdict on a version's run says about the version itself.

    A run may have made two: the one that was refused as it was trained, and the one half of the way
    to it, which the run's verdict is about.
    """
    if verdict is None or verdict.candidate == row.version:
        return verdict
    as_trained = verdict.figures.get("as_trained")
    if as_trained is None or as_trained["version"] != row.version:
        return None
    return GateVerdict(
        run_id=verdict.run_id,
        candidate=row.version,
        incumbent=verdict.incumbent,
        passed=False,
        reasons=as_trained["reasons"],
        figures=as_trained["figures"],
    )


def has_passed(session: Session, row: ModelVersion) -> bool:
    """Whether the gate let a version pass."""
    verdict = verdict_of(session, row)
    return verdict is not None and verdict.passed
