"""The pages *Training*: when a project trains, its runs with their curves, starting and ending one.

What a project may choose is checked by `backend.training.policies`, as for the API.
"""

import re
from dataclasses import dataclass
from typing import Any, get_args

from flask import abort, flash, redirect, render_template, request, url_for
from flask_wtf import FlaskForm
from pydantic import ValidationError
from sqlalchemy import select
from werkzeug.wrappers import Response as AnyResponse
from wtforms import SelectField, StringField

from backend.errors import QueueError
from backend.settings import Consensus, Settings, Strategy
from backend.tables import GateVerdict, ModelVersion, TrainingPolicy
from backend.training import policies, runs
from backend.training.curves import CurvePoint, curve_of, thinned
from backend.training.policies import PolicyChoices
from backend.training.run_log import LogLine, log_of
from backend.training.tables import RunState, Stage, TrainingRun, Trigger
from backend.web.console.access import blueprint
from backend.web.console.plots import Plot, curve
from backend.web.console.shown import known_projects
from backend.web.requests import checked_id, checked_row_id, services

# Runs that the page lists, and rows of a curve's table; its plot has as many points as it is wide.
MOST_RUNS = 20
MOST_ROWS = 12
MOST_POINTS = 300
# What somebody writes who wants no schedule, where nothing stands for the setting's.
NO_SCHEDULE = "none"
STAGES = {
    Stage.DATASET: "collects corrections",
    Stage.TRAINING: "trains",
    Stage.GATE: "is judged by the gate",
    Stage.PROMOTION: "goes into service",
}
TRIGGERS = {
    Trigger.CORRECTIONS: "enough corrections",
    Trigger.SCHEDULE: "schedule",
    Trigger.BUTTON: "Label Studio’s button",
    Trigger.COMMAND: "command",
    Trigger.API: "API",
    Trigger.CONSOLE: "console",
    Trigger.SIMULATION: "simulation",
}
_SWITCH = {"yes": True, "no": False}


class PolicyForm(FlaskForm):  # type: ignore[misc]
    """A project's choices as texts; what may stand there is for `PolicyChoices` to say."""

    after_corrections = StringField("New corrections that start a run")
    schedule = StringField("Schedule")
    strategy = SelectField("Tasks that come first", validate_choice=False)
    consensus = SelectField("Several annotators’ masks of one image", validate_choice=False)
    auto_promote = SelectField("A version that passes the gate", validate_choice=False)
    agent = SelectField("A language model at uncertain tasks", validate_choice=False)
    adapter = SelectField("What learns", validate_choice=False)


@dataclass(frozen=True)
class RunShown:
    """A run as the pages show it.

    Attributes:
        row: with its progress.
        passed: what the gate said; None where it was not asked.
        asked_by: who started it, in words.
        state: where it stands, in words.
        why: why it ended, or what it waits for; empty where there is nothing to say.
    """

    row: TrainingRun
    passed: bool | None
    asked_by: str
    state: str
    why: str

    @property
    def is_under_way(self) -> bool:
        """Whether it can be cancelled."""
        return self.row.state in runs.UNDER_WAY


