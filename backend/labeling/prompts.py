"""Smart prompts: what an annotator drew or typed, read from `/predict`'s context.

The editor sends the new region last, and before it those that belong to it: same kind, same
label, same image. In this way a prompt grows point by point and box by box.

* Rectangles are boxes; a rotated one becomes the upright box around it. Of polygons and ellipses,
  which the editor offers as smart tools too, the box around them is taken.
* Boxes of a label or control that says `exemplar="true"` ask for everything like what is in them.
* The answer to a label or control that says `propagate="true"` goes on to a stack's other pages.
* Key points are points. Brush strokes are strokes: the object is meant in which they are.
* **Negative** are a key point set with Alt (the editor sends `is_positive: false`), any other
  region that says `is_positive: false` or `positive: false`, what is drawn with a label "negative"
  that no mask can have, and every region of a control that says `negative="true"` in the labeling
  config. The editor itself has no gesture for negative boxes: give them a second
  `RectangleLabels` with the same labels and `negative="true"`.
* A context whose `event` is `prewarm` and that holds no regions asks for nothing yet.
* A text area's text is a phrase; of one that says `mode="agent"` it is an instruction.

All positions are percent of the image, clipped to it. Regions of controls that the config does
not have are left out: the editor may still hold some from before the config changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backend.errors import RegionError
from backend.labeling.config import Control, LabelConfig
from backend.labeling.shapes import Point, Region, ellipse_box, number, rectangle_corners

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]
_POSITIVE_FLAGS = ("is_positive", "positive")


@dataclass(frozen=True)
class InteractivePrompt:
    """One interactive request.

    Attributes:
        label: the label that was drawn with; None when only text was typed, or with a tool that
            has no labels.
        texts: phrases typed into a text area.
        instruction: typed for the agent, or nothing.
        boxes: (x0, y0, x1, y1) in percent of the image's width and height, clipped to it.
        box_labels: 1 "this", 0 "not this", one per box.
        points: (x, y) in percent.
        point_labels: 1 "in it", 0 "not in it", one per point.
        strokes: bool (H, W) at the image's size, each a line that was drawn.
        stroke_labels: 1 "in it", 0 "not in it", one per stroke.
        exemplar: the boxes are examples: everything like them is meant, all over the image.
        propagate: the answer goes on to the other pages of a stack.
        item_index: the page of a multi-page image, or None.
        image_name: the `<Image>` that was drawn on or typed for, or None when nothing was.
        prewarm: encode the image only, a prompt will follow.
    """

    label: str | None = None
    texts: tuple[str, ...] = ()
    instruction: str = ""
    boxes: tuple[Box, ...] = ()
    box_labels: tuple[int, ...] = ()
    points: tuple[Point, ...] = ()
    point_labels: tuple[int, ...] = ()
    strokes: "tuple[NDArray[np.bool_], ...]" = ()
    stroke_labels: tuple[int, ...] = ()
    exemplar: bool = False
    propagate: bool = False
    item_index: int | None = None
    image_name: str | None = None
    prewarm: bool = False


def is_prewarm(context: Mapping[str, Any]) -> bool:
    """Whether an interactive request only announces prompts on its image."""
    return context.get("event") == "prewarm" and not context.get("result")


def read_context(
    context: Mapping[str, Any] | None, config: LabelConfig
) -> InteractivePrompt | None:
    """The prompt of an interactive request; None if the request is not interactive.

    Args:
        context: `params.context` of `/predict`.
        config: the labeling config of the same request.

    Raises:
        RegionError: a region has coordinates that are not finite numbers, or a damaged mask.
    """
    if isinstance(context, Mapping) and is_prewarm(context):
        return InteractivePrompt(prewarm=True)
    if not isinstance(context, Mapping) or "result" not in context:
        return None
    result = context["result"]
    if not isinstance(result, list) or not all(isinstance(region, Mapping) for region in result):
        raise RegionError("The context's result must be a list of regions.")
    known = [
        (region, control)
        for region in result
        if isinstance(region.get("value"), Mapping)
        and (control := config.control(str(region.get("from_name")))) is not None
    ]
    texts = [
        text
        for region, control in known
        if control.tag == "TextArea" and not control.instructs
        for text in _typed(region)
    ]
    # A tool without labels sends its label as a second result of the same id.
    label_of = {region.get("id"): _label(region) for region, _ in known if _label(region)}
    drawn = [
        (region, control)
        for region, control in known
        if control.tag != "TextArea" and region.get("type") != "labels"
    ]
    if not drawn:
        return _of_words(known, texts)
    latest, latest_control = drawn[-1]
    label = label_of.get(latest.get("id"))
    boxes: list[tuple[Box, int]] = []
    points: list[tuple[Point, int]] = []
    strokes: list[tuple[NDArray[np.bool_], int]] = []
    for region, control in drawn:
        # The editor may still hold prompts of another page, image or label: they ask for
        # something else than the region that was drawn last.
        if (control.to_name, _page(region)) != (latest_control.to_name, _page(latest)):
            continue
        own_label = label_of.get(region.get("id"))
        if own_label != label and any(
            name is None or config.outputs_of(name) for name in (own_label, label)
        ):
            continue  # two that no mask can have, "positive" and "negative", mean the same one
        positive = int(not control.negative and _is_positive(region, own_label, config))
        if control.tag in ("KeyPointLabels", "KeyPoint"):
            x, y = (_clipped(number(region["value"], axis)) for axis in ("x", "y"))
            points.append(((x, y), positive))
        elif control.tag.removesuffix("Labels") in ("Brush", "Bitmask"):
            if (stroke := _stroke(region)).any():
                strokes.append((stroke, positive))
        elif (box := _box(region, control)) is not None:
            boxes.append((box, positive))
    return InteractivePrompt(
        label=label,
        texts=tuple(texts),
        boxes=tuple(box for box, _ in boxes),
        box_labels=tuple(positive for _, positive in boxes),
        points=tuple(point for point, _ in points),
        point_labels=tuple(positive for _, positive in points),
        strokes=tuple(stroke for stroke, _ in strokes),
        stroke_labels=tuple(positive for _, positive in strokes),
        exemplar=bool(boxes) and any(label in control.exemplars for _, control in drawn),
        propagate=any(label in control.propagates for _, control in drawn),
        item_index=_page(latest),
        image_name=latest_control.to_name,
    )


def _of_words(known: Sequence[tuple[Region, Control]], texts: Sequence[str]) -> InteractivePrompt:
    """The prompt of what was typed, where nothing is drawn."""
    if not known:
        return InteractivePrompt()
    region, control = known[-1]
    instruction = " ".join(_typed(region)) if control.instructs else ""
    if not texts and not instruction:
        return InteractivePrompt()
    return InteractivePrompt(
        texts=() if instruction else tuple(texts),
        instruction=instruction,
        item_index=_page(region),
        image_name=control.to_name,
    )


def _typed(region: Region) -> list[str]:
    text = region["value"].get("text")
    typed = text if isinstance(text, list) else [text]
    return [" ".join(text.split()) for text in typed if isinstance(text, str) and text.strip()]


def _label(region: Region) -> str | None:
    value = region["value"]
    for key in (str(region.get("type")), "labels"):
        labels = value.get(key)
        if isinstance(labels, list) and labels and isinstance(labels[0], str):
            return labels[0]
    return None


def _is_positive(region: Region, label: str | None, config: LabelConfig) -> bool:
    flags = [part.get(name) for part in (region, region["value"]) for name in _POSITIVE_FLAGS]
    if any(flag in (False, "false") for flag in flags):
        return False
    says_no = label is not None and label.strip().casefold() == "negative"
    return not says_no or bool(config.outputs_of(label or ""))


def _page(region: Region) -> int | None:
    index = region.get("item_index")
    return index if isinstance(index, int) and index >= 0 else None


def _box(region: Region, control: Control) -> Box | None:
    """The upright box around a region, or None if nothing of it is on the image."""
    value = region["value"]
    kind = control.tag.removesuffix("Labels")
    if kind == "Rectangle":
        corners = rectangle_corners(value, *_size(region))
    elif kind == "Ellipse":
        corners = ellipse_box(value, *_size(region))
    else:
        corners = _polygon(value.get("points"))
    if not corners:
        return None
    xs, ys = zip(*corners, strict=True)
    x0, y0, x1, y1 = _clipped(min(xs)), _clipped(min(ys)), _clipped(max(xs)), _clipped(max(ys))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _size(region: Region) -> tuple[float, float]:
    """Height and width of the image; a square one where they are not sent."""
    if region.get("original_width") and region.get("original_height"):
        return number(region, "original_height"), number(region, "original_width")
    return 1.0, 1.0


def _polygon(points: Any) -> list[Point]:
    if not isinstance(points, Sequence) or not all(
        isinstance(point, Sequence) and len(point) == 2 for point in points
    ):
        raise RegionError("A polygon's points must each be [x, y] in percent.")
    pairs = [{"x": x, "y": y} for x, y in points]
    return [(number(pair, "x"), number(pair, "y")) for pair in pairs]


def _stroke(region: Region) -> "NDArray[np.bool_]":
    # Imported here: reading a mask needs NumPy, reading boxes and points does not.
    from backend.labeling.region_masks import region_mask

    width, height = (int(number(region, f"original_{side}")) for side in ("width", "height"))
    return region_mask(region, height, width)


def _clipped(percent: float) -> float:
    return min(max(percent, 0.0), 100.0)
