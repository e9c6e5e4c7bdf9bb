"""Make the README's strip of pictures from a real demo: `make pictures`.

A real Label Studio and a real backend start in a temporary folder with slices of the MNI152
template. A browser plays the annotator on one slice: it opens the task, draws a box, corrects the
mask with eraser and brush, and submits. The other slices are corrected with the template's own
maps, one is left alone. Then `medsam3 train` makes a version, and the slice that nobody touched
shows what it learned. Captions repeat what the gate said, whichever way it went.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Locator, Page, expect, sync_playwright
from scipy import ndimage

from backend.demo.demo import Demo, DemoOptions, running_demo
from backend.label_studio.client import LabelStudio
from backend.labeling import brush_rle
from medsam3_model.data.template import TemplateSlice, template_slice

Mask = NDArray[np.bool_]
# x0, y0, x1, y1 in pixels of a slice.
Box = tuple[float, float, float, float]

STRIP = Path(__file__).parent / "images" / "strip.png"
# The bundled model knows the first two by name and has never heard the third.
LABELS = ("Grey matter", "White matter", "Ventricle")
NEW_LABEL = LABELS[2]
# The slices of the template that show the lateral ventricles.
SLICES = range(74, 101)
DRAWN_ON, LEFT_ALONE = 93, 97
# A slice's side of the split follows from its number. Five of these are for validation, the fewest
# with which the gate lets a version into service.
GROUP_PATTERN = r"_(\d+)\.png"
TRAINING = ("--steps", "400", "--learning-rate", "4e-4")
HEIGHT, WIDTH = 233, 197
PATIENCE_MS = 120_000
# Half the width of the brush and of the eraser, in pixels of a slice, rounded up.
STROKE_RADIUS = 2

# The strip, in its own pixels.
PANEL_WIDTH, PANEL_HEIGHT = 376, 424
GAP, CAPTION_HEIGHT, PIECE_HEIGHT = 18, 126, 88
TITLE_SIZE, LINE_SIZE, LINE_HEIGHT = 34, 25, 31
INK, FAINT = "#1f2328", "#57606a"


@dataclass(frozen=True)
class Panel:
    """One picture of the strip: part of a slice, a piece of Label Studio's page, a caption."""

    view: Image.Image
    piece: Image.Image
    title: str
    lines: tuple[str, ...]


def main() -> None:
    """Run the demo, take the pictures, write the strip."""
    with tempfile.TemporaryDirectory(prefix="m3-") as folder:
        images = Path(folder) / "mni152"
        images.mkdir()
        for index in SLICES:
            drawn = template_slice(index)
            Image.fromarray(drawn.image).save(images / f"{drawn.name}.png")
        os.environ["MEDSAM3_GROUP_PATTERN"] = GROUP_PATTERN
        options = DemoOptions(
            folder=Path(folder) / "demo",
            images=images,
            labels=LABELS,
            label_studio_port=0,
            backend_port=0,
        )
        with running_demo(options, say, lambda *_: None) as demo, a_page(demo) as page:
            panels = take(demo, page)
    compose(panels).save(STRIP, optimize=True)
    say(f"{STRIP}: {STRIP.stat().st_size // 1024} kB")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# -- the annotator --------------------------------------------------------------------------------


def take(demo: Demo, page: Page) -> list[Panel]:
    """Play one round and take a picture of each part of it."""
    with LabelStudio(demo.label_studio.url, demo.label_studio.token) as client:
        tasks = {
            int(task["data"]["image"][-7:-4]): task["id"]
            for task in client.tasks(demo.project.id, include=("id", "data"))
        }
        panels = annotate(demo, page, tasks[DRAWN_ON])
        say("Correcting the other slices with the template's own maps ...")
        for index, task_id in tasks.items():
            if index not in (DRAWN_ON, LEFT_ALONE):
                body = {"result": regions_of(template_slice(index))}
                client.post(f"/api/tasks/{task_id}/annotations/", body)
        run = train(demo)
        version = run["candidate"] if run["gate"]["passed"] else run["incumbent"]
        wait_for_prediction(client, tasks[LEFT_ALONE], version)
    open_task(demo, page, tasks[LEFT_ALONE])
    panels.append(
        Panel(
            view_of(page, whole(template_slice(LEFT_ALONE))),
            shot(version_tab(page, version)),
            "5  A better version" if run["gate"]["passed"] else "5  A new version",
            verdict_lines(run["gate"]),
        )
    )
    return panels


