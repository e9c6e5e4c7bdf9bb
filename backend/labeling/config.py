"""Label Studio's labeling config: its images, controls and labels, as far as the model serves them.

The web process reads configs too, so nothing heavy is imported here. Tag and attribute names are
matched without regard to case, as in the editor.

Served controls: `BrushLabels`, `BitmaskLabels`, `PolygonLabels`, `EllipseLabels`,
`RectangleLabels`, and `Brush`, `Bitmask`, `Polygon`, `Ellipse`, `Rectangle` beside a `Labels` of
the same image. `KeyPointLabels` and `TextArea` are prompts only. All others are left alone.

**Which controls are outputs** (decided per label and image):

1. `model_output="true"` or `"false"` on the control decides.
2. Mask controls (brush, bitmask, polygon) are outputs.
3. `RectangleLabels` and `EllipseLabels` are outputs, unless they say `smart="true"` or
   `smartOnly="true"` and a mask control that is an output has the same label: then they are
   prompt tools.
4. Key points and text areas never are.

Attributes of our own, which Label Studio ignores: on `<Label>`, `prompt` (the phrase for the model
instead of the label's value; `prompt=""`: never ask for this label), `score_threshold` (0 to 1, in
the place of the control's `model_score_threshold`), `everything="true"` (all objects of whatever
kind, without a name) and `exemplar="true"` (a smart box with this label asks for everything like
what is in it; on a control: with any of its labels), `propagate="true"` (likewise: a smart tool's
answer goes on to the other pages of a stack), `min_volume_ml` (smaller objects of a stack are left
out; in millilitres) and `mode="agent"` (an agent looks at uncertain answers for this label); on a
`<TextArea>`, `mode="agent"` (what is typed is an instruction for the agent, no phrase); on a
`<Text>`, `prompts="true"` (its text holds prompts; see `backend.labeling.concepts`); on a control,
`model_score_threshold` (0 to 1; the name is that of Label Studio's YOLO backend), `model_output`,
and `negative="true"` (boxes drawn with it say what the concept is not). Of an `<Image>`'s `window`
see `backend.volumes.importing`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from xml.etree.ElementTree import Element

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from backend.errors import ImageSourceError, LabelConfigError
from backend.labeling.minimum_volumes import check_stacks, read_minimum_volumes

MASK_TAGS = frozenset(
    {"BrushLabels", "BitmaskLabels", "PolygonLabels", "Brush", "Bitmask", "Polygon"}
)
_SHAPE_TAGS = frozenset({"RectangleLabels", "EllipseLabels", "Rectangle", "Ellipse"})
_PROMPT_TAGS = frozenset({"KeyPointLabels", "KeyPoint", "TextArea"})
# Tags whose labels are in a <Labels> beside them.
_LABELLESS_TAGS = frozenset({"Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse", "KeyPoint"})
_SERVED_TAGS = {tag.lower(): tag for tag in MASK_TAGS | _SHAPE_TAGS | _PROMPT_TAGS}
# Tags that say something of an image, or of regions on another one, and draw nothing on it.
_DRAW_NOTHING = frozenset(
    {"textarea", "choices", "rating", "number", "datetime", "taxonomy", "pairwise", "ranker"}
)
# What a config may hold instead, for a refusal that names it.
_OTHER_MEDIA = ("Video", "Audio", "Text", "HyperText", "Paragraphs", "TimeSeries", "Pdf", "Chat")
_ADVICE = (
    'add for example <BrushLabels name="brush" toName="image"><Label value="Tumor"/></BrushLabels>'
)
_MOST_CHARACTERS = 4_000_000


class ConfigTag:
    """One tag; its own name and its attributes' names are lower-case, as the editor has them."""

    def __init__(self, element: Element) -> None:
        self._element = element
        self.tag = element.tag.lower()
        self.raw = {key.lower(): value for key, value in element.attrib.items()}
        self.attributes = {key: value.strip() for key, value in self.raw.items()}

    def get(self, name: str) -> str:
        """An attribute without surrounding space, empty where it is not set."""
        return self.attributes.get(name.lower(), "")

    def is_true(self, name: str) -> bool:
        return self.get(name).lower() == "true"

    def flag(self, name: str) -> bool | None:
        """An attribute that must be `true` or `false`; None where it is not set.

        Raises:
            LabelConfigError: it is something else.
        """
        text = self.get(name).lower()
        if text not in ("", "true", "false"):
            raise LabelConfigError(f'{self}: {name}="{text}" must be "true" or "false".')
        return text == "true" if text else None

    def labels(self) -> Iterator[tuple[str, "ConfigTag"]]:
        """The `<Label>`s inside this tag, each with the value that regions carry."""
        for element in self._element.iter():
            if element.tag.lower() == "label":
                label = ConfigTag(element)
                yield label.get("alias") or label.get("value"), label

    def __str__(self) -> str:
        key = "value" if self.tag == "label" else "name"
        named = f' {key}="{self.get(key)}"' if self.get(key) else ""
        return f"<{self._element.tag}{named}>"


