"""Tokens known by their names: those that end an answer, and those for code completion.

Writers of GGUF files name one end of text, and often give the others a wrong type. The names are
those that llama.cpp goes by (llama-vocab.cpp, llama_vocab::impl::load).
"""

from collections.abc import Mapping

# Each ends an answer wherever a vocabulary has it.
ENDS = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>",
    "<|flush|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]",
    "[EOS]", "<eos>", "</s>", "<end_of_utterance>", "<turn|>", "<|tool_response>", "[e~[",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|ifm|im_end|>", "<|plamo:eos|>",
})  # fmt: skip

# Code completion: these end an answer too. Keys: the metadata that names such a token by id.
_COMPLETION_ENDS = {
    "fim_pad_token_id": frozenset({"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}),
    "fim_rep_token_id": frozenset(
        {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}
    ),
    "fim_sep_token_id": frozenset({"<|file_sep|>", "<|plamo:file_separator|>"}),
}
# These only mark parts of a prompt.
COMPLETION_PARTS = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
    "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>", "<|plamo:fim_prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
    "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>", "<|plamo:fim_suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
    "\u2581<MID>", "<|code_middle|>", "<|middle|>", "<|plamo:fim_middle|>",
})  # fmt: skip
COMPLETION_KEYS = tuple(_COMPLETION_ENDS)


def ends_by_name(vocabulary: Mapping[str, int], given: Mapping[str, int]) -> dict[str, int]:
    """The tokens of a vocabulary (name to id) whose name ends an answer.

    given: ids of COMPLETION_KEYS that the file states; a stated id leaves its names without effect.
    """
    names = set(ENDS)
    for key, some in _COMPLETION_ENDS.items():
        if key not in given:
            names |= some
    found = {name: vocabulary[name] for name in names if name in vocabulary}
    # In OpenAI's and Solar's harmony formats <|end|> ends a message, after which others follow.
    calls = "<|call|>" in found or "<|calls|>" in found
    if calls and ("<|return|>" in found or "<|flush|>" in found):
        found.pop("<|end|>", None)
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return found
