"""Labeling configs: which controls are served, which prompts and labels they give."""

import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.corrections.label_rules import pages_of
from backend.errors import ImageSourceError, LabelConfigError, QuarantineError
from backend.labeling.concepts import remarks
from backend.labeling.config import Control, ImageObject, Label, parse_label_config

IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="brush" toName="image"><Label value="Tumor"/></BrushLabels>'


def view(*tags: str) -> str:
    return f"<View>{''.join(tags)}</View>"


def outputs(xml: str, label: str = "Tumor") -> list[str]:
    return [control.name for control in parse_label_config(xml).outputs_of(label)]


def test_the_smallest_config():
    config = parse_label_config(view(IMAGE, BRUSH))
    assert config.images == (ImageObject("image", "image", multi_page=False),)
    label = Label("Tumor", "Tumor")
    assert config.controls == (Control("brush", "image", "BrushLabels", (label,)),)
    assert config.labels == (label,)
    assert config.control("brush") is config.controls[0]
    assert config.control("nothing") is None


def test_prompts_aliases_and_thresholds():
    config = parse_label_config(
        view(
            IMAGE,
            '<BrushLabels name="brush" toName="image" model_score_threshold="0.35" smart="true">'
            '<Label value="Tumor" prompt="breast tumor"/><Label value="Cyst" alias="C-01"/>'
            '<Label value="Skin" prompt=""/></BrushLabels>',
        )
    )
    (brush,) = config.controls
    assert brush.score_threshold == 0.35
    assert brush.smart
    assert brush.labels == (
        Label("Tumor", "breast tumor"),
        Label("C-01", "Cyst"),
        Label("Skin", ""),
    )
    assert config.labels == brush.labels[:2], "an empty prompt means: do not ask"


def test_a_prompt_holds_for_the_label_on_every_control():
    config = parse_label_config(
        view(
            IMAGE,
            '<BrushLabels name="brush" toName="image"><Label value="Tumor" prompt="dark mass"/>'
            "</BrushLabels>"
            '<RectangleLabels name="box" toName="image"><Label value="Tumor"/></RectangleLabels>',
        )
    )
    assert config.labels == (Label("Tumor", "dark mass"),)
    assert outputs_of(config, "Tumor") == ["brush", "box"]


def test_a_labels_threshold_holds_on_every_control_and_overrules_theirs():
    config = parse_label_config(
        view(
            IMAGE,
            '<BrushLabels name="brush" toName="image" model_score_threshold="0.6">'
            '<Label value="Tumor" score_threshold="0.3"/><Label value="Cyst"/></BrushLabels>'
            '<RectangleLabels name="box" toName="image"><Label value="Tumor"/>'
            '<Label value="Cyst"/></RectangleLabels>',
        )
    )
    brush, box = config.controls
    assert [brush.threshold_of(label) for label in ("Tumor", "Cyst")] == [0.3, 0.6]
    assert [box.threshold_of(label) for label in ("Tumor", "Cyst")] == [0.3, None]
    assert len(config.labels) == 2, "no label is asked for twice"


def outputs_of(config, label):
    return [control.name for control in config.outputs_of(label)]


def test_nested_views_headers_and_other_case():
    config = parse_label_config(
        '<?xml version="1.0" encoding="utf-8"?><View><Style>.x { color: red }</Style>'
        '<View className="left"><Header value="Image"/><View><image NAME="img" Value="$scan"/>'
        '</View></View><!-- comment --><View><brushlabels name="b" toname="img"><View>'
        '<Header value="Lesions"/><label Value="A"/></View><Label value="A"/><Label value="B"/>'
        "</brushlabels></View></View>"
    )
    assert config.images == (ImageObject("img", "scan", multi_page=False),)
    assert [label.value for label in config.labels] == ["A", "B"]
    assert config.controls[0].tag == "BrushLabels"


def test_every_served_tag_and_what_is_left_alone():
    tags = ["BrushLabels", "BitmaskLabels", "PolygonLabels", "EllipseLabels", "RectangleLabels"]
    config = parse_label_config(
        view(
            IMAGE,
            *(f'<{tag} name="{tag}" toName="image"><Label value="Tumor"/></{tag}>' for tag in tags),
            '<KeyPointLabels name="kp" toName="image"><Label value="Tumor"/></KeyPointLabels>',
            '<TextArea name="prompt" toName="image" smart="true"/>',
            '<TextArea name="note" toName="image" perRegion="true"/>',
            '<Choices name="quality" toName="image"><Choice value="good"/></Choices>',
            '<VectorLabels name="vector" toName="image"><Label value="Tumor"/></VectorLabels>',
            '<Text name="report" value="$text"/>',
            '<Labels name="words" toName="report"><Label value="Word"/></Labels>',
        )
    )
    assert [control.tag for control in config.controls] == [*tags, "KeyPointLabels", "TextArea"]
    assert outputs_of(config, "Tumor") == tags
    assert outputs_of(config, "Word") == []