def read_tags(xml: str) -> list[ConfigTag]:
    """All tags of a labeling config, outermost first.

    Raises:
        LabelConfigError: it is empty, too long, not XML, or declares a document type or entities.
    """
    if not isinstance(xml, str) or not xml.strip():
        raise LabelConfigError("The labeling config is empty: set one in the project's settings.")
    if len(xml) > _MOST_CHARACTERS:
        raise LabelConfigError(f"The labeling config is longer than {_MOST_CHARACTERS} characters.")
    try:
        root = fromstring(xml.strip(), forbid_dtd=True)
    except DefusedXmlException:
        raise LabelConfigError(
            "The labeling config has a DOCTYPE or an ENTITY: remove it."
        ) from None
    except (ParseError, ValueError) as error:  # ValueError: lone surrogates, null bytes
        raise LabelConfigError(f"The labeling config is not well-formed XML: {error}.") from None
    return [ConfigTag(element) for element in root.iter()]


@dataclass(frozen=True)
class Label:
    """One label: the value that regions carry, and the phrase that the model is asked for.

    `value` is the `alias` of the label where it has one, and `shown` is what the editor shows.
    `prompt` is empty if the model must not be asked for this label. `everything` asks for all
    objects of whatever kind instead. `score_threshold` is the lowest score at which an instance is
    suggested, or None where the controls say.
    """

    value: str
    prompt: str
    named: str = field(default="", compare=False)
    everything: bool = False
    score_threshold: float | None = None

    @property
    def shown(self) -> str:
        return self.named or self.value


@dataclass(frozen=True)
class ImageObject:
    """One `<Image>`: its name, the key of its address or addresses in `task.data`, and a window."""

    name: str
    value_key: str
    multi_page: bool
    window: str = ""

    def references(self, task_data: Mapping[str, Any]) -> tuple[str, ...]:
        """The addresses of this image in a task, one per page; a single image is one page.

        Raises:
            ImageSourceError: the task has no such key, or holds something else there.
        """
        try:
            value = _at(task_data, self.value_key)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ImageSourceError(
                f'The task has no image under "{self.value_key}", where the labeling config '
                f'looks for <Image name="{self.name}">; its data has '
                f"{quoted(list(map(str, task_data))) or 'nothing'}."
            ) from None
        pages = value if isinstance(value, list) else [value]
        if not pages or not all(isinstance(page, str) and page for page in pages):
            raise ImageSourceError(
                f'The task\'s "{self.value_key}" must be the address of an image'
                f"{' or a list of them' if self.multi_page else ''}."
            )
        return tuple(pages)


def _at(task_data: Mapping[str, Any], path: str) -> Any:
    value: Any = task_data
    for key in re.findall(r"[^.\[\]]+", path):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@dataclass(frozen=True)
