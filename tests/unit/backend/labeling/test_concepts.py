"""Phrases to look for: from the task, what was typed and the labels, and back to labels."""

import pytest

from backend.errors import LabelConfigError
from backend.labeling.concepts import MOST_CONCEPTS, concept_of_label, concepts_for, remarks
from backend.labeling.config import parse_label_config


def config_of(*labels: str, more: str = "", attributes: str = ""):
    inner = "".join(f"<Label {label}/>" for label in labels)
    return parse_label_config(
        f'<View><Image name="image" value="$image"/>'
        f'<BrushLabels name="brush" toName="image" {attributes}>{inner}</BrushLabels>{more}</View>'
    )


ONE = config_of('value="Lesion" prompt="skin lesion"')
TWO = config_of('value="Crack"', 'value="Rust" prompt="orange rust"', 'value="Dirt" prompt=""')


def pairs(config, data=None, texts=()):
    return [(concept.phrase, concept.label) for concept in concepts_for(config, data or {}, texts)]


def test_labels_are_the_last_source():
    assert pairs(TWO) == [("Crack", "Crack"), ("orange rust", "Rust")]
    assert pairs(TWO, {"image": "/a.png", "prompts": None, "text": ""}, [" "]) == pairs(TWO)
    assert pairs(TWO, {"prompts": {}}) == pairs(TWO)
    assert pairs(TWO, {"prompts": []}) == pairs(TWO)


def test_the_tasks_text_comes_before_the_typed_one_and_that_before_the_labels():
    data = {"prompts": {"Rust": "task"}, "text": "Rust: caption"}
    assert pairs(TWO, data, ["Rust: typed"]) == [("task", "Rust")]
    assert pairs(TWO, {"text": "crack"}, ["Rust: typed"]) == [("Crack", "Crack")]
    assert pairs(TWO, {"text": "Rust: caption"}, ["Rust: typed"]) == [("typed", "Rust")]
    assert pairs(TWO, {}, ["Rust: typed"]) == [("typed", "Rust")]


class TestPromptsOfTheTask:
    @pytest.mark.parametrize(
        ("prompts", "expected"),
        [
            ({"Rust": "brown stain"}, [("brown stain", "Rust")]),
            ({"rust ": "brown stain"}, [("brown stain", "Rust")]),
            ({"Rust": ["a", "b"], "Crack": "c"}, [("a", "Rust"), ("b", "Rust"), ("c", "Crack")]),
            ({"Rust": "dark, irregular mass"}, [("dark, irregular mass", "Rust")]),
            ({"Rust": "Crack: a; b"}, [("Crack: a; b", "Rust")]),
            ('{"Rust": "dark, irregular mass"}', [("dark, irregular mass", "Rust")]),
            ('{"Rust": ["a, b", "c"]}', [("a, b", "Rust"), ("c", "Rust")]),
            ({"Rust": None, "Crack": "thin crack"}, [("thin crack", "Crack")]),
            ({"Dirt": "mud"}, [("mud", "Dirt")]),
            (["RUST", "crack"], [("orange rust", "Rust"), ("Crack", "Crack")]),
            (["Orange Rust"], [("orange rust", "Rust")]),
            ("crack; rust\ndirt", [("Crack", "Crack"), ("orange rust", "Rust"), ("Dirt", "Dirt")]),
            ("Rust: brown  stain", [("brown stain", "Rust")]),
            (["rust", "Rust", "orange rust"], [("orange rust", "Rust")]),
            ('{"Rust": "brown stain"}', [("brown stain", "Rust")]),
            ('["rust"]', [("orange rust", "Rust")]),
        ],
    )
    def test_mapping_to_labels(self, prompts, expected):
        assert pairs(TWO, {"prompts": prompts}) == expected

    def test_a_single_label_takes_every_phrase(self):
        assert pairs(ONE, {"prompts": "dark mole, scar"}) == [
            ("dark mole", "Lesion"),
            ("scar", "Lesion"),
        ]
        assert pairs(ONE, {"prompts": ["Lesion"]}) == [("skin lesion", "Lesion")]

    @pytest.mark.parametrize(
        "prompts", [["brown stain"], "brown stain", {"Stain": "x"}, "Stain: brown"]
    )
    def test_a_phrase_for_no_label_is_refused(self, prompts):
        with pytest.raises(LabelConfigError, match='none of the labels "Crack", "Rust", "Dirt"'):
            concepts_for(TWO, {"prompts": prompts})

    def test_a_mapping_must_name_the_label_even_if_there_is_only_one(self):
        with pytest.raises(LabelConfigError, match='has "Tumor", which is none of the labels'):
            concepts_for(ONE, {"prompts": {"Tumor": "mass"}})

    @pytest.mark.parametrize("prompts", [7, ["a", 7], {"Rust": 7}, {"Rust": {"x": 1}}])
    def test_not_a_text(self, prompts):
        with pytest.raises(LabelConfigError, match="must be a text, a list of texts"):
            concepts_for(TWO, {"prompts": prompts})