class TestOutputsAndPromptTools:
    LABEL = '<Label value="Tumor"/>'

    def rectangle(self, attributes: str = "") -> str:
        tag = f'<RectangleLabels name="box" toName="image" {attributes}>'
        return f"{tag}{self.LABEL}</RectangleLabels>"

    @pytest.mark.parametrize(
        ("attributes", "expected"),
        [
            ("", ["brush", "box"]),
            ('smart="false"', ["brush", "box"]),
            ('smart="true"', ["brush"]),
            ('smartOnly="true"', ["brush"]),
            ('smart="true" model_output="true"', ["brush", "box"]),
            ('model_output="false"', ["brush"]),
            ('negative="true"', ["brush"]),
        ],
    )
    def test_a_rectangle_beside_a_brush(self, attributes, expected):
        assert outputs(view(IMAGE, BRUSH, self.rectangle(attributes))) == expected

    def test_a_smart_rectangle_alone_is_a_detection(self):
        assert outputs(view(IMAGE, self.rectangle('smart="true"'))) == ["box"]

    def test_a_smart_rectangle_is_a_prompt_only_for_the_labels_of_the_brush(self):
        both = '<Label value="Tumor"/><Label value="Cyst"/>'
        box = f'<RectangleLabels name="box" toName="image" smart="true">{both}</RectangleLabels>'
        assert outputs(view(IMAGE, BRUSH, box), "Tumor") == ["brush"]
        assert outputs(view(IMAGE, BRUSH, box), "Cyst") == ["box"]

    def test_a_brush_that_takes_no_predictions_leaves_them_to_the_rectangle(self):
        brush = BRUSH.replace("toName", 'model_output="false" toName')
        assert outputs(view(IMAGE, brush, self.rectangle('smart="true"'))) == ["box"]

    def test_a_brush_on_another_image_does_not_matter(self):
        other = '<Image name="other" value="$other"/>'
        brush = BRUSH.replace('"image"', '"other"')
        xml = view(IMAGE, other, brush, self.rectangle('smart="true"'))
        assert outputs(xml) == ["brush", "box"]

    def test_key_points_cannot_hold_predictions(self):
        key_points = (
            '<KeyPointLabels name="kp" toName="image" model_output="true">'
            f"{self.LABEL}</KeyPointLabels>"
        )
        with pytest.raises(LabelConfigError, match="cannot hold predictions"):
            parse_label_config(view(IMAGE, BRUSH, key_points))


class TestTagsWithoutLabels:
    def test_labels_beside_them(self):
        config = parse_label_config(
            view(
                IMAGE,
                '<Brush name="mask" toName="image"/><Rectangle name="box" toName="image"/>',
                '<Labels name="what" toName="image"><Label value="Tumor"/></Labels>',
            )
        )
        mask, box = config.controls
        assert (mask.result_type, mask.labels_name) == ("brush", "what")
        assert (box.result_type, box.labels_name) == ("rectangle", "what")
        assert config.outputs_of("Tumor") == (mask, box)
        assert config.control("what") is mask

    def test_a_tool_without_any_labels_is_a_prompt(self):
        config = parse_label_config(
            view(IMAGE, BRUSH, '<Rectangle name="box" toName="image" smart="true"/>')
        )
        assert config.controls[1].labels == ()
        assert outputs_of(config, "Tumor") == ["brush"]

    def test_alone_they_are_refused(self):
        with pytest.raises(LabelConfigError, match=r'"mask" are only prompts.*<BrushLabels'):
            parse_label_config(view(IMAGE, '<Brush name="mask" toName="image"/>'))


