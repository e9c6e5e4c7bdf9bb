"""Odd labeling configs: each is read as it is meant, or refused with one sentence."""

import pytest

from backend.errors import LabelConfigError
from backend.labeling.concepts import concepts_for, remarks
from backend.labeling.config import parse_label_config

IMAGE = '<Image name="image" value="$image"/>'
PLAIN = '<Label value="Tumor"/>'


def brush(labels: str, attributes: str = "", name: str = "brush") -> str:
    return f'<BrushLabels name="{name}" toName="image" {attributes}>{labels}</BrushLabels>'


def view(*tags: str, image: str = IMAGE) -> str:
    return f"<View>{image}{''.join(tags)}</View>"


def box(labels: str) -> str:
    return f'<RectangleLabels name="box" toName="image">{labels}</RectangleLabels>'


READ = {
    "plain": (brush(PLAIN), [("Tumor", "Tumor")]),
    "a comma": (brush('<Label value="Tumor, malignant"/>'), [("Tumor, malignant",) * 2]),
    "a colon": (brush('<Label value="BI-RADS: 4"/>'), [("BI-RADS: 4",) * 2]),
    "differ by a colon": (
        brush('<Label value="BI-RADS"/><Label value="BI-RADS: 4"/>'),
        [("BI-RADS",) * 2, ("BI-RADS: 4",) * 2],
    ),
    "differ by case": (
        brush('<Label value="Roi"/><Label value="roi"/>'),
        [("Roi", "Roi"), ("roi", "roi")],
    ),
    "an entity": (brush('<Label value="A &amp; B &lt; 3"/>'), [("A & B < 3",) * 2]),
    "a numeric entity": (brush('<Label value="&#214;dem"/>'), [("Ödem", "Ödem")]),
    "a quote": (brush('<Label value="&quot;x&quot;"/>'), [('"x"', '"x"')]),
    "a line break": (brush('<Label value="dark&#10;mass"/>'), [("dark mass", "dark\nmass")]),
    "two spaces": (brush('<Label value="dark  mass"/>'), [("dark mass", "dark  mass")]),
    "a price": (brush('<Label value="5 $"/>'), [("5 $", "5 $")]),
    "an alias": (brush('<Label value="Cyst" alias="C-1"/>'), [("Cyst", "C-1")]),
    "an empty alias": (brush('<Label value="Cyst" alias=""/>'), [("Cyst", "Cyst")]),
    "an alias alone": (brush('<Label alias="C-1"/>'), [("C-1", "C-1")]),
    "an alias with a prompt": (
        brush('<Label value="Cyst" alias="C-1" prompt="breast cyst"/>'),
        [("breast cyst", "C-1")],
    ),
    "twice the same": (brush(PLAIN + PLAIN), [("Tumor", "Tumor")]),
    "over two controls": (brush(PLAIN) + box(PLAIN), [("Tumor", "Tumor")]),
    "a prompt on one of two": (
        brush(PLAIN) + box('<Label value="Tumor" prompt="mass"/>'),
        [("mass", "Tumor")],
    ),
    "the same prompt on both": (
        brush('<Label value="Tumor" prompt="mass"/>') + box('<Label value="Tumor" prompt="mass"/>'),
        [("mass", "Tumor")],
    ),
    "a view in a control": (brush(f"<View>{PLAIN}</View>"), [("Tumor", "Tumor")]),
    "CDATA and comments": (brush(f"<!-- x -->{PLAIN}<![CDATA[y]]>"), [("Tumor", "Tumor")]),
    "tags in another case": (
        brush(PLAIN).replace("BrushLabels", "brushLABELS"),
        [("Tumor", "Tumor")],
    ),
    "choices with dynamic values": (
        brush(PLAIN) + '<Choices name="c" toName="image" value="$options"/>',
        [("Tumor", "Tumor")],
    ),
    "a label without a prompt": (
        brush(PLAIN + '<Label value="Skin" prompt=" "/>'),
        [("Tumor", "Tumor")],
    ),
    "numbers": (brush('<Label value="1"/><Label value="01"/>'), [("1", "1"), ("01", "01")]),
}