SIGNS = config_of(
    'value="Tumor, malignant"',
    'value="Tumor"',
    'value="BI-RADS"',
    'value="BI-RADS: 4"',
    'value="Cyst; simple" prompt="simple cyst"',
    'value="Naevus" alias="N-1" prompt="mole"',
    'value="roi"',
    'value="ROI"',
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tumor, malignant", [("Tumor, malignant", "Tumor, malignant")]),
        ("tumor,  malignant", [("Tumor, malignant", "Tumor, malignant")]),
        ("Tumor", [("Tumor", "Tumor")]),
        (
            "Tumor, Tumor, malignant",
            [("Tumor", "Tumor"), ("Tumor, malignant", "Tumor, malignant")],
        ),
        ("BI-RADS: 4", [("BI-RADS: 4", "BI-RADS: 4")]),
        ("BI-RADS: 4: dense mass", [("dense mass", "BI-RADS: 4")]),
        ("BI-RADS: 5", [("5", "BI-RADS")]),
        (
            "Tumor, malignant: dark mass, BI-RADS: 4",
            [("dark mass", "Tumor, malignant"), ("BI-RADS: 4", "BI-RADS: 4")],
        ),
        ("Cyst; simple\nTumor", [("simple cyst", "Cyst; simple"), ("Tumor", "Tumor")]),
        ("Naevus", [("mole", "N-1")]),
        ("N-1: dark spot", [("dark spot", "N-1")]),
        ("roi, ROI", [("roi", "roi"), ("ROI", "ROI")]),
    ],
)
def test_names_with_signs_are_never_taken_apart(text, expected):
    assert pairs(SIGNS, {"prompts": text}) == expected
    if len(expected) == 1:
        assert pairs(SIGNS, {"prompts": [text]}) == expected
        assert pairs(SIGNS, {}, [text]) == expected


def test_a_name_that_two_labels_have_is_refused():
    with pytest.raises(LabelConfigError, match=r'data\.prompts has "Roi", which is none'):
        concepts_for(SIGNS, {"prompts": "Roi"})


REPORT = "Patient 12, male, 54 y; no tumor"


class TestOtherTexts:
    @pytest.mark.parametrize(
        "text",
        [
            REPORT,
            "tumor",
            "no lesion, tumor",
            "Lesion: none",
            "dark mole",
            "Lesion, dark mole",
            {"a": 1},
            7,
            "",
        ],
    )
    def test_a_report_is_no_prompt(self, text):
        assert pairs(ONE, {"text": text, "report": text}) == [("skin lesion", "Lesion")]
        assert pairs(TWO, {"text": text, "report": text}) == pairs(TWO)

    def test_names_of_labels_and_nothing_else(self):
        assert pairs(TWO, {"text": "rust; dirt"}) == [("orange rust", "Rust"), ("Dirt", "Dirt")]
        assert pairs(SIGNS, {"text": "BI-RADS: 4"}) == [("BI-RADS: 4", "BI-RADS: 4")]

    def test_where_the_config_says_that_it_holds_prompts(self):
        text = '<Text name="t" value="$text" prompts="true"/>'
        one = config_of('value="Lesion"', more=text)
        two = config_of('value="Crack"', 'value="Rust"', more=text)
        assert pairs(one, {"text": "dark mole, scar"}) == [
            ("dark mole", "Lesion"),
            ("scar", "Lesion"),
        ]
        assert pairs(two, {"text": "Rust: brown"}) == [("brown", "Rust")]
        for empty in ({}, {"text": None}, {"text": ""}, {"text": []}):
            assert pairs(two, empty) == [("Crack", "Crack"), ("Rust", "Rust")]
        with pytest.raises(LabelConfigError, match=r'data\.text has "Patient 12"'):
            concepts_for(two, {"text": REPORT})
        with pytest.raises(LabelConfigError, match='prompts="true" and value="x"'):
            config_of('value="A"', more='<Text name="t" value="x" prompts="true"/>')