class Control:
    """One control tag of an image.

    Attributes:
        name, to_name: its name and that of its `<Image>`.
        tag: canonical spelling, such as `BrushLabels`.
        labels: in the config's order; empty for a `TextArea` and a tool without labels.
        smart: whether the config marks it as a smart tool (`smart` or `smartOnly`). The editor
            also offers unmarked controls as smart tools while Auto-Annotation is on.
        score_threshold: lowest score to show, or None for the server's default; what holds for
            one label is in `threshold_of`.
        model_output: the config's own word on whether predictions go here, or None.
        negative: boxes drawn with it are negative examples.
        exemplars: values of the labels whose boxes ask for everything like what is in them.
        propagates: values of the labels whose answers go on to the other pages of a stack.
        labels_name: name of the `<Labels>` that holds the labels of a tag without any.
        instructs: a `TextArea` whose text is an instruction for the agent.
    """

    name: str
    to_name: str
    tag: str
    labels: tuple[Label, ...]
    smart: bool = False
    score_threshold: float | None = None
    model_output: bool | None = None
    negative: bool = False
    exemplars: frozenset[str] = frozenset()
    propagates: frozenset[str] = frozenset()
    labels_name: str | None = None
    instructs: bool = False

    @property
    def result_type(self) -> str:
        """The `type` of its regions, such as `brushlabels`."""
        return self.tag.lower()

    @cached_property
    def label_values(self) -> frozenset[str]:
        return frozenset(label.value for label in self.labels)

    def threshold_of(self, label: str) -> float | None:
        """Lowest score to show of one label: the label's own, else the control's."""
        return self._label_thresholds.get(label, self.score_threshold)

    @cached_property
    def _label_thresholds(self) -> dict[str, float]:
        return {
            label.value: label.score_threshold
            for label in self.labels
            if label.score_threshold is not None
        }


@dataclass(frozen=True)
class LabelConfig:
    """A config that can be served: at least one image, and one label with an output.

    Attributes:
        images: those that regions can be on.
        controls: theirs.
        prompt_keys: the keys of `task.data` whose text the config says to be prompts.
        agent_labels: values of the labels whose uncertain answers an agent looks at.
        min_volumes_ml: by label value, the volume below which an object of a stack is left out.
    """

    images: tuple[ImageObject, ...]
    controls: tuple[Control, ...]
    prompt_keys: tuple[str, ...] = ()
    agent_labels: frozenset[str] = frozenset()
    min_volumes_ml: Mapping[str, float] = field(default_factory=dict, hash=False)

    def control(self, name: str) -> Control | None:
        """The control of that name; the name of a `<Labels>` is that of the first one it labels."""
        return self._by_name.get(name)

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        """Labels that have an output and a prompt, each once, in the config's order."""
        seen = {
            label: None
            for control in self.controls
            for label in control.labels
            if label.prompt and control in self.outputs_of(label.value)
        }
        return tuple(seen)

    def outputs_of(self, label: str) -> tuple[Control, ...]:
        """The controls that predictions of this label are written to."""
        return self._outputs.get(label, ())

    def labels_on(self, image_name: str) -> tuple[str, ...]:
        """Values of the labels that can be answered on one `<Image>`, in the config's order."""
        return tuple(
            dict.fromkeys(
                label.value
                for control in self.controls
                if control.to_name == image_name
                for label in control.labels
                if any(output.to_name == image_name for output in self.outputs_of(label.value))
            )
        )

    @cached_property
    def _by_name(self) -> dict[str, Control]:
        names: dict[str, Control] = {}
        for control in self.controls:
            names.setdefault(control.name, control)
            if control.labels_name:
                names.setdefault(control.labels_name, control)
        return names

    @cached_property
    def _outputs(self) -> dict[str, tuple[Control, ...]]:
        offering: dict[str, list[Control]] = {}
        for control in self.controls:
            for label in control.labels:
                offering.setdefault(label.value, []).append(control)
        return {label: _outputs_among(controls) for label, controls in offering.items()}