@pytest.mark.parametrize("name", READ)
def test_is_read_as_it_is_meant(name: str) -> None:
    tags, expected = READ[name]
    config = parse_label_config(view(tags))
    asked = [(concept.phrase, concept.label) for concept in concepts_for(config, {})]
    assert asked == expected
    for _, label in expected:
        by_name = concepts_for(config, {"prompts": {label: "a, b"}})
        assert [(concept.phrase, concept.label) for concept in by_name] == [("a, b", label)]
    assert not any("\n" in remark for remark in remarks(config))


REFUSED = {
    "spaces around a label": (view(brush('<Label value=" Tumor "/>')), 'write value="Tumor"'),
    "a space behind a label": (view(brush('<Label value="Tumor&#32;"/>')), 'write value="Tumor"'),
    "a tab": (view(brush('<Label value="&#9;Tumor"/>')), 'write value="Tumor"'),
    "a hard space": (view(brush('<Label value="&#160;Tumor"/>')), 'write value="Tumor"'),
    "spaces around an alias": (view(brush('<Label value="A" alias=" a"/>')), 'write alias="a"'),
    "a label of spaces": (view(brush('<Label value="  "/>')), "has spaces around value"),
    "spaces around a name": (view(brush(PLAIN, name="brush ")), 'write name="brush"'),
    "spaces around toName": (
        view(brush(PLAIN).replace('"image"', '" image"')),
        'write toname="image"',
    ),
    "an image's name with spaces": (
        view(brush(PLAIN), image=IMAGE.replace('"image"', '"image "')),
        'write name="image"',
    ),
    "an alias that is another label": (
        view(brush('<Label value="A" alias="B"/><Label value="B"/>')),
        '"A" and "B".*both stored as "B"',
    ),
    "two labels of one alias": (
        view(brush('<Label value="A" alias="x"/><Label value="B" alias="x"/>')),
        '"A" and "B".*both stored as "x"',
    ),
    "two prompts": (
        view(brush('<Label value="A" prompt="a"/>') + box('<Label value="A" prompt="b"/>')),
        'label "A" has two prompts, "a" and "b"',
    ),
    "asked here and not there": (
        view(brush('<Label value="A" prompt="a"/>') + box('<Label value="A" prompt=""/>')),
        "has two prompts",
    ),
    "dynamic labels": (view(brush("", 'value="$labels"')), "takes its labels from the task"),
    "dynamic labels besides": (
        view(brush(PLAIN, 'value="$labels"')),
        "takes its labels from the task",
    ),
    "a dynamic label": (view(brush('<Label value="$kind"/>')), "comes from the task's data"),
    "a dynamic alias": (
        view(brush('<Label value="A" alias="$kind"/>')),
        "comes from the task's data",
    ),
    "dynamic <Labels>": (
        view(
            '<Brush name="b" toName="image"/><Labels name="l" toName="image" value="$labels"/>',
        ),
        "takes its labels from the task",
    ),
    "two <Labels> for one tool": (
        view(
            f'<Brush name="b" toName="image"/><Labels name="l" toName="image">{PLAIN}</Labels>'
            f'<Labels name="m" toName="image"><Label value="B"/></Labels>'
        ),
        "both label the tools of one image",
    ),
    "a repeater": (
        view(f'<Repeater on="$images">{brush(PLAIN)}</Repeater>'),
        "<Repeater> cannot be served",
    ),
    "a repeater in another case": (
        view(brush(PLAIN), '<repeater on="$x"/>'),
        "<Repeater> cannot be served",
    ),
    "an unknown entity": (view(brush('<Label value="&nbsp;A"/>')), "not well-formed XML"),
    "a bare ampersand": (view(brush('<Label value="A & B"/>')), "not well-formed XML"),
    "an attribute twice": (view(brush('<Label value="A" value="B"/>')), "not well-formed XML"),
    "no value": (view(brush("<Label/>")), "has no value"),
    "two images for one control": (
        view(brush(PLAIN).replace('"image"', '"image,other"')),
        "correct the toName",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_one_sentence(name: str) -> None:
    xml, match = REFUSED[name]
    with pytest.raises(LabelConfigError, match=match) as error:
        parse_label_config(xml)
    assert "\n" not in str(error.value)
