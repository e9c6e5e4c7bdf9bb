"""The page *Pre-annotate*: which tasks to predict, and how the answers look on a sample of them."""

import re

from flask import Response, abort, flash, redirect, render_template, request, url_for
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response as AnyResponse
from wtforms import BooleanField, SelectField, StringField
from wtforms.fields import SelectChoice
from wtforms.validators import ValidationError

from backend.errors import BackendError, LabelConfigError
from backend.labeling.config import parse_label_config
from backend.models import versions
from backend.predictions import preannotate, preview
from backend.predictions.preannotate_options import PreannotateOptions
from backend.predictions.requests import UNFINISHED
from backend.tables import Project
from backend.web.console.access import blueprint
from backend.web.console.pictures import sample_png
from backend.web.console.shown import task_address
from backend.web.requests import checked_id, checked_row_id, services


class PreannotateForm(FlaskForm):  # type: ignore[misc]
    """Which tasks; whether they can be meant is for `PreannotateOptions` to say."""

    limit = StringField("The first so many", description="Empty: all of them.")
    tab = StringField(
        "Tab of the Data Manager",
        description="Only tasks that it shows, by its filters: the number after “tab=” in its "
        "address. Empty: all of the project.",
    )
    unlabelled = BooleanField("Only tasks without annotations")
    label = SelectField(
        "Labels",
        description="One label: tasks that lack it get it, and what they have of the others stays.",
        choices=[SelectChoice("", "All labels")],
        default="",
    )

    def validate_limit(self, field: StringField) -> None:
        """Refuse what is no number of tasks."""
        _refuse(limit=_number(field.data))

    def validate_tab(self, field: StringField) -> None:
        """Refuse what is no number of a tab."""
        _refuse(tab=_number(field.data))


def _refuse(**options: int | None) -> None:
    try:
        PreannotateOptions(**options)  # type: ignore[arg-type]
    except BackendError as error:
        raise ValidationError(str(error)) from error


def _number(text: str | None) -> int | None:
    """What was typed, None for nothing; what is no number is refused like one that means none."""
    text = (text or "").strip()
    if not text:
        return None
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0


@blueprint.route("/preannotate/<int:project_id>", methods=["GET", "POST"])
def preannotate_project(project_id: int) -> AnyResponse | str | tuple[str, int]:
    """Ask for the predictions of a project's tasks."""
    checked_id(project_id, "project")
    with services().database.reading() as session:
        project = session.get(Project, project_id)
    if project is None:
        abort(404, f"No project {project_id} is connected.")
    form = PreannotateForm()
    form.label.choices += [SelectChoice(label, label) for label in _labels(project)]
    if request.method == "POST" and form.validate():
        options = PreannotateOptions(
            _number(form.limit.data),
            form.unlabelled.data,
            (form.label.data,) if form.label.data else (),
            _number(form.tab.data),
            sample="sample" in request.form,
        )
        return _asked(project_id, options)
    version = versions.in_service(services(), project_id)
    page = render_template("console/preannotate.html", project=project, version=version, form=form)
    return page, 400 if form.errors else 200


@blueprint.post("/preannotate/<int:project_id>/cancel")
def cancel_preannotation(project_id: int) -> AnyResponse:
    """Cancel what waits of a project's pre-annotation."""
    count = preannotate.cancel(services(), checked_id(project_id, "project"))
    tasks = "1 waiting task is" if count == 1 else f"{count} waiting tasks are"
    flash(f"{tasks} cancelled; what is under way finishes.")
    return redirect(url_for("console.work"))


def _labels(project: Project) -> list[str]:
    """The labels that the model is asked for, as far as the project's labeling config is known."""
    try:
        config = parse_label_config(project.label_config or "")
    except LabelConfigError:
        return []
    return [label.value for label in config.labels]


def _asked(project_id: int, options: PreannotateOptions) -> AnyResponse:
    preannotate.request_preannotation(services(), project_id, options)
    if options.sample:
        return redirect(url_for("console.preannotation_sample", project_id=project_id))
    flash(f"A worker reads {options} of project {project_id}; they show here as waiting.")
    return redirect(url_for("console.work"))


@blueprint.get("/preannotate/<int:project_id>/sample")
def preannotation_sample(project_id: int) -> str:
    """The latest sample of a project, as far as it is predicted."""
    checked_id(project_id, "project")
    opened = services()
    with opened.database.reading() as session:
        project = session.get(Project, project_id)
        if project is None:
            abort(404, f"No project {project_id} is connected.")
        wish, rows = preview.sampled(session, project_id)
    addresses = {
        row.id: task_address(opened.settings, project_id, row.task_id)
        for row in rows
        if row.task_id is not None
    }
    template = "_sample.html" if "fragment" in request.args else "sample.html"
    return render_template(
        f"console/{template}",
        project=project,
        wish=wish,
        asked_for=PreannotateOptions(**wish.options) if wish else None,
        rows=rows,
        done=sum(row.state not in UNFINISHED for row in rows),
        addresses=addresses,
        has_pictures=opened.settings.console_gallery,
    )


@blueprint.get("/preannotate/pictures/<row_id>")
def sample_picture(row_id: str) -> Response:
    """A task of a sample with its regions; 404 where pictures are off or it is gone."""
    from medsam3_model.errors import MedSAM3Error

    if not services().settings.console_gallery:
        abort(404, "The gallery is off.")
    checked_row_id(row_id, "prediction")
    try:
        content = sample_png(services(), row_id)
    except (BackendError, MedSAM3Error):
        abort(404, "This picture cannot be shown.")
    return Response(content, mimetype="image/png")
