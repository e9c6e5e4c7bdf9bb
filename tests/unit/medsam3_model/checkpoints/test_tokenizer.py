"""The tokenizer of the bundled model."""

from pathlib import Path

import pytest
import torch

from medsam3_model.checkpoints.presets import bundled_weights
from medsam3_model.checkpoints.tokenizer import (
    END_ID,
    MAX_TOKENS,
    START_ID,
    VOCABULARY_SIZE,
    build_tokenizer,
    load_tokenizer,
)
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.preprocessing import phrase_tokens
from medsam3_model.pretraining.phrases import all_phrases


def tokenize(tokenizer, phrases: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return phrase_tokens(tokenizer, phrases, MAX_TOKENS, padding="longest")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(bundled_weights("tiny"))


def test_known_words_are_one_token_between_start_and_end(tokenizer) -> None:
    ids, mask = tokenize(tokenizer, ["breast tumor"])
    assert ids.shape == (1, 4)
    assert ids[0, 0] == START_ID
    assert ids[0, -1] == END_ID
    assert mask.tolist() == [[1, 1, 1, 1]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_shorter_phrases_are_padded_on_the_right(tokenizer) -> None:
    ids, mask = tokenize(tokenizer, ["polyp", "white matter of the brain"])
    assert mask[0].tolist() == [1, 1, 1] + [0] * (ids.shape[1] - 3)
    assert ids[0, 3:].tolist() == [END_ID] * (ids.shape[1] - 3)


@pytest.mark.parametrize(
    "spelling", ["Breast Tumor", " breast  tumor ", "breast_tumor", "BREAST-TUMOR"]
)
def test_spelling_variants_are_the_same_phrase(tokenizer, spelling: str) -> None:
    torch.testing.assert_close(
        tokenize(tokenizer, [spelling])[0], tokenize(tokenizer, ["breast tumor"])[0]
    )


@pytest.mark.parametrize(
    "text",
    ["hepatocellular carcinoma", "脑肿瘤", "опухоль", "ورم", "🧠", "pólipo", "x" * 5000, "\x00"],
)
def test_any_text_gets_tokens_of_the_vocabulary(tokenizer, text: str) -> None:
    ids, mask = tokenize(tokenizer, [text])
    assert 3 <= ids.shape[1] <= MAX_TOKENS
    assert int(ids.max()) < VOCABULARY_SIZE
    assert bool(mask.all())


def test_different_scripts_do_not_collapse_into_one_unknown(tokenizer) -> None:
    texts = ["脑", "肝", "肾", "мозг", "печень"]
    assert len({tuple(tokenizer(text).input_ids) for text in texts}) == len(texts)


@pytest.mark.parametrize("phrases", [[], [""], ["polyp", "  "]])
def test_an_empty_prompt_is_refused(tokenizer, phrases: list[str]) -> None:
    with pytest.raises(PromptError, match="empty"):
        tokenize(tokenizer, phrases)


def test_building_again_gives_the_bundled_tokenizer(tokenizer) -> None:
    again = build_tokenizer(all_phrases())
    assert again.get_vocab() == tokenizer.get_vocab()
    assert len(again) <= VOCABULARY_SIZE


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_tokenizer(tmp_path)