def annotate(demo: Demo, page: Page, task_id: int) -> list[Panel]:
    """Open a slice, draw a box around each ventricle, correct the masks, submit."""
    drawn = template_slice(DRAWN_ON)
    left, right = objects(ventricles(drawn))
    open_task(demo, page, task_id)
    version = page.get_by_text("tiny-").first.inner_text()
    masks = Panel(
        view_of(page, whole(drawn)),
        shot(version_tab(page, version)),
        "2  Masks",
        ("found by name, all but one:", f"it does not know {NEW_LABEL}"),
    )
    page.get_by_role("button", name="Hide all regions").click()
    labels = Panel(
        view_of(page, whole(drawn)),
        label_buttons(page),
        "1  Labels",
        ("their names are the prompts,", "here on a brain template"),
    )
    choose_smart_rectangle(page)
    bar = draw_box(page, box_around(left, margin=2))
    box = Panel(
        view_of(page, close_up(drawn)),
        shot(bar.locator("xpath=..")),
        "3  One box, one mask",
        ("for what it does not know,", "with a smart tool"),
    )
    accept(bar)
    accept(draw_box(page, box_around(right, margin=2)))
    page.get_by_text("Auto-Annotation").click()
    rows = page.get_by_role("treeitem").filter(has_text=NEW_LABEL)
    for number, ventricle in enumerate((left, right)):
        rows.nth(number).click()
        if number == 0:
            make_smaller(page, "eraser")
            make_smaller(page, "brush-tool")
        correct(page, ventricle)
    page.keyboard.press("Escape")
    submit = page.get_by_role("button", name="Submit current annotation")
    correction = Panel(
        view_of(page, close_up(drawn)),
        shot(submit),
        "4  A correction",
        ("eraser, brush, submit;", f"and {len(SLICES) - 2} more slices"),
    )
    with page.expect_response(lambda answer: "/annotations" in answer.url) as answered:
        submit.click()
    assert answered.value.status == 201, answered.value.status
    return [labels, masks, box, correction]


def correct(page: Page, truth: Mask) -> None:
    """Erase what is beside the object of the selected region, and paint what is missing."""
    x0, y0, x1, y1 = (round(edge) for edge in box_around(truth, margin=8))
    beside = np.zeros_like(truth)
    beside[y0:y1, x0:x1] = True
    beside &= ~ndimage.binary_dilation(truth, iterations=STROKE_RADIUS)
    inside = ndimage.binary_erosion(truth, iterations=STROKE_RADIUS - 1)
    for tool, area in (("eraser", beside), ("brush-tool", inside)):
        page.locator(f"button[aria-label={tool}]").click()
        for row in range(HEIGHT):
            for start, end in runs(area[row]):
                drag(page, (start + 0.5, row + 0.5), (end - 0.5, row + 0.5))


def make_smaller(page: Page, tool: str) -> None:
    """Take the next smaller size of brush or eraser; the tool keeps it."""
    page.locator(f"button[aria-label={tool}]").click()
    page.keyboard.press("[")


def runs(row: Mask) -> Iterator[tuple[int, int]]:
    """The stretches of a row that are True: first column, and the one after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(int)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


# -- the browser ----------------------------------------------------------------------------------


@contextmanager
def a_page(demo: Demo) -> Iterator[Page]:
    """A page of the machine's own Chromium, logged in."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        sys.exit("No Chromium or Chrome is installed: run `make browser`.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1300}, device_scale_factor=2)
        page.goto(f"{demo.label_studio.url}/user/login")
        page.fill("input[name=email]", demo.label_studio.user)
        page.fill("input[name=password]", demo.label_studio.password)
        page.click("button[type=submit]")
        page.wait_for_load_state()
        yield page
        browser.close()


def open_task(demo: Demo, page: Page, task_id: int) -> None:
    """Open a task in the editor and wait until its prediction is drawn."""
    page.goto(f"{demo.label_studio.url}/projects/{demo.project.id}/data?task={task_id}")
    page.wait_for_selector(".konvajs-content canvas", timeout=PATIENCE_MS)
    expect(page.get_by_role("treeitem").first).to_be_visible(timeout=PATIENCE_MS)


def choose_smart_rectangle(page: Page) -> None:
    """Switch auto-annotation on and take the smart rectangle."""
    page.get_by_text("Auto-Annotation").click()
    page.locator("button.lsf-tool_smart").first.hover()
    page.locator("button.lsf-tool_smart[aria-label=rectangle-tool]").click()


