"""Boxes, points and texts in the context of a request."""

import json
from pathlib import Path

import numpy as np
import pytest

from backend.errors import RegionError
from backend.labeling import brush_rle
from backend.labeling.config import parse_label_config
from backend.labeling.prompts import InteractivePrompt, is_prewarm, read_context
from backend.labeling.regions import _png_url

SAMPLES = Path(__file__).parents[3] / "data" / "label_studio"

CONFIG = parse_label_config(
    """<View>
    <Image name="image" valueList="$pages"/><Image name="other" value="$other"/>
    <BrushLabels name="brush" toName="image"><Label value="A"/><Label value="B"/></BrushLabels>
    <BitmaskLabels name="bits" toName="image"><Label value="A"/></BitmaskLabels>
    <PolygonLabels name="poly" toName="image"><Label value="A"/></PolygonLabels>
    <EllipseLabels name="oval" toName="image" smart="true"><Label value="A"/></EllipseLabels>
    <RectangleLabels name="box" toName="image" smart="true">
      <Label value="A"/><Label value="B"/></RectangleLabels>
    <RectangleLabels name="not" toName="image" smart="true" negative="true">
      <Label value="A"/></RectangleLabels>
    <RectangleLabels name="box2" toName="other" smart="true"><Label value="A"/></RectangleLabels>
    <KeyPointLabels name="point" toName="image" smart="true">
      <Label value="A"/><Label value="B"/></KeyPointLabels>
    <Rectangle name="bare" toName="image" smart="true"/>
    <TextArea name="text" toName="image" smart="true"/>
    <Choices name="quality" toName="image"><Choice value="good"/></Choices>
    </View>"""
)


def region(name: str, kind: str, value: dict, label: str = "A", **more) -> dict:
    sizes = {"original_width": 400, "original_height": 200, "image_rotation": 0}
    return {
        "from_name": name,
        "to_name": "image",
        "type": kind,
        "id": f"{name}{len(more)}{value}",
        "value": {**value, kind: [label]},
        **sizes,
        **more,
    }


def box(x=10, y=20, width=30, height=40, rotation=0, name="box", **more) -> dict:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return region(name, "rectanglelabels", value, **more)


def point(x, y, **more) -> dict:
    return region("point", "keypointlabels", {"x": x, "y": y, "width": 0.3}, **more)


def text(*typed, **more) -> dict:
    return region("text", "textarea", {"text": list(typed)}, **more)


def read(*regions) -> InteractivePrompt:
    prompt = read_context({"result": list(regions)}, CONFIG)
    assert prompt is not None
    return prompt


class TestRecordedRequests:
    def prompt(self, name: str) -> InteractivePrompt | None:
        body = json.loads((SAMPLES / f"interactive_{name}.json").read_text())["body"]
        return read_context(body["params"]["context"], parse_label_config(body["label_config"]))

    def test_rectangle(self):
        assert self.prompt("rectangle") == InteractivePrompt(
            label="Rust",
            boxes=(
                (
                    31.0727496917386,
                    31.011097410604187,
                    31.0727496917386 + 37.854500616522806,
                    31.011097410604187 + 37.977805178791634,
                ),
            ),
            box_labels=(1,),
            image_name="image",
        )

    def test_key_points(self):
        prompt = self.prompt("keypoints")
        assert prompt.label == "Crack"
        assert prompt.point_labels == (1, 1, 0)
        assert prompt.points[2] == (21.57829839704069, 21.475544595150016)
        assert prompt.boxes == ()

    def test_text(self):
        prompt = self.prompt("text")
        assert prompt == InteractivePrompt(texts=("rusty edge",), image_name="image")

    def test_a_deleted_prompt(self):
        prompt = self.prompt("empty")
        assert prompt == InteractivePrompt()


@pytest.mark.parametrize("context", [None, {}, {"draft_id": 3}])
def test_requests_that_are_not_interactive(context):
    assert read_context(context, CONFIG) is None