class TestTypedText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("rusty edge", ("rusty edge", "Rust")),
            ("a large crack, left", ("a large crack, left", "Crack")),
            ("Crack: hairline", ("hairline", "Crack")),
            ("rust", ("orange rust", "Rust")),
            ("something else", ("something else", "Crack")),
            ("пятно", ("пятно", "Crack")),
        ],
    )
    def test_always_goes_to_some_label(self, text, expected):
        assert pairs(TWO, {}, [text]) == [expected]

    def test_several(self):
        assert pairs(TWO, {}, ["rusty edge", "crack"]) == [
            ("rusty edge", "Rust"),
            ("Crack", "Crack"),
        ]


def test_controls_and_thresholds():
    box = (
        '<RectangleLabels name="box" toName="image" model_score_threshold="0.2">'
        '<Label value="Tumor"/></RectangleLabels>'
    )
    config = config_of('value="Tumor"', more=box, attributes='model_score_threshold="0.6"')
    (concept,) = concepts_for(config, {})
    assert [control.name for control in concept.controls] == ["brush", "box"]
    assert concept.score_threshold == 0.2
    assert concept.controls_of("image") == concept.controls
    assert concept.controls_of("other") == ()
    assert concepts_for(ONE, {})[0].score_threshold is None


def test_labels_with_one_phrase_and_thresholds_of_their_own():
    config = config_of(
        'value="Sure" prompt="nodule" score_threshold="0.7"',
        'value="Maybe" prompt="nodule" score_threshold="0.2"',
        'value="Other" prompt="nodule"',
        attributes='model_score_threshold="0.4"',
    )
    asked = [(concept.phrase, concept.score_threshold) for concept in concepts_for(config, {})]
    assert asked == [("nodule", 0.7), ("nodule", 0.2), ("nodule", 0.4)]
    assert concept_of_label(config, "Maybe").score_threshold == 0.2


def test_concept_of_a_smart_tools_label():
    rust, dirt = concept_of_label(TWO, "Rust"), concept_of_label(TWO, "Dirt")
    assert (rust.phrase, rust.label) == ("orange rust", "Rust")
    assert (dirt.phrase, dirt.label) == ("Dirt", "Dirt"), "the annotator asks, so it is asked"
    assert concept_of_label(TWO, "Unknown") is None


def test_more_concepts_than_a_task_can_take():
    config = config_of(*(f'value="Label {i}"' for i in range(10_000)))
    with pytest.raises(LabelConfigError, match=r"10000 concepts are too many.*data.prompts"):
        concepts_for(config, {})
    assert pairs(config, {"prompts": ["label 9999"]}) == [("Label 9999", "Label 9999")]
    assert f"at most {MOST_CONCEPTS}" in remarks(config)[0]


def test_remarks():
    assert remarks(TWO) == ()
    assert remarks(config_of('value="Ödem"', 'value="Läsion links"')) == ()
    (foreign,) = remarks(config_of('value="Опухоль"', 'value="腫瘍" prompt="tumor"'))
    assert foreign.startswith('Label "Опухоль": the model understands English')
    (wordy,) = remarks(config_of('value="a very large dark mass"'))
    assert "more than three words" in wordy


POINTS = (
    '<KeyPointLabels name="kp" toName="image" smart="true"><Label value="positive"/>'
    '<Label value="negative"/></KeyPointLabels>'
)


def test_remarks_on_clicks_with_labels_that_no_mask_can_have():
    (one,) = remarks(config_of('value="Tumor"', more=POINTS))
    assert one == (
        'Label "positive", "negative" of <KeyPointLabels name="kp"> has no control that can hold a '
        'mask of it, so what is drawn with it is answered for "Tumor": give the tool the labels '
        '"Tumor".'
    )
    (two,) = remarks(config_of('value="A"', 'value="B"', more=POINTS))
    assert 'ends in an error, unseen: give the tool the labels "A", "B".' in two
