"""Concepts of a task: the phrases that the model is asked for, from texts and labels.

The first of these sources that says something decides for the whole task:

1. **The task's own text**: `data.prompts`; else `data.text` where the labeling config says that
   it holds prompts, `<Text value="$text" prompts="true"/>`; else where it holds nothing
   but names of labels;
2. **a smart TextArea's text**, typed by the annotator;
3. **the `<Label>`s** of the labeling config: the attribute `prompt`, else the label's value.

Any other text of a task, such as a caption or a report, asks for nothing.

A text becomes a phrase for one label like this:

* a mapping `{"label": "phrase"}` or `{"label": ["phrase", "phrase"]}` says it outright, and each
  phrase is asked as it stands, with its commas; labels that it leaves out, or maps to nothing, are
  not asked for;
* a list has one phrase each, and a string may hold several, separated by commas, semicolons or
  line breaks; the name of a label is never taken apart. A phrase belongs to
  (a) the label whose value, name in the editor or prompt it is; then the label's prompt is asked,
  (b) the label that it names in front of a colon (`Tumor: dark mass`),
  (c) the only label, if the config has one.

Names are looked up as they are written, then whatever the case; a name that several labels have
then is no name. A phrase or label that fits none of these is an error of that task. What an
annotator types always gets an answer: (d) the label whose words begin words of the text ("rusty
edge" is for the label Rust), else the first label.
"""

import contextlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import LabelConfigError
from backend.labeling.config import Control, Label, LabelConfig, quoted

# One pass of the detector each; beyond this a task would take minutes.
MOST_CONCEPTS = 256
_SEPARATORS = re.compile(r"([,;\n])")


@dataclass(frozen=True)
class Concept:
    """One phrase for the model, and where its instances go.

    Attributes:
        phrase: what the model is asked for.
        label: the label value that its regions carry.
        controls: the output controls that offer the label, over all images.
        score_threshold: the label's own; else the lowest of the controls', or None if none has one.
        everything: all objects of whatever kind are asked for, whatever the phrase.
    """

    phrase: str
    label: str
    controls: tuple[Control, ...]
    score_threshold: float | None
    everything: bool = False

    def controls_of(self, image_name: str) -> tuple[Control, ...]:
        """The controls of one `<Image>`; empty if the concept is not asked for there."""
        return tuple(control for control in self.controls if control.to_name == image_name)


# Of a task's data, what `concepts_for` reads.
PROMPT_FIELDS = ("prompts", "text")


def concepts_for(
    config: LabelConfig, task_data: Mapping[str, Any], texts: Sequence[str] = ()
) -> tuple[Concept, ...]:
    """The concepts of one task, each (phrase, label) once, in the order of their source.

    Args:
        config: the project's labeling config.
        task_data: `data` of the task.
        texts: what the annotator typed into a smart TextArea, if anything.

    Raises:
        LabelConfigError: the task's prompts name labels that the config does not have or cannot be
            told apart by label, or there are more than `MOST_CONCEPTS` concepts.
    """
    known = _KnownLabels(config)
    pairs = (
        _from_prompts(known, task_data.get("prompts"), "prompts")
        or [
            pair
            for key in config.prompt_keys
            for pair in _from_prompts(known, task_data.get(key), key)
        ]
        or _from_names(known, task_data.get("text"))
        or [known.match(phrase) or (phrase, known.closest(phrase)) for phrase in _texts(texts)]
        or [(label.prompt, label) for label in config.labels]
    )
    concepts = tuple(_concept(config, phrase, label) for phrase, label in dict.fromkeys(pairs))
    if len(concepts) > MOST_CONCEPTS:
        raise LabelConfigError(
            f"{len(concepts)} concepts are too many for one image, at most {MOST_CONCEPTS} can be "
            'asked for: give the labels that the model need not find prompt="", or name the '
            "wanted ones in the task's data.prompts."
        )
    return concepts