class TestImages:
    def test_several_images_each_with_its_controls(self):
        config = parse_label_config(
            view(
                '<Image name="cc" value="$cc"/><Image name="mlo" value="$mlo"/>',
                BRUSH.replace('"brush"', '"b1"').replace('"image"', '"cc"'),
                BRUSH.replace('"brush"', '"b2"').replace('"image"', '"mlo"'),
            )
        )
        assert [image.name for image in config.images] == ["cc", "mlo"]
        assert [control.to_name for control in config.outputs_of("Tumor")] == ["cc", "mlo"]

    def test_pages(self):
        image = parse_label_config(view('<Image name="image" valueList="$slices"/>', BRUSH)).images[
            0
        ]
        assert image == ImageObject("image", "slices", multi_page=True)
        assert image.references({"slices": ["/a.png", "/b.png"]}) == ("/a.png", "/b.png")

    @pytest.mark.parametrize(
        ("key", "data"),
        [
            ("image", {"image": "/a.png"}),
            ("scan.png", {"scan": {"png": "/a.png"}}),
            ("scans[1]", {"scans": ["/0.png", "/a.png"]}),
            ("scans[0].url", {"scans": [{"url": "/a.png"}]}),
        ],
    )
    def test_references(self, key, data):
        xml = view(f'<Image name="image" value="${key}"/>', BRUSH)
        assert parse_label_config(xml).images[0].references(data) == ("/a.png",)

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            ({"img": "/a.png"}, 'no image under "image".*its data has "img"'),
            ({}, "its data has nothing"),
            ({"image": None}, "must be the address of an image"),
            ({"image": ""}, "must be the address"),
            ({"image": []}, "must be the address"),
            ({"image": [1]}, "must be the address"),
        ],
    )
    def test_a_task_without_its_image(self, data, match):
        with pytest.raises(ImageSourceError, match=match):
            parse_label_config(view(IMAGE, BRUSH)).images[0].references(data)


TEXT = '<Text name="t" value="$t"/>'
TEXT_LABELS = '<Labels name="l" toName="t"><Label value="W"/></Labels>'


