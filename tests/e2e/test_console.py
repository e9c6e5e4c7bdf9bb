"""The console in a real browser: light and dark, narrow and wide, by keyboard, without a reload."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from backend.corrections.agreement import compute_agreement
from backend.predictions.preannotate_options import PreannotateOptions
from backend.predictions.tables import Preannotation
from backend.services import Services
from backend.tables import (
    Delivery,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    config_hash,
    now,
)
from tests.support.agent_rows import RUN, add_agent_runs
from tests.support.correction_rows import add_corrections
from tests.support.label_configs import BRAIN_CONFIG
from tests.support.model_rows import add_versions
from tests.support.processes import Running, running
from tests.support.regions import brush
from tests.support.training_rows import add_runs

PAGES = (
    "/console",
    "/console/corrections/7",
    "/console/agreement",
    "/console/models",
    "/console/models/tiny-p7-new",
    "/console/models/tiny-p7-new/promote/7",
    "/console/models/rollback/7",
    "/console/preannotate/7",
    "/console/preannotate/7/sample",
    "/console/training/7",
    "/console/training/runs/running",
    "/console/agent",
    f"/console/agent/{RUN}",
    "/console/audit",
)
ColorScheme = Literal["light", "dark"]
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    """The web process as users start it, with a task that failed."""
    with running(with_worker=False) as started:
        add_versions(started.services)
        with started.services.database.session() as session:
            session.add(LabelConfigText(hash=config_hash("<View/>"), xml="<View/>"))
        add_failed(started.services, 101)
        add_corrections(started.services, 60)
        compute_agreement(started.services, 7)
        add_runs(started.services)
        add_agent_runs(started.services)
        add_sample(started.services)
        yield started


def add_failed(services: Services, task_id: int) -> None:
    """A task that no worker could predict."""
    with services.database.session() as session:
        session.add(
            Suggestion(
                project_id=7,
                task_id=task_id,
                config_hash=config_hash("<View/>"),
                task_data={},
                model_version="tiny-1",
                state=SuggestionState.FAILED,
                delivery=Delivery.NONE,
                error=f"the image of task {task_id} is gone",
            )
        )


def add_sample(services: Services) -> None:
    """A sample that somebody asked for: one task is predicted, one failed, one waits."""
    mask = np.zeros((512, 512), bool)
    mask[150:350, 200:330] = True
    hashed = config_hash(BRAIN_CONFIG)
    states = (SuggestionState.DONE, SuggestionState.FAILED, SuggestionState.QUEUED)
    with services.database.session() as session:
        session.add(LabelConfigText(hash=hashed, xml=BRAIN_CONFIG))
        options = asdict(PreannotateOptions(limit=3, sample=True))
        session.add(Preannotation(id="sample", project_id=7, options=options, state="done"))
        for task_id, state in enumerate(states, 201):
            session.add(
                Suggestion(
                    request_id="sample",
                    project_id=7,
                    task_id=task_id,
                    config_hash=hashed,
                    task_data={"image": f"/data/upload/{task_id}.png"},
                    model_version="tiny-1",
                    state=state,
                    delivery=Delivery.PREVIEW,
                    # Not now: nobody but this test is to take it.
                    lease_until=now() + timedelta(days=1),
                    error="the image is gone" if state == SuggestionState.FAILED else None,
                    result=[brush("a", mask, "Brain")] if state == SuggestionState.DONE else None,
                    score=0.87,
                )
            )


def open_console(
    browser: Browser, target: Running, scheme: ColorScheme, width: int, complaints: list[str]
) -> Page:
    """A page that has logged in; `complaints` gets what it says, and what it asks other hosts."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((f"{target.url}/", "data:"))
            else complaints.append(request.url)
        ),
    )
    page.goto(f"{target.url}/console")
    assert_accessible(page)
    credentials = target.services.credentials
    page.keyboard.type(credentials.user)
    page.keyboard.press("Tab")
    page.keyboard.type(credentials.password)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Work")).to_be_visible()
    return page


def assert_accessible(page: Page) -> None:
    """No rule of WCAG 2.1 AA is broken, and nothing sticks out of the window."""
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1600), ("dark", 360)])
def test_every_page_can_be_read_by_everybody(
    browser: Browser, target: Running, scheme: ColorScheme, width: int
) -> None:
    complaints: list[str] = []
    page = open_console(browser, target, scheme, width, complaints)
    assert page.evaluate("document.documentElement.dataset.bsTheme") == scheme
    for path in PAGES:
        page.goto(target.url + path)
        assert_accessible(page)
    page.goto(f"{target.url}/console/preannotate/7/sample")
    expect(page.get_by_text("2 of 3 are predicted")).to_be_visible()
    picture = page.get_by_alt_text("Task 201 with the regions of its prediction")
    expect(picture).to_have_js_property("naturalWidth", 300)
    page.goto(f"{target.url}/console/training/7")
    page.get_by_label("Schedule").fill("at dawn")
    page.get_by_role("button", name="Store the choices").click()
    expect(page.get_by_label("Schedule")).to_have_accessible_description(re.compile("no cron line"))
    assert_accessible(page)
    page.close()
    # The browser itself says that an answer was no success.
    complaints = [text for text in complaints if "400 (BAD REQUEST)" not in text]
    assert complaints == []


def test_a_failed_task_shows_without_a_reload_and_is_retried(
    browser: Browser, target: Running
) -> None:
    complaints: list[str] = []
    page = open_console(browser, target, "light", 1000, complaints)
    page.evaluate("window.stays = true")
    add_failed(target.services, 102)
    expect(page.get_by_text("the image of task 102 is gone")).to_be_visible(timeout=60_000)
    assert page.evaluate("window.stays")
    page.get_by_role("button", name="Retry task 102").press("Enter")
    expect(page.get_by_role("status")).to_contain_text("1 task is predicted again.")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.close()
    assert complaints == []