def concept_of_label(config: LabelConfig, label: str) -> Concept | None:
    """The concept of one label by the config alone, for a smart tool's box or point.

    Labels with `prompt=""` are asked by their value here, because the annotator asks for them.
    None if the label has no output.
    """
    controls = config.outputs_of(label)
    if not controls:
        return None
    chosen = next(offered for offered in controls[0].labels if offered.value == label)
    return _concept(config, chosen.prompt or chosen.shown, chosen)


def concept_of_instruction(config: LabelConfig, image_name: str, instruction: str) -> Concept:
    """The concept that an annotator's instruction is about: of the label that it names.

    It is found by rule (d), among the labels that can be answered on the image.

    Raises:
        LabelConfigError: none can.
    """
    offered = [concept_of_label(config, label) for label in config.labels_on(image_name)]
    concepts = {concept.label: concept for concept in offered if concept is not None}
    if not concepts:
        raise LabelConfigError(f'No label can be answered on the image "{image_name}".')
    known = _KnownLabels(config)
    known.all = tuple(label for label in known.all if label.value in concepts)
    return concepts[known.closest(instruction).value]


def remarks(config: LabelConfig) -> tuple[str, ...]:
    """Advice for `connect` and `doctor` about a config that can be served, one sentence each."""
    advice = list(_unanswered(config))
    foreign = [label.value for label in config.labels if not _is_latin(label.prompt)]
    if foreign:
        advice.append(
            f"Label {quoted(foreign)}: the model understands English; add an English phrase, such "
            f'as <Label value="{foreign[0]}" prompt="tumor"/>.'
        )
    wordy = [label.value for label in config.labels if len(label.prompt.split()) > 3]
    if wordy:
        advice.append(
            f"Label {quoted(wordy)}: the prompt has more than three words; short noun phrases work "
            "best."
        )
    if len(config.labels) > MOST_CONCEPTS:
        advice.append(
            f"The config has {len(config.labels)} labels, but at most {MOST_CONCEPTS} can be asked "
            'for per image: give the others prompt="", or name the wanted ones in data.prompts.'
        )
    return tuple(advice)


def _unanswered(config: LabelConfig) -> Iterator[str]:
    """Smart tools with labels that no mask can have."""
    for control in config.controls:
        if not control.smart and not control.tag.startswith("KeyPoint"):
            continue
        answered = config.labels_on(control.to_name)
        lost = [label.value for label in control.labels if label.value not in answered]
        if not lost:
            continue
        then = (
            f'is answered for "{answered[0]}"' if len(answered) == 1 else "ends in an error, unseen"
        )
        yield (
            f'Label {quoted(lost)} of <{control.tag} name="{control.name}"> has no control that '
            f"can hold a mask of it, so what is drawn with it {then}: give the tool the labels "
            f"{quoted(answered)}."
        )


def _concept(config: LabelConfig, phrase: str, label: Label) -> Concept:
    controls = config.outputs_of(label.value)
    thresholds = [control.threshold_of(label.value) for control in controls]
    lowest = min((threshold for threshold in thresholds if threshold is not None), default=None)
    return Concept(phrase, label.value, controls, lowest, label.everything)


