"""Regions from masks, of every type and as Label Studio takes them, and masks from regions."""

import base64
import io
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.errors import RegionError, RleError
from backend.labeling import brush_rle
from backend.labeling.concepts import concepts_for
from backend.labeling.config import parse_label_config
from backend.labeling.region_masks import region_mask
from backend.labeling.regions import InstanceMask, new_region_id, regions_for
from backend.labeling.validation import validate
from tests.support.masks import dice

HEIGHT, WIDTH = 90, 140
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
LABELLED = ("BrushLabels", "BitmaskLabels", "PolygonLabels", "EllipseLabels", "RectangleLabels")
BARE = ("Brush", "Bitmask", "Polygon", "Ellipse", "Rectangle")


def config_xml(*tags: str, attributes: str = "") -> str:
    labels = '<Label value="Tumor"/><Label value="Cyst"/>'
    controls = "".join(
        f'<{tag} name="{tag.lower()}" toName="image" {attributes}>'
        f"{labels if tag.endswith('Labels') else ''}</{tag}>"
        for tag in tags
    )
    extra = (
        "" if tags[0].endswith("Labels") else f'<Labels name="l" toName="image">{labels}</Labels>'
    )
    return f'<View><Image name="image" value="$image"/>{controls}{extra}</View>'


def concept_of(xml: str):
    return concepts_for(parse_label_config(xml), {})[0]


def ellipse(row=40.0, column=70.0, radius_y=20.0, radius_x=35.0, degrees=0.0) -> np.ndarray:
    dy, dx = ROWS + 0.5 - row, COLUMNS + 0.5 - column
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
    return (along / radius_x) ** 2 + (across / radius_y) ** 2 <= 1


def made(tag: str, mask: np.ndarray, **options):
    height, width = mask.shape
    instances = [InstanceMask(mask, 0.75)]
    return regions_for(
        concept_of(config_xml(tag)), instances, width=width, height=height, **options
    )


@pytest.mark.parametrize("tag", LABELLED)
class TestEveryLabelledTag:
    def test_the_frame_around_the_value(self, tag):
        (region,) = made(tag, ellipse())
        kind = tag.lower()
        assert {key: value for key, value in region.items() if key != "value"} == {
            "id": region["id"],
            "from_name": kind,
            "to_name": "image",
            "type": kind,
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "image_rotation": 0,
            "score": 0.75,
        }
        assert region["value"][kind] == ["Tumor"]

    def test_there_and_back(self, tag):
        mask = (COLUMNS >= 20) & (COLUMNS < 60) & (ROWS >= 10) & (ROWS < 50)
        if tag == "EllipseLabels":
            mask = ellipse(degrees=20)
        (region,) = made(tag, mask)
        assert dice(region_mask(region, HEIGHT, WIDTH), mask) >= 0.99

    def test_label_studio_accepts_it(self, tag):
        validate(made(tag, ellipse()) + made(tag, ellipse(radius_x=3)), config_xml(tag))

    def test_pages_and_empty_masks(self, tag):
        (region,) = made(tag, ellipse(), item_index=3)
        assert region["item_index"] == 3
        assert made(tag, np.zeros((HEIGHT, WIDTH), dtype=bool)) == []

    def test_a_mask_of_another_size(self, tag):
        with pytest.raises(RegionError, match=r"mask of .90, 140., but the image has"):
            regions_for(
                concept_of(config_xml(tag)),
                [InstanceMask(ellipse(), 0.5)],
                width=WIDTH + 1,
                height=HEIGHT,
            )


@pytest.mark.parametrize("tag", BARE)
def test_tags_with_labels_beside_them_give_two_results_of_one_id(tag):
    geometry, labels = made(tag, ellipse())
    assert geometry["id"] == labels["id"]
    assert (geometry["from_name"], geometry["type"]) == (tag.lower(), tag.lower())
    assert (labels["from_name"], labels["type"]) == ("l", "labels")
    assert labels["value"] == {**geometry["value"], "labels": ["Tumor"]}
    validate([geometry, labels], config_xml(tag))
    assert (region_mask(labels, HEIGHT, WIDTH) == region_mask(geometry, HEIGHT, WIDTH)).all()


