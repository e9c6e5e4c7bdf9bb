"""The small model's tokenizer: byte-level BPE over a medical vocabulary of our own.

It has the interface of the CLIP tokenizer that SAM 3 uses (phrases to `input_ids` and
`attention_mask`) with a table of 1,024 entries instead of 49,408, which would be four fifths of a
small model's parameters. Mapping: Unicode NFKC, lower case, runs of white space, "_" and "-" become
one blank; words are split into learned pieces; what no piece covers falls back to the 256 bytes of
UTF-8. So every text in every script gets tokens, and there is no unknown token.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medsam3_model.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 1024
MAX_TOKENS = 16

START = "<|startoftext|>"
END = "<|endoftext|>"
START_ID, END_ID = 0, 1


def build_tokenizer(phrases: Iterable[str]) -> "PreTrainedTokenizerFast":
    """Learn the pieces from `phrases`; the same phrases in the same order give the same tokenizer.

    Pieces that only single phrases contain still enter the vocabulary, up to `VOCABULARY_SIZE`.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\s_\-]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=1,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(phrases, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, START_ID), (END, END_ID)]
    )
    return _wrap(tokenizer)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a bundle, from its `tokenizer.json`; no network.

    Raises CheckpointError when the file is missing or is no tokenizer.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"The tokenizer {path} is missing: install the weights again.")
    try:
        return _wrap(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise CheckpointError(f"The tokenizer {path} is damaged: {error}") from error


def _wrap(tokenizer: object) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        padding_side="right",
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