def _outputs_among(controls: Sequence[Control]) -> tuple[Control, ...]:
    masked_images = {
        control.to_name
        for control in controls
        if control.tag in MASK_TAGS and control.model_output is not False
    }

    def is_output(control: Control) -> bool:
        if control.tag in _PROMPT_TAGS or control.negative:
            return False
        if control.model_output is not None:
            return control.model_output
        return control.tag in MASK_TAGS or not (control.smart and control.to_name in masked_images)

    return tuple(control for control in controls if is_output(control))


@lru_cache(maxsize=64)
def parse_label_config(xml: str) -> LabelConfig:
    """Parse a labeling config and check that it can be served.

    Args:
        xml: as Label Studio stores it in `project.label_config`.

    Raises:
        LabelConfigError: with one sentence that says what to change.
    """
    nodes = read_tags(xml)
    if any(node.tag == "repeater" for node in nodes):
        raise LabelConfigError(
            'A <Repeater> cannot be served: show the pages with <Image valueList="$images"/>.'
        )
    _check_spaces(nodes)
    _check_names(nodes)
    images = tuple(_image(node) for node in _drawn_images(nodes))
    if not images:
        raise LabelConfigError(_without_image(nodes))
    controls = tuple(_controls(nodes, {image.name for image in images}))
    agent_labels = frozenset(value for value, label in nodes[0].labels() if _is_for_agent(label))
    volumes = read_minimum_volumes(
        (value, label.get("min_volume_ml")) for value, label in nodes[0].labels()
    )
    config = LabelConfig(images, controls, tuple(_prompt_keys(nodes)), agent_labels, volumes)
    _check_outputs(config, nodes)
    stacks = [image.name for image in images if image.multi_page]
    check_stacks(volumes, {label for name in stacks for label in config.labels_on(name)})
    return config


def _check_spaces(nodes: Sequence[ConfigTag]) -> None:
    """Label Studio keeps spaces around names and labels, and then nothing finds them by sight."""
    for node in nodes:
        written = ("value", "alias") if node.tag == "label" else ("name", "toname")
        for name in written:
            if node.raw.get(name, "") != node.get(name):
                raise LabelConfigError(
                    f'{node} has spaces around {name}="{node.raw[name]}", which Label Studio '
                    f'counts as part of it: write {name}="{node.get(name)}".'
                )


def _check_names(nodes: Sequence[ConfigTag]) -> None:
    seen: set[str] = set()
    for node in nodes:
        name = node.get("name")
        if name and node.tag not in ("style", "label", "choice"):
            if name in seen:
                raise LabelConfigError(
                    f'Two tags have name="{name}": give each control and object its own name.'
                )
            seen.add(name)


def _drawn_images(nodes: Sequence[ConfigTag]) -> list[ConfigTag]:
    """The `<Image>`s that regions can be on; all of them where there is none.

    Others are there to be looked at: a task may lack them, and nothing is missing on them.
    """
    images = [node for node in nodes if node.tag == "image"]
    drawn_on = {
        name.strip()
        for node in nodes
        if node.tag not in _DRAW_NOTHING
        for name in filter(None, node.get("toName").split(","))
    }
    return [image for image in images if image.get("name") in drawn_on] or images


def _image(node: ConfigTag) -> ImageObject:
    name = node.get("name")
    if not name:
        raise LabelConfigError('An <Image> has no name: write <Image name="image" .../>.')
    multi_page = bool(node.get("valueList"))
    value = node.get("valueList") or node.get("value")
    if not re.fullmatch(r"\$[^\s$/]+", value):
        attribute = "valueList" if multi_page else "value"
        raise LabelConfigError(
            f'{node} has {attribute}="{value}", which names no key of the task\'s data: write '
            f'{attribute}="$image" for data {{"image": ...}}.'
        )
    return ImageObject(name, value[1:], multi_page, node.get("window"))