class TestBoxes:
    def test_several(self):
        prompt = read(box(), box(x=50))
        assert prompt.boxes == ((10, 20, 40, 60), (50, 20, 80, 60))
        assert prompt.box_labels == (1, 1)

    def test_negative_ones(self):
        prompt = read(box(), box(x=50, name="not"), box(x=60, is_positive=False))
        assert prompt.box_labels == (1, 0, 0)

    def test_clipped_to_the_image(self):
        assert read(box(x=-10, y=90, width=200, height=50)).boxes == ((0, 90, 100, 100),)

    def test_nothing_of_it_on_the_image(self):
        prompt = read(box(x=120))
        assert prompt.boxes == ()
        assert read(box(width=0)).boxes == ()

    def test_a_quarter_turn_is_meant_in_pixels(self):
        """40 x 80 pixels at (200, 100) of 400 x 200, turned: 80 to the left, 40 down."""
        prompt = read(box(x=50, y=50, width=10, height=40, rotation=90))
        np.testing.assert_allclose(prompt.boxes[0], (30, 50, 50, 70))

    @pytest.mark.parametrize("rotation", [-30, 15, 45, 200, 359])
    def test_the_hull_is_that_of_the_filled_rectangle(self, rotation):
        from backend.labeling.region_masks import region_mask

        drawn = box(x=45, y=40, width=20, height=30, rotation=rotation)
        mask = region_mask(drawn, 200, 400)
        x0, y0, x1, y1 = read(drawn).boxes[0]
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        np.testing.assert_allclose((x0 * 4, x1 * 4), (columns[0], columns[-1] + 1), atol=1.5)
        np.testing.assert_allclose((y0 * 2, y1 * 2), (rows[0], rows[-1] + 1), atol=1.5)


class TestOtherShapes:
    def test_polygon(self):
        points = [[10, 10], [30, 20], [20, 50]]
        assert read(region("poly", "polygonlabels", {"points": points})).boxes == (
            (10, 10, 30, 50),
        )

    @pytest.mark.parametrize("rotation", [0, 30, 90, 135])
    def test_ellipse(self, rotation):
        from backend.labeling.region_masks import region_mask

        value = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": rotation}
        drawn = region("oval", "ellipselabels", value)
        columns = np.flatnonzero(region_mask(drawn, 200, 400).any(axis=0))
        x0, _, x1, _ = read(drawn).boxes[0]
        np.testing.assert_allclose((x0 * 4, x1 * 4), (columns[0], columns[-1] + 1), atol=1.5)

    def test_brush_and_bitmask_are_strokes(self):
        mask = np.zeros((200, 400), dtype=bool)
        mask[20:60, 100:200] = True
        drawn = region("brush", "brushlabels", {"format": "rle", "rle": brush_rle.encode(mask)})
        bits = region("bits", "bitmasklabels", {"imageDataURL": _png_url(mask)})
        for prompt in (read(drawn), read(bits)):
            (stroke,) = prompt.strokes
            np.testing.assert_array_equal(stroke, mask)
            assert (prompt.stroke_labels, prompt.boxes) == ((1,), ())
        assert read({**drawn, "is_positive": False}).stroke_labels == (0,)
        empty = {"format": "rle", "rle": brush_rle.encode(np.zeros_like(mask))}
        assert read(region("brush", "brushlabels", empty)).strokes == ()

    @pytest.mark.parametrize(
        ("on_control", "on_label", "exemplar"),
        [("", "", False), ('exemplar="true"', "", True), ("", 'exemplar="true"', True)],
    )
    def test_exemplars(self, on_control, on_label, exemplar):
        config = parse_label_config(
            '<View><Image name="image" value="$image"/>'
            '<BrushLabels name="brush" toName="image"><Label value="A"/></BrushLabels>'
            f'<RectangleLabels name="box" toName="image" smart="true" {on_control}>'
            f'<Label value="A" {on_label}/></RectangleLabels></View>'
        )
        assert read_context({"result": [box(label="A")]}, config).exemplar == exemplar


