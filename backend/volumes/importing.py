"""Import of volumes and videos: each becomes one task with its pages, and a row with its geometry.

Pages go to Label Studio first, the task is made of them, and the row last; whatever fails takes
back what was there before it, so that nothing is imported by half. What is imported already is told
by its content and geometry, so the same import may be repeated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from sqlalchemy import select

from backend.database import Database
from backend.errors import LabelStudioError, VolumeError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import image_limits
from backend.labeling.config import ImageObject, parse_label_config
from backend.settings import Settings
from backend.volumes.tables import Stack

if TYPE_CHECKING:
    from medsam3_model.images.rendering import SourceStack, StackOptions

Outcome = Literal["created", "known", "refused", "left out"]
ShowPages = Callable[[int, int, str], None]  # pages done, pages in all, name of the stack


@dataclass(frozen=True)
class LocalFolder:
    """A folder that Label Studio serves as local files.

    Attributes:
        path: where the pages are written, each stack in a folder of its own.
        root: Label Studio's `LOCAL_FILES_DOCUMENT_ROOT`, as it is called on this machine.
    """

    path: Path
    root: Path


@dataclass(frozen=True)
class ImportedStack:
    """What became of one stack.

    Attributes:
        name: of the stack, or of a file that was refused.
        outcome: `known` where the project has a task of it already.
        task_id: of a task that was made, or that was there.
        pages: how many it has.
        notes: one sentence each; of what was refused the reason.
    """

    name: str
    outcome: Outcome
    task_id: int | None = None
    pages: int = 0
    notes: tuple[str, ...] = ()


def import_stacks(
    source: Path,
    project_id: int,
    options: StackOptions,
    *,
    client: LabelStudio,
    database: Database,
    settings: Settings,
    folder: LocalFolder | None = None,
    show: ShowPages = lambda done, total, name: None,
) -> Iterator[ImportedStack]:
    """Make a task of every stack that a file or folder holds, one after the other.

    Args:
        source: a file, or a folder with all below it.
        project_id: whose labeling config has an `<Image valueList="$...">`.
        options: how pages are cut and shown; without a window that of the labeling config's
            `<Image>` is taken, if it names one.
        client: of Label Studio.
        database: where the geometry is kept.
        settings: `max_image_mb`, `max_image_megapixels`.
        folder: where pages are written; None: they are uploaded.
        show: told of every page.

    Raises:
        VolumeError: the labeling config has no place for pages, or names a window that is none, or
            the folder is not served.
        ImageError: there is no such file or folder.
    """
    from medsam3_model.errors import ImageError
    from medsam3_model.images.rendering import RefusedStack
    from medsam3_model.images.stacks import find_stacks

    image = _paged_image(client.project(project_id)["label_config"])
    if image.window:
        options = replace(options, usual_window=_named_window(image))
    if folder is not None and not folder.path.resolve().is_relative_to(folder.root.resolve()):
        raise VolumeError(f"{folder.path} is not below {folder.root}, which Label Studio serves")
    for stack in find_stacks(source, options, image_limits(settings)):
        if isinstance(stack, RefusedStack):
            outcome: Outcome = "left out" if stack.left_out else "refused"
            yield ImportedStack(stack.name, outcome, notes=(stack.reason,))
            continue
        pages = stack.geometry.pages
        known = _known_task(client, database, project_id, stack)
        if known is not None:
            yield ImportedStack(stack.name, "known", known, pages, stack.notes)
            continue
        try:
            with _stored_pages(client, project_id, stack, folder, show) as references:
                task_id = client.create_task(project_id, {image.value_key: references})
                try:
                    with database.session() as session:
                        session.add(
                            Stack(
                                project_id=project_id,
                                task_id=task_id,
                                source=str(source),
                                source_sha256=stack.sha256,
                                geometry=stack.geometry.as_json(),
                            )
                        )
                except BaseException:
                    client.delete_task(task_id)
                    raise
        except ImageError as error:  # one bad stack does no harm to the others
            yield ImportedStack(stack.name, "refused", notes=(*stack.notes, str(error)))
            continue
        yield ImportedStack(stack.name, "created", task_id, pages, stack.notes)


def _paged_image(label_config: str) -> ImageObject:
    """The `<Image>` that shows a task's pages."""
    images = [image for image in parse_label_config(label_config).images if image.multi_page]
    if len(images) == 1:
        return images[0]
    raise VolumeError(
        f'the project\'s labeling config has {len(images)} <Image valueList="$...">, and pages '
        "need one: take a template such as label_config/ct_stack.xml"
    )


def _named_window(image: ImageObject) -> tuple[float, float]:
    """The values that become black and white by the labeling config, in the volume's own unit."""
    from medsam3_model.errors import ImageError
    from medsam3_model.images.rendering import parse_window

    try:
        return parse_window(image.window)
    except ImageError as error:
        raise VolumeError(f'<Image name="{image.name}"> of the labeling config: {error}') from error


def _known_task(
    client: LabelStudio, database: Database, project_id: int, stack: SourceStack
) -> int | None:
    """The task that was made of the same content with the same geometry, if it is still there."""
    with database.reading() as session:
        rows = session.scalars(
            select(Stack).where(
                Stack.project_id == project_id,
                Stack.source_sha256 == stack.sha256,
                Stack.geometry == stack.geometry.as_json(),
            )
        ).all()
    return next((row.task_id for row in rows if client.has_task(row.task_id)), None)


@contextmanager
def _stored_pages(
    client: LabelStudio,
    project_id: int,
    stack: SourceStack,
    folder: LocalFolder | None,
    show: ShowPages,
) -> Iterator[list[str]]:
    """The pages as references for a task; taken back where the block raises."""
    files = _files(stack, show)
    if folder is not None:
        # A name of its own: what is there already belongs to another task.
        folder.path.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"{stack.name}-", dir=folder.path.resolve()))
        target.chmod(0o755)  # Label Studio may run as another user
        written: list[Path] = []
        try:
            for name, content in files:
                written.append(target / name)
                written[-1].write_bytes(content)
            root = folder.root.resolve()
            yield [_local(path.relative_to(root)) for path in written]
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            target.rmdir()
            raise
        return
    stored = client.store_files(project_id, files)
    try:
        if len(stored) != stack.geometry.pages or not all(stored.values()):
            raise LabelStudioError("Label Studio did not take every page: try again")
        yield list(stored.values())
    except BaseException:
        client.delete_files(project_id, list(stored))
        raise


def _local(path: Path) -> str:
    return f"/data/local-files/?d={quote(path.as_posix())}"


def _files(stack: SourceStack, show: ShowPages) -> Iterator[tuple[str, bytes]]:
    """The pages as PNG files with their names."""
    from medsam3_model.images.rendering import png

    total = stack.geometry.pages
    for page, pixels in enumerate(stack.pages()):
        yield f"{stack.name}-{page:04d}.png", png(pixels)
        show(page + 1, total, stack.name)
