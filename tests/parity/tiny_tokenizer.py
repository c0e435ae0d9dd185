"""Byte-level BPE tokenizers of about 320 tokens, in Hugging Face form: what the golden scripts share."""

import json
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ORDINARY = 312  # the 256 bytes and 56 merges
CORPUS = [
    "The user asks the assistant a question and the assistant answers it.",
    "You are a helpful assistant. What is the answer to the question?",
    "I think that the weather in the north is not as warm as in the south.",
    "Is the following statement something you would say? Yes, it is. No, it is not.",
    "system user assistant tool function name arguments parameters type string",
]


def build(special, bos=None):
    """A tokenizer whose first ids are `special`; with `bos` its post-processor puts that token in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ORDINARY + len(special),
        special_tokens=[AddedToken(text, special=True) for text in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        pieces = (f"{bos} $A", f"{bos} $A {bos} $B")
        tokenizer.post_processor = processors.TemplateProcessing(*pieces, [(bos, tokenizer.token_to_id(bos))])
    return tokenizer


def save(tokenizer, folder, **config):
    """Writes tokenizer.json and tokenizer_config.json."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