@dataclass(frozen=True)
class CurveShown:
    """A run's curve: plots, the rows of the table beside them, and why it is not known."""

    loss: Plot | None = None
    dice: Plot | None = None
    rows: tuple[CurvePoint, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class LogShown:
    """A run's log, newest line first, and why it is not known."""

    lines: tuple[LogLine, ...] = ()
    missing: str = ""


@blueprint.get("/training")
@blueprint.route("/training/<int:project_id>", methods=["GET", "POST"])
def training(project_id: int | None = None) -> AnyResponse | str | tuple[str, int]:
    """A project's runs, and its policy as a form: the named project's, else the first one's."""
    opened = services()
    with opened.database.reading() as session:
        known = known_projects(session)
        if project_id is None and known:
            project_id = known[0][0]
        if project_id is None:
            return render_template("console/training.html", known=known, chosen=None)
        _check_known(known, checked_id(project_id, "project"))
        choices = policies.choices_of(session.get(TrainingPolicy, project_id))
        new_corrections = runs.new_corrections(session, project_id)
        listed = [
            _shown(run, session.get(GateVerdict, run.id))
            for run in runs.list_runs(session, project_id, MOST_RUNS)
        ]
    values: dict[str, Any] = {
        "known": known,
        "chosen": project_id,
        "under_way": [(run, curve_shown(run.row)) for run in listed if run.is_under_way],
        "ended": [run for run in listed if not run.is_under_way],
        "new_corrections": new_corrections,
    }
    if "fragment" in request.args:
        return render_template("console/_training.html", **values)
    form = _form(opened.settings, choices)
    if request.method == "POST" and form.validate():
        try:
            policies.choose(opened, project_id, _choices(form))
        except ValidationError as error:
            _explain(form, error)
        else:
            flash(f"The choices of project {project_id} are stored.")
            return redirect(url_for("console.training", project_id=project_id))
    page = render_template("console/training.html", form=form, **values)
    return page, 400 if form.errors else 200


@blueprint.post("/training/<int:project_id>/start")
def start_training(project_id: int) -> AnyResponse:
    """Ask for a run of a project."""
    checked_id(project_id, "project")
    with services().database.reading() as session:
        _check_known(known_projects(session), project_id)
    requested = runs.request_run(services(), project_id, Trigger.CONSOLE)
    if requested.new:
        flash("A run is asked for; it begins as soon as the trainer is free.")
    else:
        flash("A run is under way already; corrections that it does not see start another one.")
    return redirect(url_for("console.training", project_id=project_id))


@blueprint.get("/training/runs/<run_id>")
def training_run(run_id: str) -> str:
    """One run: what came of it, its curve and its log."""
    checked_row_id(run_id, "training run")
    with services().database.reading() as session:
        row = session.get(TrainingRun, run_id) or abort(404, "There is no such training run.")
        run = _shown(row, session.get(GateVerdict, run_id))
        made = session.scalar(select(ModelVersion).where(ModelVersion.run_id == run_id))
    template = "_run.html" if "fragment" in request.args else "run.html"
    shown_curve = curve_shown(row, made.card if made else None)
    return render_template(
        f"console/{template}", run=run, curve=shown_curve, log=_log_shown(run_id)
    )


@blueprint.post("/training/runs/<run_id>/cancel")
def cancel_training(run_id: str) -> AnyResponse:
    """End a run, and return to the page on which that was asked for."""
    run = runs.cancel(services(), checked_row_id(run_id, "training run"))
    if run.state == RunState.CANCELLED:
        flash("The run is cancelled.")
    elif run.state == RunState.RUNNING:
        flash("The run ends at its next step.")
    else:
        flash("The run had ended already.")
    if request.form.get("back") == "work":
        return redirect(url_for("console.work"))
    return redirect(url_for("console.training", project_id=run.project_id))


def curve_shown(run: TrainingRun, card: dict[str, Any] | None = None) -> CurveShown:
    """A run's curve, from what it reported or from the card of the version that it made."""
    try:
        points = curve_of(services().redis, run.id, card)
    except QueueError as error:
        return CurveShown(missing=str(error))
    if not points:
        return CurveShown()
    loss = [(float(point.step), point.loss) for point in thinned(points, MOST_POINTS)]
    judged = [point for point in points if point.validation_dice is not None]
    dice = [
        (float(point.step), point.validation_dice or 0.0) for point in thinned(judged, MOST_POINTS)
    ]
    return CurveShown(
        curve("Loss by step; the table has the figures", "loss", loss),
        curve("Mean Dice of the spared images by step", "dice", dice, top=1.0) if dice else None,
        tuple(thinned(points, MOST_ROWS)[::-1]),
    )


def _log_shown(run_id: str) -> LogShown:
    try:
        return LogShown(tuple(log_of(services().redis, run_id)[::-1]))
    except QueueError as error:
        return LogShown(missing=str(error))


def _check_known(known: list[tuple[int, str | None]], project_id: int) -> None:
    if project_id not in [id_ for id_, _ in known]:
        abort(404, f"No project {project_id} is connected.")


def _shown(run: TrainingRun, verdict: GateVerdict | None) -> RunShown:
    from medsam3_model.training.endings import ENDINGS

    state = run.state
    if state == RunState.QUEUED:
        state = "waits for the trainer"
    elif state == RunState.RUNNING:
        stage = STAGES[Stage(run.stage)] if run.stage else "begins"
        state = "is being cancelled" if run.cancel_requested else stage
    # A run that goes on says there what it waits for.
    why = run.error or (ENDINGS.get(run.stopped, "") if run.stopped else "")
    passed = verdict.passed if verdict else None
    return RunShown(run, passed, TRIGGERS[Trigger(run.trigger)], state, why)


def _form(settings: Settings, choices: PolicyChoices) -> PolicyForm:
    """The form with what is chosen, or with what was sent; nothing chosen is the setting."""
    schedule = NO_SCHEDULE if choices.schedule == "" else choices.schedule or ""
    after = "" if choices.after_corrections is None else str(choices.after_corrections)
    form = PolicyForm(
        data={
            "after_corrections": after,
            "schedule": schedule,
            "strategy": choices.strategy or "",
            "consensus": choices.consensus or "",
            "auto_promote": _as_word(choices.auto_promote),
            "agent": _as_word(choices.agent),
            "adapter": _as_word(choices.adapter),
        }
    )
    form.after_corrections.description = (
        "0: none does. Empty: as the setting says, which is "
        f"{settings.train_after_corrections or '0'}."
    )
    form.schedule.description = (
        f"A cron line in UTC such as 0 3 * * 1, or {NO_SCHEDULE}. Empty: as the setting says, "
        f"which is {settings.train_schedule or NO_SCHEDULE}."
    )
    into_service = {"yes": "goes into service by itself", "no": "waits for somebody to promote it"}
    by_setting = into_service["yes" if settings.auto_promote else "no"]
    form.strategy.choices = _offered(Strategy, settings.strategy)
    form.strategy.description = (
        "Holds from the next promotion on, or when the project is connected again. Until the "
        "project has a version of its own any task comes first."
    )
    form.consensus.choices = _offered(Consensus, settings.consensus)
    form.auto_promote.choices = [("", f"as the setting: {by_setting}"), *into_service.items()]
    form.agent.choices = [
        ("", "where a label says so"),
        ("yes", "for all labels"),
        ("no", "for none"),
    ]
    form.adapter.choices = [
        ("", "the detector"),
        ("yes", "the detector and an adapter of the encoder"),
    ]
    form.adapter.description = (
        "An adapter costs longer runs, and images are encoded anew for each version."
    )
    return form


def _offered(literal: Any, setting: str) -> list[tuple[str, str]]:
    """The values of a literal type, behind the one that stands for no choice."""
    return [("", f"as the setting: {setting}"), *((value, value) for value in get_args(literal))]


def _choices(form: PolicyForm) -> PolicyChoices:
    """The model of what was sent.

    Raises:
        ValidationError: something may not be chosen.
    """
    after = (form.after_corrections.data or "").strip()
    schedule = (form.schedule.data or "").strip()
    sent: dict[str, Any] = {
        "after_corrections": int(after) if re.fullmatch("[0-9]{1,10}", after) else after or None,
        "schedule": "" if schedule == NO_SCHEDULE else schedule or None,
        "strategy": form.strategy.data or None,
        "consensus": form.consensus.data or None,
    }
    for name in ("auto_promote", "agent", "adapter"):
        word = form[name].data or None
        sent[name] = _SWITCH.get(word, word) if word else None
    return PolicyChoices.model_validate(sent)


def _explain(form: PolicyForm, error: ValidationError) -> None:
    """Put what is wrong beside the fields, without what was sent."""
    for part in error.errors(include_url=False, include_input=False, include_context=False):
        field = form[str(part["loc"][0])]
        field.errors = (*field.errors, part["msg"].removeprefix("Value error, "))


def _as_word(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"
