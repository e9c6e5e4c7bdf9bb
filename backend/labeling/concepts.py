"""Concepts of a task: the phrases that the model is asked for, from texts and labels.

The first of these sources that says something decides for the whole task:

1. **The task's own text**, `data.prompts`, else `data.text`;
2. **a smart TextArea's text**, typed by the annotator;
3. **the `<Label>`s** of the labeling config: the attribute `prompt`, else the label's value.

A text becomes a phrase for one label like this:

* a mapping `{"label": "phrase"}` or `{"label": ["phrase", "phrase"]}` says it outright (only in
  `data.prompts`); labels that it leaves out, or maps to nothing, are not asked for;
* otherwise the text is a list of phrases; one string may hold several, separated by commas,
  semicolons or line breaks. A phrase belongs to
  (a) the label that it names in front of a colon (`Tumor: dark mass`),
  (b) the label whose value or prompt it is, whatever the case; then the label's prompt is asked,
  (c) the only label, if the config has one.

In `data.prompts`, a phrase or label that fits none of these is an error of that task. `data.text`
may also be a caption or a report, so phrases that fit no label, or are longer than twelve words,
are ignored there. What an annotator types always gets an answer: (d) the label whose words begin
words of the text ("rusty edge" is for the label Rust), else the first label.
"""

import contextlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import LabelConfigError
from backend.labeling.config import Control, Label, LabelConfig, quoted

# One pass of the detector each; beyond this a task would take minutes.
MOST_CONCEPTS = 256
_MOST_WORDS_OF_A_CAPTION = 12


@dataclass(frozen=True)
class Concept:
    """One phrase for the model, and where its instances go.

    Attributes:
        phrase: what the model is asked for.
        label: the label value that its regions carry.
        controls: the output controls that offer the label, over all images.
        score_threshold: the lowest of the controls' own thresholds, or None if none has one.
    """

    phrase: str
    label: str
    controls: tuple[Control, ...]
    score_threshold: float | None

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
        LabelConfigError: `data.prompts` names labels that the config does not have or cannot be
            told apart by label, or there are more than `MOST_CONCEPTS` concepts.
    """
    known = _KnownLabels(config)
    pairs = (
        _from_prompts(known, task_data.get("prompts"))
        or _from_caption(known, task_data.get("text"))
        or [known.match(phrase) or (phrase, known.closest(phrase)) for phrase in _phrases(texts)]
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
    return _concept(config, chosen.prompt or chosen.value, chosen)


def remarks(config: LabelConfig) -> tuple[str, ...]:
    """Advice for `medsam3 doctor` about a config that can be served, one sentence each."""
    advice: list[str] = []
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


def _concept(config: LabelConfig, phrase: str, label: Label) -> Concept:
    controls = config.outputs_of(label.value)
    thresholds = [
        control.score_threshold for control in controls if control.score_threshold is not None
    ]
    return Concept(phrase, label.value, controls, min(thresholds) if thresholds else None)


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
        self._by_name: dict[str, Label] = {}
        # Values first: a label's own value wins over another label's prompt.
        for name_of in (lambda label: label.value, lambda label: label.prompt):
            for label in self.all:
                self._by_name.setdefault(_folded(name_of(label)), label)

    def named(self, name: str) -> Label | None:
        return self._by_name.get(_folded(name)) if _folded(name) else None

    def match(self, phrase: str) -> tuple[str, Label] | None:
        """Rules (a) to (c): the phrase to ask for, and its label; None where none of them fits."""
        name, _, rest = phrase.partition(":")
        if rest.strip() and (label := self.named(name)):
            return rest.strip(), label
        if label := self.named(phrase):
            return label.prompt or label.value, label
        if len({label.value for label in self.all}) == 1:
            return phrase, self.all[0]
        return None

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

    def refusal(self, phrase: str) -> LabelConfigError:
        labels = ", ".join(f'"{label.value}"' for label in self.all[:10])
        return LabelConfigError(
            f'The task\'s data.prompts has "{phrase[:80]}", which is none of the labels {labels}: '
            'write {"label": "phrase"} to say which label it is for.'
        )


def _from_prompts(known: _KnownLabels, prompts: Any) -> list[tuple[str, Label]]:
    if isinstance(prompts, str) and prompts.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            prompts = json.loads(prompts)  # a column of a CSV import
    pairs: list[tuple[str, Label]] = []
    if isinstance(prompts, Mapping):
        for name, phrases in prompts.items():
            label = known.named(str(name))
            if label is None:
                raise known.refusal(str(name))
            pairs += [(phrase, label) for phrase in _phrases(phrases)]
        return pairs
    for phrase in _phrases(prompts):
        pair = known.match(phrase)
        if pair is None:
            raise known.refusal(phrase)
        pairs.append(pair)
    return pairs


def _from_caption(known: _KnownLabels, text: Any) -> list[tuple[str, Label]]:
    if not isinstance(text, str):
        return []
    pairs = [
        known.match(phrase)
        for phrase in _phrases(text)
        if len(phrase.split()) <= _MOST_WORDS_OF_A_CAPTION
    ]
    return [pair for pair in pairs if pair is not None]


def _phrases(value: Any) -> list[str]:
    """Phrases of a string (split), of a list (one each) or of nothing, without empty ones."""
    if value is None:
        return []
    if isinstance(value, str):
        value = re.split(r"[,;\n]", value)
    if not isinstance(value, Sequence) or not all(isinstance(phrase, str) for phrase in value):
        raise LabelConfigError(
            "The task's data.prompts must be a text, a list of texts, or a mapping of labels to "
            "texts."
        )
    return [" ".join(phrase.split()) for phrase in value if phrase.strip()]


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())


def _is_latin(text: str) -> bool:
    return all(not letter.isalpha() or "LATIN" in unicodedata.name(letter, "") for letter in text)