class TestWhatBelongsTogether:
    def test_other_labels_pages_and_images_do_not(self):
        prompt = read(
            point(1, 1, label="B", item_index=2),
            point(2, 2, item_index=1),
            box(name="box2", to_name="other"),
            point(3, 3, item_index=2),
            point(4, 4, item_index=2, is_positive=False),
        )
        assert prompt.points == ((3, 3), (4, 4))
        assert prompt.point_labels == (1, 0)
        assert prompt.boxes == ()
        assert (prompt.label, prompt.item_index, prompt.image_name) == ("A", 2, "image")

    def test_boxes_points_and_text_at_once(self):
        prompt = read(text("dark mass"), box(), point(20, 120))
        assert prompt.texts == ("dark mass",)
        assert prompt.boxes == ((10, 20, 40, 60),)
        assert prompt.points == ((20, 100),)

    def test_unknown_and_other_controls_are_left_out(self):
        choice = {"from_name": "quality", "to_name": "image", "type": "choices"}
        prompt = read(
            box(name="gone"), {**choice, "value": {"choices": ["good"]}}, {"id": "relation"}
        )
        assert prompt == InteractivePrompt()

    def test_text_on_a_page(self):
        prompt = read(text(" large  mass ", "", item_index=3))
        assert prompt.texts == ("large mass",)
        assert prompt.item_index == 3
        assert read(text(item_index=0)) == InteractivePrompt()

    def test_an_instruction_is_no_phrase(self):
        config = parse_label_config(
            """<View><Image name="image" value="$image"/>
            <BrushLabels name="brush" toName="image"><Label value="A" mode="agent"/></BrushLabels>
            <TextArea name="text" toName="image" smart="true" mode="agent"/></View>"""
        )
        prompt = read_context({"result": [text("the larger,", "no shadow")]}, config)
        assert prompt == InteractivePrompt(instruction="the larger, no shadow", image_name="image")
        assert config.agent_labels == {"A"}

    def test_a_tool_without_labels(self):
        bare = box(name="bare")
        bare["type"] = "rectangle"
        del bare["value"]["rectanglelabels"]
        assert read(bare).label is None
        assert read(bare).boxes == ((10, 20, 40, 60),)

    def test_the_label_in_a_result_of_its_own(self):
        config = parse_label_config(
            '<View><Image name="image" value="$image"/><Brush name="mask" toName="image"/>'
            '<Rectangle name="bare" toName="image" smart="true"/>'
            '<Labels name="what" toName="image"><Label value="A"/><Label value="B"/>'
            "</Labels></View>"
        )
        value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}
        common = {"id": "r1", "to_name": "image"}
        result = [
            {**common, "from_name": "bare", "type": "rectangle", "value": value},
            {**common, "from_name": "what", "type": "labels", "value": {**value, "labels": ["B"]}},
        ]
        prompt = read_context({"result": result}, config)
        assert prompt.label == "B"
        assert prompt.boxes == ((10, 20, 40, 60),)


CLICKS = parse_label_config(
    """<View><Image name="image" value="$image"/>
    <BrushLabels name="brush" toName="image"><Label value="Tumor"/></BrushLabels>
    <KeyPointLabels name="point" toName="image" smart="true">
      <Label value="Positive"/><Label value="negative"/><Label value="Tumor"/></KeyPointLabels>
    </View>"""
)


class TestPositiveAndNegative:
    @pytest.mark.parametrize(
        ("more", "positive"),
        [
            ({}, 1),
            ({"is_positive": True}, 1),
            ({"is_positive": False}, 0),
            ({"positive": True}, 1),
            ({"positive": False}, 0),
            ({"positive": 0}, 0),
            ({"positive": "false"}, 0),
            ({"positive": False, "is_positive": True}, 0),
            ({"positive": None}, 1),
        ],
    )
    def test_both_flags_of_a_point(self, more, positive):
        assert read(point(1, 1, **more)).point_labels == (positive,)
        in_value = region("point", "keypointlabels", {"x": 1, "y": 1, **more})
        assert read(in_value).point_labels == (positive,)

    def test_labels_that_no_mask_can_have(self):
        result = [point(1, 1, label="Positive"), point(2, 2, label="negative", number=2)]
        prompt = read_context({"result": result}, CLICKS)
        assert prompt.points == ((1, 1), (2, 2))
        assert prompt.point_labels == (1, 0)
        with_own = [*result, point(3, 3, label="Tumor", number=3, more=1)]
        assert read_context({"result": with_own}, CLICKS).points == ((3, 3),)

    def test_a_mask_label_of_that_name_is_a_label(self):
        config = parse_label_config(
            '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">'
            '<Label value="negative"/></BrushLabels><KeyPointLabels name="point" toName="image">'
            '<Label value="negative"/></KeyPointLabels></View>'
        )
        prompt = read_context({"result": [point(1, 1, label="negative")]}, config)
        assert prompt.point_labels == (1,)


@pytest.mark.parametrize(
    ("context", "warms"),
    [
        ({"event": "prewarm"}, True),
        ({"event": "prewarm", "result": []}, True),
        ({"event": "prewarm", "result": None}, True),
        ({"event": "prewarm", "result": [point(1, 1)]}, False),
        ({"result": []}, False),
    ],
)
def test_prewarming(context, warms):
    assert is_prewarm(context) == warms
    assert read_context(context, CONFIG).prewarm == warms


@pytest.mark.parametrize(
    "broken",
    [
        box(x="10"),
        box(width=float("nan")),
        box(height=None),
        box(rotation=float("inf")),
        point(True, 3),
        region("point", "keypointlabels", {"x": 3}),
        region("poly", "polygonlabels", {"points": [[1]]}),
        region("poly", "polygonlabels", {"points": 7}),
        region("brush", "brushlabels", {"rle": [1, 2, 3]}),
        "not a region",
    ],
)
def test_damaged_regions_are_refused(broken):
    with pytest.raises(RegionError):
        read_context({"result": [broken]}, CONFIG)
    with pytest.raises(RegionError):
        read_context({"result": "text"}, CONFIG)