class _KnownLabels:
    """The labels of a config that have an output, by the names that texts call them."""

    def __init__(self, config: LabelConfig) -> None:
        self.all = tuple(
            dict.fromkeys(
                label
                for control in config.controls
                for label in control.labels
                if config.outputs_of(label.value)
            )
        )
        self._exact: dict[str, Label] = {}
        self._folded: dict[str, Label | None] = {}
        # Values first: a label's own value wins over another label's prompt.
        for name_of in (lambda label: label.value, lambda label: label.shown, _prompt_of):
            names: dict[str, set[str]] = {}
            for label in self.all:
                self._exact.setdefault(name_of(label), label)
                names.setdefault(_folded(name_of(label)), set()).add(label.value)
            for label in self.all:
                folded = _folded(name_of(label))
                self._folded.setdefault(folded, label if len(names[folded]) == 1 else None)
        self._most_parts = max(len(_SEPARATORS.findall(name)) for name in self._exact) + 1

    def named(self, name: str) -> Label | None:
        return self._exact.get(name.strip()) or self._folded.get(_folded(name))

    def match(self, phrase: str) -> tuple[str, Label] | None:
        """Rules (a) to (c): the phrase to ask for, and its label; None where none of them fits."""
        if label := self.named(phrase):
            return _prompt_of(label), label
        if pair := self._behind_a_name(phrase):
            return pair
        if len({label.value for label in self.all}) == 1:
            return phrase, self.all[0]
        return None

    def _behind_a_name(self, phrase: str) -> tuple[str, Label] | None:
        """Rule (b), for the longest name: names may hold colons themselves."""
        for colon in reversed([found.start() for found in re.finditer(":", phrase)]):
            rest = phrase[colon + 1 :].strip()
            if rest and (label := self.named(phrase[:colon])):
                return rest, label
        return None

    def phrases(self, text: str) -> list[str]:
        """The phrases of one string, taken apart at separators that are not part of a name."""
        parts = _SEPARATORS.split(text)
        phrases: list[str] = []
        start = 0
        while start < len(parts):
            ends = range(start + 1, min(start + 2 * self._most_parts, len(parts) + 1), 2)
            longest = [(end, "".join(parts[start:end])) for end in reversed(ends)]
            alone = longest[-1]
            whole = next((found for found in longest if self.named(found[1])), alone)
            # The first part that a name and a colon are in ends the phrase.
            headed = next(
                (found for found in longest[::-1] if self._behind_a_name(found[1])), alone
            )
            end, phrase = max(whole, headed)
            phrases.append(" ".join(phrase.split()))
            start = end + 1
        return list(filter(None, phrases))

    def closest(self, phrase: str) -> Label:
        """Rule (d): the label with most of its letters at the beginnings of the phrase's words."""
        words = _folded(phrase).split()

        # Without any match all labels have 0 letters, and `max` takes the first.
        def letters(label: Label) -> int:
            names = [_folded(name).split() for name in (label.value, label.prompt) if name]
            return max(
                sum(map(len, name))
                if all(any(word.startswith(part) for word in words) for part in name)
                else 0
                for name in names
            )

        return max(self.all, key=letters)

    def refusal(self, phrase: str, key: str) -> LabelConfigError:
        labels = ", ".join(f'"{label.value}"' for label in self.all[:10])
        return LabelConfigError(
            f'The task\'s data.{key} has "{phrase[:80]}", which is none of the labels {labels}: '
            'write {"label": "phrase"} to say which label it is for.'
        )


def _prompt_of(label: Label) -> str:
    return label.prompt or label.shown


def _from_prompts(known: _KnownLabels, prompts: Any, key: str) -> list[tuple[str, Label]]:
    if isinstance(prompts, str) and prompts.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            prompts = json.loads(prompts)  # a column of a CSV import
    pairs: list[tuple[str, Label]] = []
    if isinstance(prompts, Mapping):
        for name, phrases in prompts.items():
            label = known.named(str(name))
            if label is None:
                raise known.refusal(str(name), key)
            pairs += [(phrase, label) for phrase in _texts(phrases, key)]
        return pairs
    phrases = known.phrases(prompts) if isinstance(prompts, str) else _texts(prompts, key)
    for phrase in phrases:
        pair = known.match(phrase)
        if pair is None:
            raise known.refusal(phrase, key)
        pairs.append(pair)
    return pairs


def _from_names(known: _KnownLabels, text: Any) -> list[tuple[str, Label]]:
    """The labels of a text that holds nothing else; nobody said that it holds prompts."""
    if not isinstance(text, str):
        return []
    labels = [known.named(phrase) for phrase in known.phrases(text)]
    named = [label for label in labels if label is not None]
    return [(_prompt_of(label), label) for label in named] if len(named) == len(labels) else []


def _texts(value: Any, key: str = "prompts") -> list[str]:
    """A text, or the texts of a list, each as it stands; without empty ones."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise LabelConfigError(
            f"The task's data.{key} must be a text, a list of texts, or a mapping of labels to "
            "texts."
        )
    return [" ".join(text.split()) for text in texts if text.strip()]


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())


def _is_latin(text: str) -> bool:
    return all(not letter.isalpha() or "LATIN" in unicodedata.name(letter, "") for letter in text)
