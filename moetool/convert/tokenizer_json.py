"""tokenizer.model -> tokenizer.json, so that transformers tokenises exactly as sentencepiece does.

tokenizer.model alone is not enough for transformers 5: without protobuf it fails with a message
about tiktoken, with protobuf it drops the dummy prefix. A sentencepiece BPE merges, among all
neighbours, the pair whose joined piece scores highest; so the merge list of a tokenizer.json is
every split of every piece into two pieces, ordered by the score of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetool.errors import Refused

if TYPE_CHECKING:
    from moetool.formats.sentencepiece import Vocabulary

SPACE = "▁"  # U+2581 stands for a space inside pieces


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Write the vocabulary as the tokenizers library reads it.

    Raises:
        Refused: a unigram model or a normaliser that rewrites text; neither is in any release
            this tool knows, and an approximation would tokenise wrongly without a word.
    """
    if vocabulary.model_type != "bpe" or vocabulary.has_charsmap:
        raise Refused(
            f"tokenizer.model is a {vocabulary.model_type} model"
            f"{' with a rewriting normaliser' if vocabulary.has_charsmap else ''}; "
            "only plain BPE becomes a tokenizer.json",
        )
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": _normalizer(vocabulary),
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocabulary),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *(
                    [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
                    if vocabulary.add_dummy_prefix
                    else []
                ),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.pieces[vocabulary.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": vocabulary.byte_fallback,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges(vocabulary),
        },
    }


def tokenizer_config(
    vocabulary: Vocabulary, max_seq_len: int, chat_template: str | None = None
) -> dict[str, Any]:
    """Write what transformers wants to know beside tokenizer.json.

    ``split_special_tokens``: the text "<s>" typed by a user is three characters to sentencepiece,
    never the control token. A template spells control tokens as text, so with one it is false:
    transformers knows one setting for both.
    """
    pieces = vocabulary.pieces
    template = {} if chat_template is None else {"chat_template": chat_template}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": pieces[vocabulary.bos_id],
        "eos_token": pieces[vocabulary.eos_id],
        "unk_token": pieces[vocabulary.unk_id],
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": chat_template is None,
        **template,
    }


def merges(vocabulary: Vocabulary) -> list[list[str]]:
    """All merges in the order in which sentencepiece would prefer them."""
    normal = {
        piece: (score, index)
        for index, (piece, score, kind) in enumerate(
            zip(vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True)
        )
        if kind in {"normal", "user_defined"}
    }
    found = []
    for piece, (score, index) in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                found.append((-score, index, normal[left][1], normal[right][1], [left, right]))
    return [pair for *_, pair in sorted(found)]


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != "user_defined",
        }
        for index, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
        if kind in {"control", "unknown", "user_defined"}
    ]


def _normalizer(vocabulary: Vocabulary) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if vocabulary.remove_extra_whitespaces:
        steps += [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    if vocabulary.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any]:
    bos = vocabulary.pieces[vocabulary.bos_id]

    def special(type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": bos, "type_id": type_id}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    single = [special(0), sequence("A", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, special(1), sequence("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_id], "tokens": [bos]}},
    }
