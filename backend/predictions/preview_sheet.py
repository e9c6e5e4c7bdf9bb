"""The sheet of a preview: one picture a task, its regions in the colours of their labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from backend.errors import BackendError, ImageSourceError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import decode, fetch_image
from backend.labeling.config import ImageObject, LabelConfig
from backend.labeling.region_masks import region_mask
from backend.labeling.regions import label_values
from backend.predictions.preview import Preview, PreviewedTask
from backend.services import Services

COLUMNS, TILE, CAPTION, GAP = 4, 300, 40, 10
_PAPER, _INK, _WARNING = (250, 250, 250), (30, 30, 30), (170, 30, 20)
# Told apart also by who confuses red and green (Okabe and Ito 2008).
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66))
_FILL, _OUTLINE = 0.25, 2


def save_sheet(services: Services, preview: Preview, path: Path) -> None:
    """Draw a preview and save it; the file's ending names the format.

    Raises:
        BackendError: the file cannot be written.
    """
    from medsam3_model.errors import MedSAM3Error

    colours = colours_of(preview.config)
    rows = -(-len(preview.tasks) // COLUMNS)
    size = (COLUMNS * (TILE + GAP) + GAP, rows * (TILE + CAPTION + GAP) + 2 * GAP + CAPTION)
    sheet = Image.new("RGB", size, _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    _legend(pen, font, preview, colours)
    with LabelStudio.from_settings(services.settings) as client:
        for number, task in enumerate(preview.tasks):
            left = GAP + number % COLUMNS * (TILE + GAP)
            top = GAP + CAPTION + number // COLUMNS * (TILE + CAPTION + GAP)
            error = task.error
            try:
                picture = picture_of(services, client, preview.project_id, preview.config, task)
                across, down = (TILE - side for side in picture.size)
                sheet.paste(picture, (left + across // 2, top + down // 2))
            except (BackendError, MedSAM3Error) as failure:
                error = error or str(failure)
            caption = f"task {task.task_id}   score {task.score:.2f}"
            ink = _INK
            if error:
                caption, ink = _wrapped(f"task {task.task_id}: {error}"), _WARNING
            elif not task.regions:
                caption += "   nothing found"
            pen.multiline_text((left, top + TILE + 2), caption, fill=ink, font=font)
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise BackendError(f"{path} cannot be written ({error}); try preview.png.") from error


def _legend(
    pen: ImageDraw.ImageDraw,
    font: Any,
    preview: Preview,
    colours: Mapping[str, tuple[int, int, int]],
) -> None:
    at = float(GAP)
    texts = [(f"Project {preview.project_id}, {preview.model_version}", _INK), *colours.items()]
    for text, colour in texts:
        if colour is not _INK:
            pen.rectangle((at, GAP + 2, at + 12, GAP + 14), fill=colour)
            at += 18
        pen.text((at, GAP), text, fill=_INK, font=font)
        at += pen.textlength(text, font=font) + 2 * GAP


def colours_of(config: LabelConfig) -> dict[str, tuple[int, int, int]]:
    """The colour of each label's regions, RGB."""
    labels = [label.value for label in config.labels]
    return {label: _COLOURS[n % len(_COLOURS)] for n, label in enumerate(labels)}


def picture_of(
    services: Services,
    client: LabelStudio,
    project_id: int,
    config: LabelConfig,
    task: PreviewedTask,
) -> Image.Image:
    """The image, or the page with most regions, at the size of a tile.

    Raises:
        LabelStudioError, ImageSourceError: the image cannot be had.
        ImageError: it cannot be read.
    """
    image, page = _shown(config, task)
    references = image.references(task.data)
    if not references:
        raise ImageSourceError("the task has no image")
    content = fetch_image(
        references[page or 0],
        client=client,
        settings=services.settings,
        task_id=task.task_id,
        project_id=project_id,
    )
    pixels = decode(content, services.settings, task_id=task.task_id)
    here = [r for r in task.regions if (r["to_name"], r.get("item_index")) == (image.name, page)]
    return _painted(pixels, here, colours_of(config))


def _shown(config: LabelConfig, task: PreviewedTask) -> tuple[ImageObject, int | None]:
    """The image, and its page, that most regions are on; else the first."""
    counts: dict[tuple[str, int | None], int] = {}
    for region in task.regions:
        key = (region["to_name"], region.get("item_index"))
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        first = config.images[0]
        return first, 0 if first.multi_page else None
    name, page = max(counts, key=lambda key: counts[key])
    return next(image for image in config.images if image.name == name), page


def _painted(
    pixels: NDArray[np.uint8],
    regions: Sequence[Mapping[str, Any]],
    colours: Mapping[str, tuple[int, int, int]],
) -> Image.Image:
    """An image (H, W, 3) at the size of a tile, with its regions filled lightly and outlined."""
    height, width = pixels.shape[:2]
    small = ImageOps.contain(Image.fromarray(pixels), (TILE, TILE))
    canvas = np.asarray(small, dtype=np.float32).copy()
    # The labels of a tool without any are in a second entry of the same id.
    labels = {r["id"]: min(label_values(r)) for r in regions if label_values(r)}
    outlines = []
    # As in the editor the first region lies on top.
    for region in reversed(regions):
        if region["type"] == "labels":
            continue
        colour = np.array(colours.get(labels.get(region["id"], ""), _COLOURS[0]), np.float32)
        whole = Image.fromarray(region_mask(region, height, width))
        mask = np.asarray(whole.resize(small.size, Image.Resampling.NEAREST))
        inner = mask.copy()
        for axis in (0, 1):
            for shift in (-_OUTLINE, _OUTLINE):
                inner &= np.roll(mask, shift, axis)
        canvas[mask] += _FILL * (colour - canvas[mask])
        outlines.append((mask & ~inner, colour))
    for outline, colour in outlines:
        canvas[outline] = colour
    return Image.fromarray(canvas.round().astype(np.uint8))


def _wrapped(text: str) -> str:
    """A sentence in two lines at most."""
    line = 40
    cut = text.rfind(" ", 0, line) if len(text) > line else len(text)
    cut = cut if cut > 0 else line
    rest = text[cut:].strip()
    return f"{text[:cut]}\n{rest[:line]}{'…' if len(rest) > line else ''}"