class TestEachShape:
    def test_brush(self):
        (region,) = made("BrushLabels", ellipse())
        assert region["value"]["format"] == "rle"
        assert region["value"]["rle"] == brush_rle.encode(ellipse())

    def test_bitmask_is_black_on_transparent(self):
        (region,) = made("BitmaskLabels", ellipse())
        prefix, data = region["value"]["imageDataURL"].split(",")
        assert prefix == "data:image/png;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
        assert (pixels[..., :3] == 0).all()
        np.testing.assert_array_equal(pixels[..., 3], ellipse() * np.uint8(255))

    def test_polygons_one_per_component_in_percent(self):
        mask = ellipse(column=30, radius_x=15) | ellipse(column=100, radius_x=25)
        first, second = made("PolygonLabels", mask)
        assert first["id"] != second["id"]
        assert first["value"]["closed"] is True
        for region in (first, second):
            assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in region["value"]["points"])
        both = region_mask(first, HEIGHT, WIDTH) | region_mask(second, HEIGHT, WIDTH)
        assert dice(both, mask) >= 0.98

    def test_a_polygon_with_a_hole(self):
        mask = ellipse() & ~ellipse(radius_x=10, radius_y=8)
        (region,) = made("PolygonLabels", mask)
        assert dice(region_mask(region, HEIGHT, WIDTH), mask) >= 0.98
        assert not region_mask(region, HEIGHT, WIDTH)[40, 70]

    def test_a_rectangle_counts_from_pixel_edges(self):
        mask = np.zeros((10, 20), dtype=bool)
        mask[4:7, 2:12] = True
        (region,) = made("RectangleLabels", mask)
        value = region["value"]
        expected = {"x": 10.0, "y": 40.0, "width": 50.0, "height": 30.0, "rotation": 0}
        assert {key: pytest.approx(value[key]) for key in expected} == expected

    def test_a_rectangle_without_a_mask_is_the_models_box(self):
        empty = InstanceMask(np.zeros((10, 20), dtype=bool), 0.5, (-3.0, 2.0, 10.0, 50.0))
        concept = concept_of(config_xml("RectangleLabels"))
        (region,) = regions_for(concept, [empty], width=20, height=10)
        assert region["value"]["x"] == 0
        assert region["value"]["y"] == pytest.approx(20)
        assert region["value"]["width"] == pytest.approx(50)
        assert region["value"]["height"] == pytest.approx(80)

    @pytest.mark.parametrize("degrees", [0, 25, 44, 70, 90, 120, 170])
    def test_ellipses_in_all_directions(self, degrees):
        mask = ellipse(radius_x=30, radius_y=12, degrees=degrees)
        (region,) = made("EllipseLabels", mask)
        assert 0 <= region["value"]["rotation"] < 360
        assert dice(region_mask(region, HEIGHT, WIDTH), mask) >= 0.98

    def test_an_ellipse_around_the_whole_image_stays_within_what_is_allowed(self):
        everything = made("EllipseLabels", np.ones((HEIGHT, WIDTH), dtype=bool))
        assert everything[0]["value"]["radiusX"] == 50
        validate(everything, config_xml("EllipseLabels"))
        validate(made("EllipseLabels", np.ones((1, 1), dtype=bool)), config_xml("EllipseLabels"))