def _prompt_keys(nodes: Sequence[ConfigTag]) -> Iterator[str]:
    for node in nodes:
        if node.tag == "text" and node.flag("prompts"):
            if node.get("value") != "$text":
                raise LabelConfigError(
                    f'{node} has prompts="true" and value="{node.get("value")}": only data.text '
                    'and data.prompts can hold prompts, so write value="$text".'
                )
            yield node.get("value")[1:]


def _without_image(nodes: Sequence[ConfigTag]) -> str:
    tags = {node.tag for node in nodes}
    other = next((tag for tag in _OTHER_MEDIA if tag.lower() in tags), None)
    instead = f" but a <{other}>, which cannot be segmented" if other else ""
    return (
        f"The labeling config has no <Image>{instead}: add "
        '<Image name="image" value="$image"/> and the controls for it.'
    )


def _controls(nodes: Sequence[ConfigTag], images: set[str]) -> Iterator[Control]:
    object_names = {node.get("name") for node in nodes if not node.get("toName")} - {""}
    prompts, thresholds = _prompts(nodes), _label_thresholds(nodes)
    labels_of: dict[str, ConfigTag] = {}  # image -> its <Labels>
    for node in nodes:
        if node.tag == "labels":
            first = labels_of.setdefault(node.get("toName"), node)
            if first is not node and any(
                _SERVED_TAGS.get(tool.tag) in _LABELLESS_TAGS
                and tool.get("toName") == node.get("toName")
                for tool in nodes
            ):
                raise LabelConfigError(
                    f"{first} and {node} both label the tools of one image: put all labels into "
                    "one <Labels>."
                )
    for node in nodes:
        tag = _SERVED_TAGS.get(node.tag)
        if tag is None or (tag == "TextArea" and node.is_true("perRegion")):
            continue
        to_name = node.get("toName")
        if not node.get("name") or not to_name:
            raise LabelConfigError(f"{node} needs both a name and a toName that names its <Image>.")
        if to_name not in images:
            if to_name in object_names:
                continue  # a control of a text, an audio or the like
            raise LabelConfigError(
                f'{node} has toName="{to_name}", but the images are {quoted(sorted(images))}: '
                "correct the toName."
            )
        labels_node = labels_of.get(to_name) if tag in _LABELLESS_TAGS else None
        has_no_labels = tag == "TextArea" or (tag in _LABELLESS_TAGS and labels_node is None)
        model_output = node.flag("model_output")
        if tag in _PROMPT_TAGS and model_output:
            raise LabelConfigError(f'{node} cannot hold predictions: remove model_output="true".')
        yield Control(
            name=node.get("name"),
            to_name=to_name,
            tag=tag,
            labels=() if has_no_labels else _labels(labels_node or node, prompts, thresholds),
            smart=node.is_true("smart") or node.is_true("smartOnly"),
            score_threshold=_threshold(node, "model_score_threshold"),
            model_output=model_output,
            negative=bool(node.flag("negative")),
            exemplars=_labels_that_say("exemplar", node, labels_node or node),
            propagates=_labels_that_say("propagate", node, labels_node or node),
            labels_name=labels_node.get("name") if labels_node else None,
            instructs=tag == "TextArea" and _is_for_agent(node),
        )


def _prompts(nodes: Sequence[ConfigTag]) -> dict[str, str]:
    """Prompts by label value: nobody has to repeat one on each control that offers the label."""
    phrases: dict[str, str] = {}
    for value, label in nodes[0].labels():
        if "prompt" in label.attributes:
            phrase = label.get("prompt")
            first = phrases.setdefault(value, phrase)
            if first != phrase:
                raise LabelConfigError(
                    f'The label "{value}" has two prompts, "{first}" and "{phrase}": every object '
                    "would be found twice. Write the prompt on one control, it holds for all."
                )
    return phrases