def draw_box(page: Page, box: Box) -> Locator:
    """Draw a rectangle of the new label; returns the bar that offers the mask in it."""
    # The first row of labels belongs to the brush, the second to the rectangle.
    page.locator(".lsf-label", has_text=NEW_LABEL).nth(1).click()
    drag(page, box[:2], box[2:], steps=8)
    bar = page.get_by_text("1 suggestions")
    expect(bar).to_be_visible(timeout=PATIENCE_MS)
    return bar


def accept(bar: Locator) -> None:
    """Press the check mark beside the number of suggestions."""
    bar.locator("xpath=..").locator("button").last.click()
    expect(bar).not_to_be_visible()


def drag(
    page: Page, start: tuple[float, float], end: tuple[float, float], *, steps: int = 3
) -> None:
    """Press the mouse on one point of the slice and let it go on another."""
    page.mouse.move(*on_page(page, *start))
    page.mouse.down()
    page.mouse.move(*on_page(page, *end), steps=steps)
    page.mouse.up()


def on_page(page: Page, x: float, y: float) -> tuple[float, float]:
    """A point of the slice, in pixels of the page: the image is at the canvas's upper left."""
    area = page.locator(".konvajs-content canvas").last.bounding_box()
    assert area is not None
    scale = min(area["width"] / WIDTH, area["height"] / HEIGHT)
    return area["x"] + x * scale, area["y"] + y * scale


def view_of(page: Page, box: Box) -> Image.Image:
    """A part of the slice as it is on the screen."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(700)
    x0, y0 = on_page(page, *box[:2])
    x1, y1 = on_page(page, *box[2:])
    png = page.screenshot(clip={"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0})
    return Image.open(io.BytesIO(png)).convert("RGB")


def shot(element: Locator) -> Image.Image:
    """An element of the page as it is on the screen."""
    return Image.open(io.BytesIO(element.screenshot())).convert("RGB")


def version_tab(page: Page, version: str) -> Locator:
    """The tab above the image that shows a version's prediction."""
    # Label Studio shortens a long name in the middle.
    name = page.get_by_text(version) if len(version) < 15 else page.get_by_text(version[-6:])
    tab = "contains(concat(' ', @class, ' '), ' lsf-annotation-button ')"
    return name.first.locator(f"xpath=ancestor::*[{tab}]")


def label_buttons(page: Page) -> Image.Image:
    """The first row of labels below the image."""
    areas = [page.locator(".lsf-label", has_text=label).first.bounding_box() for label in LABELS]
    known = [area for area in areas if area is not None]
    x0, y0 = known[0]["x"], known[0]["y"]
    png = page.screenshot(
        clip={
            "x": x0,
            "y": y0,
            "width": known[-1]["x"] + known[-1]["width"] - x0,
            "height": known[0]["height"],
        }
    )
    return Image.open(io.BytesIO(png)).convert("RGB")


# -- training -------------------------------------------------------------------------------------


def train(demo: Demo) -> dict[str, Any]:
    """`medsam3 train`, as a user types it, once all corrections are in; the run that ended."""
    project = str(demo.project.id)
    medsam3("corrections", "sync", "--project", project)
    say("Training a version on the corrections ...")
    run: dict[str, Any] = json.loads(medsam3("train", project, *TRAINING, "--json"))
    say(medsam3("models", "show", run["candidate"]))
    return run


