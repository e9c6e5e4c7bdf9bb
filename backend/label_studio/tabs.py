"""Tabs of the Data Manager: which tasks one shows."""

from collections.abc import Iterable
from typing import Any

from backend.errors import LabelStudioError
from backend.label_studio.client import LabelStudio

_PAGE = 1000


def only_in_tab(
    studio: LabelStudio, project_id: int, tab_id: int | None, tasks: Iterable[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Those of a project's tasks that a tab shows, in their order; without a tab all of them.

    Raises:
        LabelStudioError: as `tasks_in_tab`.
    """
    if tab_id is None:
        return tasks
    shown = tasks_in_tab(studio, project_id, tab_id)
    return (task for task in tasks if task["id"] in shown)


def tasks_in_tab(studio: LabelStudio, project_id: int, tab_id: int) -> frozenset[int]:
    """Ids of the tasks that a tab shows, by its own filters.

    Raises:
        LabelStudioError: the project has no such tab; the message names those that it has.
    """
    tabs = {
        tab["id"]: (tab.get("data") or {}).get("title") or "" for tab in studio.tabs(project_id)
    }
    if tab_id not in tabs:
        has = ", ".join(f"{id_} ({title})" for id_, title in tabs.items()) or "none yet"
        raise LabelStudioError(
            f"Project {project_id} has no tab {tab_id} in its Data Manager; its tabs: {has}. The "
            "number is in the page's address, after `tab=`."
        )
    ids: set[int] = set()
    page = 0
    while True:
        page += 1
        found = studio.get(
            "/api/tasks",
            view=tab_id,
            project=project_id,
            page=page,
            page_size=_PAGE,
            include="id",
            resolve_uri="false",
        )
        ids.update(task["id"] for task in found["tasks"])
        # A task may stand there once for each prediction, and tasks may come and go meanwhile.
        if page * _PAGE >= found["total"] or not found["tasks"]:
            return frozenset(ids)