class TestSeveral:
    def test_several_controls_and_instances(self):
        xml = config_xml(*LABELLED)
        instances = [InstanceMask(ellipse(), 0.9), InstanceMask(ellipse(column=20), 0.4)]
        regions = regions_for(concept_of(xml), instances, width=WIDTH, height=HEIGHT)
        assert [region["type"] for region in regions] == [tag.lower() for tag in LABELLED] * 2
        assert [region["score"] for region in regions] == [0.9] * 5 + [0.4] * 5
        assert len({region["id"] for region in regions}) == 10
        validate(regions, xml)

    def test_a_controls_own_threshold(self):
        xml = config_xml("BrushLabels", attributes='model_score_threshold="0.5"')
        instances = [InstanceMask(ellipse(), score) for score in (0.49, 0.5, 0.9)]
        regions = regions_for(concept_of(xml), instances, width=WIDTH, height=HEIGHT)
        assert [region["score"] for region in regions] == [0.5, 0.9]

    def test_a_labels_own_threshold(self):
        xml = config_xml("BrushLabels", attributes='model_score_threshold="0.5"')
        xml = xml.replace('value="Tumor"', 'value="Tumor" score_threshold="0.3"')
        instances = [InstanceMask(ellipse(), score) for score in (0.29, 0.3, 0.9)]
        tumor, cyst = concepts_for(parse_label_config(xml), {})
        scores = [
            [region["score"] for region in regions_for(c, instances, width=WIDTH, height=HEIGHT)]
            for c in (tumor, cyst)
        ]
        assert scores == [[0.3, 0.9], [0.9]]

    def test_only_some_controls(self):
        concept = concept_of(config_xml(*LABELLED))
        (region,) = regions_for(
            concept,
            [InstanceMask(ellipse(), 0.9)],
            width=WIDTH,
            height=HEIGHT,
            controls=concept.controls[2:3],
        )
        assert region["type"] == "polygonlabels"

    @pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
    def test_scores_that_are_none(self, score):
        concept = concept_of(config_xml("BrushLabels"))
        with pytest.raises(RegionError, match="has the score"):
            regions_for(concept, [InstanceMask(ellipse(), score)], width=WIDTH, height=HEIGHT)

    def test_ids(self):
        ids = {new_region_id() for _ in range(2000)}
        assert len(ids) == 2000
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{10,}", one) for one in ids)