def medsam3(*words: str) -> str:
    """What a command prints; the demo has put its settings into the environment."""
    command = Path(sys.executable).parent / "medsam3"
    return subprocess.run([command, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def verdict_lines(gate: dict[str, Any]) -> tuple[str, ...]:
    """The gate's figures for the new label by name, in a few words."""
    (figures,) = [
        part
        for part in gate["figures"]["concepts"]
        if (part["concept"], part["mode"]) == (NEW_LABEL, "T")
    ]
    verdict = "gate passed" if gate["passed"] else "gate not passed"
    before, after = figures["incumbent"], figures["candidate"]
    return (
        f"{verdict}: {NEW_LABEL} by name",
        f"Dice {before:.2f} to {after:.2f} on {figures['images']} images",
    )


def wait_for_prediction(client: LabelStudio, task_id: int, version: str) -> None:
    """Wait until Label Studio has a version's prediction of a task."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        predictions = client.get(f"/api/tasks/{task_id}")["predictions"]
        if any(prediction["model_version"] == version for prediction in predictions):
            return
        time.sleep(0.5)
    raise TimeoutError(f"task {task_id} has no prediction of {version}")


# -- slices ---------------------------------------------------------------------------------------


def ventricles(drawn: TemplateSlice) -> Mask:
    """The lateral ventricles: fluid deep in the brain, without the fissure in the middle.

    Fluid is what the template counts as brain but neither as grey nor as white matter.
    """
    brain = drawn.masks["brain"]
    fluid = brain & ~drawn.masks["grey matter"] & ~drawn.masks["white matter"]
    depth = ndimage.distance_transform_edt(brain)
    found = np.zeros_like(fluid)
    for part in components(fluid):
        columns = np.nonzero(part)[1]
        fissure = np.abs(columns - WIDTH / 2).max() < 12
        if part.sum() >= 25 and np.median(depth[part]) > 25 and not fissure:
            found |= part
    return found


def objects(mask: Mask) -> tuple[Mask, Mask]:
    """The two largest components, the one on the left of the picture first."""
    largest = sorted(components(mask), key=lambda part: -int(part.sum()))[:2]
    left, right = sorted(largest, key=lambda part: float(np.nonzero(part)[1].mean()))
    return left, right


def components(mask: Mask) -> list[Mask]:
    """The connected parts of a mask."""
    numbered, count = ndimage.label(mask)
    return [numbered == number for number in range(1, count + 1)]


def regions_of(drawn: TemplateSlice) -> list[dict[str, Any]]:
    """An annotation with the template's own maps, as Label Studio stores it."""
    masks = {
        LABELS[0]: drawn.masks["grey matter"],
        LABELS[1]: drawn.masks["white matter"],
        NEW_LABEL: ventricles(drawn),
    }
    return [
        {
            "id": f"{drawn.index}-{number}",
            "from_name": "mask",
            "to_name": "image",
            "type": "brushlabels",
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": [label]},
        }
        for number, (label, mask) in enumerate(masks.items())
        if mask.any()
    ]


def box_around(mask: Mask, margin: float) -> Box:
    """The box around a mask, a little larger."""
    rows, columns = np.nonzero(mask)
    return (
        columns.min() - margin,
        rows.min() - margin,
        columns.max() + 1 + margin,
        rows.max() + 1 + margin,
    )


def whole(drawn: TemplateSlice) -> Box:
    """The part of a slice that shows all of the brain."""
    return framed(box_around(drawn.masks["brain"], margin=6))


def close_up(drawn: TemplateSlice) -> Box:
    """The part of a slice that shows the ventricles."""
    return framed(box_around(ventricles(drawn), margin=12))


def framed(box: Box) -> Box:
    """The smallest box of a panel's shape around another."""
    x0, y0, x1, y1 = box
    width = max(x1 - x0, (y1 - y0) * PANEL_WIDTH / PANEL_HEIGHT)
    height = width * PANEL_HEIGHT / PANEL_WIDTH
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


# -- the strip ------------------------------------------------------------------------------------


def compose(panels: list[Panel]) -> Image.Image:
    """The panels side by side: caption, picture, and a piece of the page below it."""
    width = len(panels) * (PANEL_WIDTH + GAP) - GAP
    strip = Image.new("RGB", (width, CAPTION_HEIGHT + PANEL_HEIGHT + PIECE_HEIGHT), "white")
    draw = ImageDraw.Draw(strip)
    for number, panel in enumerate(panels):
        x = number * (PANEL_WIDTH + GAP)
        title, line = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(LINE_SIZE)
        draw.text((x, 4), panel.title, INK, title, stroke_width=0.6)
        for row, text in enumerate(panel.lines):
            draw.text((x, 48 + row * LINE_HEIGHT), text, FAINT, line)
        view = panel.view.resize((PANEL_WIDTH, PANEL_HEIGHT), Image.Resampling.LANCZOS)
        strip.paste(view, (x, CAPTION_HEIGHT))
        piece = panel.piece.copy()
        piece.thumbnail((PANEL_WIDTH, PIECE_HEIGHT - 28), Image.Resampling.LANCZOS)
        left = x + (PANEL_WIDTH - piece.width) // 2
        below = CAPTION_HEIGHT + PANEL_HEIGHT + (PIECE_HEIGHT - piece.height) // 2
        strip.paste(piece, (left, below))
    return strip


if __name__ == "__main__":
    main()