@pytest.mark.parametrize(
    ("xml", "match"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("<View>", "not well-formed XML.*line 1"),
        ("nonsense", "not well-formed XML"),
        ("<View>\ud800</View>", "not well-formed XML"),
        ("<View>\0</View>", "not well-formed XML"),
        ("<a>" * 200_000 + "</a>" * 200_000, "has no <Image>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]>' + view(IMAGE, BRUSH), "DOCTYPE or an ENTITY: remove"),
        ('<! entity a "b">' + view(IMAGE, BRUSH), "not well-formed XML"),
        (view(BRUSH), r'no <Image>: add\s<Image name="image" value="\$image"/>'),
        (view('<Video name="image" value="$v"/>', BRUSH), "no <Image> but a <Video>"),
        (view(TEXT, TEXT_LABELS), "no <Image> but a <Text>"),
        (view('<Image value="$image"/>', BRUSH), "has no name: write <Image name"),
        (view('<Image name="image" value="image"/>', BRUSH), 'value="image".*write value="'),
        (view('<Image name="image"/>', BRUSH), 'value="", which names no key'),
        (view('<Image name="image" valueList="slices"/>', BRUSH), 'valueList="slices"'),
        (view('<Image name="image" value="https://x/$id.png"/>', BRUSH), "names no key"),
        (view(IMAGE), "no control that can hold a mask or a box: add for example <BrushLabels"),
        (
            view(IMAGE, BRUSH.replace('toName="image"', 'toName="img"')),
            'toName="img", but the images are "image": correct',
        ),
        (view(IMAGE, BRUSH.replace('toName="image"', "")), "needs both a name and a toName"),
        (view(IMAGE, BRUSH, BRUSH), 'Two tags have name="brush"'),
        (view(IMAGE, BRUSH.replace("brush", "image")), 'Two tags have name="image"'),
        (
            view(IMAGE, '<BrushLabels name="b" toName="image"/>'),
            'BrushLabels name="b"> has no labels: add <Label',
        ),
        (
            view(IMAGE, '<BrushLabels name="b" toName="image" value="$labels"/>'),
            "from the task's data, which is not supported",
        ),
        (view(IMAGE, BRUSH.replace('value="Tumor"', "")), "has no value"),
        (view(IMAGE, BRUSH.replace("/>", ' prompt=""/>')), 'Every label has prompt=""'),
        (view(IMAGE, BRUSH.replace("toName", 'model_output="maybe" toName')), 'be "true" or "fal'),
        (
            view(IMAGE, BRUSH.replace("toName", 'model_score_threshold="high" toName')),
            'model_score_threshold="high" must be a number from 0 to 1',
        ),
        (
            view(IMAGE, BRUSH.replace("toName", 'model_score_threshold="1.2" toName')),
            "from 0 to 1",
        ),
        *(
            (
                view(IMAGE, BRUSH.replace("/>", f' score_threshold="{text}"/>')),
                f'<Label value="Tumor">: score_threshold="{text}" must be a number from 0 to 1',
            )
            for text in ("high", "nan", "-0.1", "1.2", "inf")
        ),
        (
            view(
                IMAGE,
                BRUSH.replace("/>", ' score_threshold="0.3"/>'),
                '<RectangleLabels name="box" toName="image">'
                '<Label value="Tumor" score_threshold="0.5"/></RectangleLabels>',
            ),
            'The label "Tumor" has two thresholds, 0.3 and 0.5',
        ),
        (
            view(
                IMAGE,
                '<KeyPointLabels name="kp" toName="image"><Label value="A"/></KeyPointLabels>',
                '<TextArea name="text" toName="image"/>',
            ),
            'The controls "kp", "text" are only prompts',
        ),
        (
            view(
                IMAGE,
                '<VectorLabels name="vec" toName="image"><Label value="A"/></VectorLabels>',
                '<Choices name="q" toName="image"><Choice value="good"/></Choices>',
            ),
            'only <VectorLabels name="vec">, <Choices name="q">: add for example',
        ),
        (
            '<View><Repeater on="$images" indexFlag="{{idx}}">'
            '<Image name="page_{{idx}}" value="$images[{{idx}}]"/></Repeater></View>',
            "<Repeater> cannot be served: show the pages with <Image valueList",
        ),
        ("<View>" + " " * 5_000_000 + "</View>", "longer than"),
    ],
)
def test_refusals_say_what_to_change(xml, match):
    with pytest.raises(LabelConfigError, match=match) as error:
        parse_label_config(xml)
    assert "\n" not in str(error.value)


@cache
def many_labels(count: int) -> str:
    labels = "".join(f'<Label value="Label {i}"/>' for i in range(count))
    return view(IMAGE, f'<BrushLabels name="brush" toName="image">{labels}</BrushLabels>')


def test_ten_thousand_labels():
    config = parse_label_config(many_labels(10_000))
    assert len(config.labels) == 10_000
    assert outputs_of(config, "Label 9999") == ["brush"]


def test_labels_in_other_scripts():
    config = parse_label_config(view(IMAGE, BRUSH.replace("Tumor", "Опухоль 腫瘍")))
    assert config.labels == (Label("Опухоль 腫瘍", "Опухоль 腫瘍"),)


TEMPLATES = sorted((Path(__file__).parents[4] / "label_config").glob("*.xml"))
# Okabe and Ito, without black and with grey's neighbours left out.
COLOURS = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2"}


def test_the_templates_are_all_there():
    readme = (Path(__file__).parents[4] / "label_config" / "README.md").read_text()
    assert len(TEMPLATES) >= 7
    assert [template.name for template in TEMPLATES if f"`{template.name}`" not in readme] == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
class TestTemplates:
    def test_label_studios_own_checks(self, template):
        LabelInterface(template.read_text()).validate()

    def test_masks_for_every_label_and_prompts_of_three_words(self, template):
        config = parse_label_config(template.read_text())
        assert remarks(config) == ()
        assert config.labels
        for label in config.labels:
            assert [control.tag for control in config.outputs_of(label.value)] == ["BrushLabels"]
            assert 1 <= len(label.prompt.split()) <= 3

    def test_smart_tools_offer_the_same_labels(self, template):
        config = parse_label_config(template.read_text())
        labels = config.controls[0].label_values
        smart = [control for control in config.controls if control.smart and control.labels]
        assert {control.tag for control in smart} == {"RectangleLabels", "KeyPointLabels"}
        assert all(control.label_values == labels for control in smart)

    def test_colours_and_hotkeys(self, template):
        root = ET.fromstring(template.read_text())  # noqa: S314 - our own files
        controls = [node for node in root if node.findall("Label")]
        hotkeys = [label.get("hotkey") for node in controls for label in node]
        assert len(set(hotkeys)) == len(hotkeys)
        assert None not in hotkeys
        for node in controls:
            colours = [label.get("background") for label in node]
            assert set(colours) <= COLOURS
            assert len(set(colours)) == len(colours)


def test_the_demos_template():
    config = parse_label_config(
        next(path for path in TEMPLATES if path.stem == "brain_mri").read_text()
    )
    assert config.labels == (
        Label("Brain", "brain"),
        Label("Grey matter", "grey matter"),
        Label("White matter", "white matter"),
    )


def test_the_chests_sides():
    """The patient's right lung is on the left of the image, and the template says so."""
    text = next(path for path in TEMPLATES if path.stem == "chest_xray").read_text()
    assert "the right lung is on the left side of the image" in " ".join(text.split())
    labels = parse_label_config(text).labels
    assert Label("Right lung", "right lung") in labels
    assert Label("Left lung", "left lung") in labels


def test_all_smart_tools():
    text = next(path for path in TEMPLATES if path.stem == "all_smart_tools").read_text()
    config = parse_label_config(text)
    assert config.control("text").smart
    assert config.control("not_this").negative
    assert config.control("polygon").model_output is False
    assert not config.control("box").negative


class TestAnImageToLookAt:
    """A second `<Image>` without a control of its own."""

    @pytest.mark.parametrize(
        "second",
        [
            '<Image name="prior" value="$prior"/>',
            '<Image name="prior" valueList="$prior"/>',
            '<Image name="prior" value="/static/atlas.png"/>',
            '<Image value="$prior"/>',
            '<Image name="prior" value="$prior"/><Choices name="c" toName="prior"/>',
            '<Image name="prior" value="$prior"/><TextArea name="t" toName="prior"/>',
        ],
    )
    @pytest.mark.parametrize("order", ["before", "behind"])
    def test_is_no_page_of_the_task(self, second, order):
        drawn = '<Image name="image" value="$image"/>'
        images = second + drawn if order == "before" else drawn + second
        xml = (
            f'<View>{images}<BrushLabels name="b" toName="image"><Label value="Tumor"/>'
            "</BrushLabels></View>"
        )
        config = parse_label_config(xml)
        assert [image.name for image in config.images] == ["image"]
        for prior in ({}, {"prior": None}, {"prior": ""}, {"prior": []}, {"prior": "/b.png"}):
            assert pages_of(xml, {"image": "/a.png", **prior}).references == ("/a.png",)

    def test_one_with_a_control_must_be_there(self):
        box = '<RectangleLabels name="r" toName="prior"><Label value="Tumor"/></RectangleLabels>'
        xml = view(IMAGE, '<Image name="prior" value="$prior"/>', BRUSH, box)
        assert len(parse_label_config(xml).images) == 2
        with pytest.raises(QuarantineError, match='"prior"'):
            pages_of(xml, {"image": "/a.png", "prior": None})


STACK = '<Image name="image" valueList="$images"/>'


def brush(*labels: str) -> str:
    return f'<BrushLabels name="brush" toName="image">{"".join(labels)}</BrushLabels>'


def test_minimum_volumes_hold_for_a_label_on_every_control() -> None:
    boxes = '<RectangleLabels name="box" toName="image"><Label value="Tumor"/></RectangleLabels>'
    tumor = '<Label value="Tumor" min_volume_ml="0.5"/>'
    config = parse_label_config(view(STACK, boxes, brush(tumor, '<Label value="Cyst"/>')))
    assert config.min_volumes_ml == {"Tumor": 0.5}
    assert parse_label_config(view(STACK, BRUSH)).min_volumes_ml == {}


@pytest.mark.parametrize("text", ["1 ml", "-1", "nan", "inf"])
def test_a_minimum_volume_is_a_number_of_millilitres(text: str) -> None:
    xml = view(STACK, brush(f'<Label value="Tumor" min_volume_ml="{text}"/>'))
    with pytest.raises(LabelConfigError, match=f'"Tumor" has min_volume_ml="{text}"'):
        parse_label_config(xml)


def test_a_label_has_one_minimum_volume() -> None:
    two = brush('<Label value="Tumor" min_volume_ml="1"/>') + (
        '<PolygonLabels name="outline" toName="image"><Label value="Tumor" min_volume_ml="2"/>'
        "</PolygonLabels>"
    )
    with pytest.raises(LabelConfigError, match="two minimum volumes, 1 and 2 ml"):
        parse_label_config(view(STACK, two))


def test_a_minimum_volume_on_single_images_is_refused() -> None:
    tumor = brush('<Label value="Tumor" min_volume_ml="0.5"/>')
    with pytest.raises(LabelConfigError, match="only a stack has volumes"):
        parse_label_config(view(IMAGE, tumor))
    assert parse_label_config(view(IMAGE, tumor.replace("0.5", "0"))).min_volumes_ml == {"Tumor": 0}
