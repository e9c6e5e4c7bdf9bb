"""The pages *Models*: every version with the gate's figures, promotion and rollback.

Nothing goes into service by one click: a page names what will happen, and its button does it.
"""

from dataclasses import dataclass
from typing import Any

from flask import abort, flash, redirect, render_template, request, url_for
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from backend.errors import ModelVersionError
from backend.models import promotion
from backend.models.versions import default_version
from backend.tables import GateVerdict, ModelVersion, Project, Promotion
from backend.web.console.access import blueprint
from backend.web.requests import checked_id, services


@dataclass(frozen=True)
class VersionInService:
    """What serves a project, and what a rollback would bring back (None: it has none)."""

    project_id: int
    title: str | None
    version: str
    before: str | None


@dataclass(frozen=True)
class VersionRow:
    """A version as the list shows it; `passed` is None where the gate was not asked."""

    version: str
    row: ModelVersion
    passed: bool | None
    serves: list[int]


@blueprint.get("/models")
def models() -> str:
    """Every version, and which one serves which project."""
    with services().database.reading() as session:
        serving = versions_in_service(session)
        verdicts = {row.run_id: row for row in session.scalars(select(GateVerdict))}
        rows = session.scalars(select(ModelVersion).order_by(ModelVersion.id.desc())).all()
    listed = []
    for row in rows:
        verdict = promotion.verdict_about(row, verdicts.get(row.run_id or ""))
        passed = verdict.passed if verdict else None
        served = [one.project_id for one in serving if one.version == row.version]
        listed.append(VersionRow(row.version, row, passed, served))
    template = "_models.html" if "fragment" in request.args else "models.html"
    return render_template(f"console/{template}", versions=listed, serving=serving)


@blueprint.get("/models/<version>")
def model(version: str) -> str:
    """One version: what it was made from, the gate's figures, and where it may go into service."""
    with services().database.reading() as session:
        row = _version(session, version)
        verdict = promotion.verdict_of(session, row)
        served = session.scalars(
            select(Promotion).where(Promotion.version == version).order_by(Promotion.id.desc())
        ).all()
        serving = versions_in_service(session)
    possible = [one for one in serving if row.project_id in (None, one.project_id)]
    figures: dict[str, Any] = verdict.figures if verdict else {}
    return render_template(
        "console/model.html",
        row=row,
        card=row.card or {},
        verdict=verdict,
        concepts=figures.get("concepts") or [],
        foreign=figures.get("foreign_names"),
        served=served,
        possible=[one for one in possible if one.version != version],
    )


@blueprint.route("/models/<version>/promote/<int:project_id>", methods=["GET", "POST"])
def promote(version: str, project_id: int) -> AnyResponse | str:
    """Put a version into service, after a page that says what that means."""
    checked_id(project_id, "project")
    with services().database.reading() as session:
        row = _version(session, version)
        # Only what was trained here was to pass; a checkpoint that the setting names serves anyway.
        is_forced = bool(row.detector) and not promotion.has_passed(session, row)
        verdict = promotion.verdict_of(session, row)
        serving = _project(session, project_id)
    if request.method == "POST":
        force = request.form.get("force") == "yes"
        return _flashed(
            lambda: promotion.promote(services(), project_id, version, force=force),
            f"{version} serves project {project_id}.",
        )
    return render_template(
        "console/promote.html",
        version=version,
        serving=serving,
        is_forced=is_forced,
        reasons=verdict.reasons if verdict else ["The gate was not asked."],
    )


@blueprint.route("/models/rollback/<int:project_id>", methods=["GET", "POST"])
def roll_back(project_id: int) -> AnyResponse | str:
    """Return to the version before, after a page that says which one that is."""
    checked_id(project_id, "project")
    with services().database.reading() as session:
        serving = _project(session, project_id)
    if request.method == "POST":
        return _flashed(
            lambda: promotion.rollback(services(), project_id),
            f"{serving.before} serves project {project_id} again.",
        )
    return render_template("console/rollback.html", serving=serving)


def versions_in_service(session: Session) -> list[VersionInService]:
    """What serves each project, by id."""
    default = default_version(services())
    found = []
    for project in session.scalars(select(Project).order_by(Project.id)):
        last = promotion.last_standing(session, project.id)
        found.append(
            VersionInService(
                project.id,
                project.title,
                project.model_version or default,
                last.previous if last else None,
            )
        )
    return found


def _version(session: Session, version: str) -> ModelVersion:
    row = session.scalar(select(ModelVersion).where(ModelVersion.version == version))
    return row or abort(404, "There is no version of this name.")


def _project(session: Session, project_id: int) -> VersionInService:
    for served in versions_in_service(session):
        if served.project_id == project_id:
            return served
    abort(404, f"No project {project_id} is connected.")


def _flashed(act: Any, done: str) -> AnyResponse:
    try:
        act()
    except ModelVersionError as error:
        flash(str(error), "refused")
    else:
        flash(f"{done} Label Studio is told by a worker.")
    return redirect(url_for("console.models"))