class TestRegionsOfAnnotators:
    """What the editor writes and `regions_for` does not."""

    def test_a_rotated_rectangle_turns_about_its_top_left_corner(self):
        value = {"x": 50, "y": 50, "width": 10, "height": 20, "rotation": 90}
        mask = region_mask({"type": "rectanglelabels", "value": value}, 100, 200)
        expected = np.zeros((100, 200), dtype=bool)
        expected[50:70, 80:100] = True  # 20 x 20 pixels, turned to the left of the corner
        np.testing.assert_array_equal(mask, expected)

    @settings(deadline=None)
    @given(st.floats(-360, 360), st.floats(10, 40), st.floats(10, 40))
    def test_area_does_not_depend_on_rotation(self, rotation, width, height):
        value = {"x": 50, "y": 50, "width": width / 4, "height": height / 4, "rotation": rotation}
        mask = region_mask({"value": value}, 400, 400)
        assert np.count_nonzero(mask) == pytest.approx(width * height, rel=0.1)
        oval = {"x": 50, "y": 50, "radiusX": width / 4, "radiusY": height / 4, "rotation": rotation}
        mask = region_mask({"value": oval}, 400, 400)
        assert np.count_nonzero(mask) == pytest.approx(math.pi * width * height, rel=0.05)

    def test_a_closed_vector_path_whatever_the_order_of_its_vertices(self):
        corners = [(10, 10), (60, 10), (60, 50), (10, 50)]
        vertices = [
            {"id": f"v{i}", "prevPointId": f"v{i - 1}" if i else None, "x": x, "y": y}
            for i, (x, y) in enumerate(corners)
        ]
        shuffled = [vertices[i] for i in (2, 0, 3, 1)]
        expected = np.zeros((100, 100), dtype=bool)
        expected[10:50, 10:60] = True
        for order in (vertices, shuffled):
            region = {"type": "vectorlabels", "value": {"vertices": order, "closed": True}}
            np.testing.assert_array_equal(region_mask(region, 100, 100), expected)

    def test_bezier_curves(self):
        """A circle of four curves; 0.5523 of the radius is the usual handle."""
        handle = 0.5523 * 40
        around = [(50, 10), (90, 50), (50, 90), (10, 50)]
        ahead = [(handle, 0), (0, handle), (-handle, 0), (0, -handle)]
        vertices = [
            {
                "x": x,
                "y": y,
                "isBezier": True,
                "controlPoint1": {"x": x - dx, "y": y - dy},
                "controlPoint2": {"x": x + dx, "y": y + dy},
            }
            for (x, y), (dx, dy) in zip(around, ahead, strict=True)
        ]
        region = {"type": "vector", "value": {"vertices": vertices, "closed": True}}
        rows, columns = np.mgrid[:100, :100] + 0.5
        assert dice(region_mask(region, 100, 100), np.hypot(rows - 50, columns - 50) < 40) > 0.99

    def test_a_bitmask_with_soft_edges(self):
        rgba = np.zeros((5, 6, 4), dtype=np.uint8)
        rgba[1, 2, 3], rgba[3, 4, 3] = 1, 255
        buffer = io.BytesIO()
        Image.fromarray(rgba).save(buffer, format="PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        mask = region_mask({"type": "bitmasklabels", "value": {"imageDataURL": url}}, 5, 6)
        assert np.argwhere(mask).tolist() == [[1, 2], [3, 4]]
        with pytest.raises(RegionError, match="5 x 6 pixels, but its image has 6 x 5"):
            region_mask({"type": "bitmasklabels", "value": {"imageDataURL": url}}, 6, 5)

    @pytest.mark.parametrize(
        ("kind", "value", "match"),
        [
            ("keypointlabels", {"x": 1, "y": 2, "width": 0.3}, "'keypointlabels' has no mask"),
            ("choices", {"choices": ["good"]}, "has no mask"),
            ("textarea", None, "has no value"),
            ("polygonlabels", {"points": [[1, 1], [2, 2]]}, "at least three points"),
            ("polygonlabels", {"points": [[1, 1], [2], [3, 3]]}, "at least three points"),
            ("polygonlabels", {"points": "none"}, "at least three points"),
            ("polygonlabels", {"points": [[1, 1], [2, 2], [3, float("nan")]]}, "finite"),
            ("polygonlabels", {"points": [[1, 1], [2, 2], [3, 1]], "closed": False}, "not closed"),
            ("vector", {"vertices": [{"x": 1, "y": 1}], "closed": True}, "at least two vertices"),
            ("vector", {"vertices": [{"x": 1, "y": 1}] * 3}, "not closed"),
            ("vector", {"vertices": [1, 2, 3], "closed": True}, "list of points"),
            ("vector", {"vertices": [{"x": 1, "y": None}] * 3, "closed": True}, "must be a number"),
            ("rectanglelabels", {"x": 1, "y": 1, "width": "3", "height": 3}, '"width" must be'),
            ("ellipselabels", {"x": 1, "y": 1, "radiusX": 3}, '"radiusY" must be a number'),
            ("bitmasklabels", {"imageDataURL": "https://x/y.png"}, "must be a PNG data URL"),
            ("bitmasklabels", {"imageDataURL": "data:image/png;base64,!!"}, "cannot be read"),
            ("bitmasklabels", {"imageDataURL": "data:image/png;base64,AAAA"}, "cannot be read"),
        ],
    )
    def test_regions_without_a_mask(self, kind, value, match):
        with pytest.raises(RegionError, match=match):
            region_mask({"type": kind, "value": value}, 50, 60)

    def test_a_brush_of_another_image(self):
        (region,) = made("BrushLabels", ellipse())
        with pytest.raises(RleError, match="belongs to another image"):
            region_mask(region, WIDTH, WIDTH)

    def test_radii_of_zero(self):
        value = {"x": 50, "y": 50, "radiusX": 0, "radiusY": 5}
        assert not region_mask({"type": "ellipselabels", "value": value}, 50, 60).any()