def _label_thresholds(nodes: Sequence[ConfigTag]) -> dict[str, float]:
    """Thresholds by label value; like a prompt, one holds on each control that offers the label."""
    thresholds: dict[str, float] = {}
    for value, label in nodes[0].labels():
        threshold = _threshold(label, "score_threshold")
        if threshold is not None and thresholds.setdefault(value, threshold) != threshold:
            raise LabelConfigError(
                f'The label "{value}" has two thresholds, {thresholds[value]} and {threshold}: '
                "write score_threshold on one control, it holds for all."
            )
    return thresholds


def _labels(
    node: ConfigTag, prompts: Mapping[str, str], thresholds: Mapping[str, float]
) -> tuple[Label, ...]:
    if node.get("value").startswith("$"):
        raise LabelConfigError(
            f"{node} takes its labels from the task's data, which is not supported: write them as "
            '<Label value="..."/> tags inside it, and remove its value.'
        )
    labels: dict[str, Label] = {}
    for value, label in node.labels():
        shown = label.get("value") or value
        if not value:
            raise LabelConfigError(f'A <Label> of {node} has no value: write value="...".')
        if re.match(r"\$[\w\[{]", value) or re.match(r"\$[\w\[{]", shown):
            raise LabelConfigError(
                f'The label "{shown}" of {node} comes from the task\'s data, which is not '
                "supported: write the label itself."
            )
        prompt = label.attributes.get("prompt", prompts.get(value, shown))
        everything = bool(label.flag("everything"))
        named = labels.setdefault(
            value,
            Label(value, " ".join(prompt.split()), shown, everything, thresholds.get(value)),
        )
        if named.shown != shown:
            raise LabelConfigError(
                f'The labels "{named.shown}" and "{shown}" of {node} are both stored as "{value}", '
                "so nobody can tell them apart: give one of them another alias."
            )
    if labels:
        return tuple(labels.values())
    raise LabelConfigError(f'{node} has no labels: add <Label value="..."/> tags inside it.')


def _labels_that_say(attribute: str, node: ConfigTag, labels_node: ConfigTag) -> frozenset[str]:
    """The labels with a flag: all of the control's where it has it, or those that say so."""
    every = bool(node.flag(attribute))
    return frozenset(
        value for value, label in labels_node.labels() if label.flag(attribute) or every
    )


def _is_for_agent(node: ConfigTag) -> bool:
    mode = node.get("mode")
    if node.tag == "label" and mode not in ("", "agent"):
        raise LabelConfigError(f'{node} has mode="{mode}", but there is only mode="agent".')
    return mode == "agent"


def _threshold(node: ConfigTag, attribute: str) -> float | None:
    text = node.get(attribute)
    if not text:
        return None
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise LabelConfigError(f'{node}: {attribute}="{text}" must be a number from 0 to 1.')
    return threshold


def _check_outputs(config: LabelConfig, nodes: Sequence[ConfigTag]) -> None:
    if config.labels:
        return
    if any(
        config.outputs_of(label.value) for control in config.controls for label in control.labels
    ):
        raise LabelConfigError(
            'Every label has prompt="", so there is nothing to ask the model for: '
            "give one of them a phrase."
        )
    if config.controls:
        tools = quoted([control.name for control in config.controls])
        raise LabelConfigError(
            f"The controls {tools} are only prompts, so predictions have nowhere to go: {_ADVICE}."
        )
    others = [str(node) for node in nodes if node.get("toName")]
    served = "The labeling config has no control that can hold a mask or a box"
    raise LabelConfigError(
        f"{served}, only {', '.join(others[:5])}: {_ADVICE}." if others else f"{served}: {_ADVICE}."
    )


def quoted(names: Sequence[str]) -> str:
    """The first ten names in quotes, and how many more there are."""
    shown = [f'"{name}"' for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
