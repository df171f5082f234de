"""Settings of a tokenizer: one table of which file decides what.

`resolve` is that table, a function of the files' contents alone; files.py reads them. For each
field the first source that states it wins:

    class              tokenizer_config.json, config.json; else what the vocabulary file implies
    BOS, EOS, ... by   special_tokens_map.json (unless tokenizer_config.json has
      name             added_tokens_decoder), tokenizer_config.json (null: there is none),
                       the class's defaults
    BOS by id          the name, generation_config.json, config.json, the vocabulary file
    EOS by id          all of: the name, generation_config.json, config.json; only where none states
                       any: the vocabulary file, or tokens known to end a turn (end_names)
    added tokens       tokenizer_config.json's added_tokens_decoder, else added_tokens.json; both
                       add to those of the vocabulary file
    before and after   tokenizer.json's post-processor; else add_bos_token, add_eos_token of
      a text           tokenizer_config.json; else the class's default
    spaces             tokenizer.json's normalizer and pre-tokenizer; else legacy and
                       add_prefix_space of tokenizer_config.json, and the vocabulary file
    chat template      chat_template.jinja and additional_chat_templates/*.jinja,
                       tokenizer_config.json, chat_template.json

This is what transformers does (5.x, where 4.57 differs). docs/models.md has the table for readers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.shown import shown
from hearth.converter.tokenizers.end_names import ENDS

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
MODEL_CONFIG = "config.json"
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"
CHAT_TEMPLATES = "additional_chat_templates"

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_ADDITIONAL = "additional_special_tokens"
_EXTRA = "extra_special_tokens"
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_END_OF_TEXT = "<|endoftext|>"
# Special tokens of classes whose files may leave them out.
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT),
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT),
    "GemmaTokenizer": {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
    },
}


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before it is split. Fields as in tokenizer.json.

    id: None for a token that gets the next free one.
    """

    id: int | None
    text: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of the files beside a vocabulary; empty where there is no such file.

    templates: chat templates in files of their own, by name; "default" is chat_template.jinja.
    """

    model_config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: Mapping[str, Any] = field(default_factory=dict)
    added_tokens: Mapping[str, Any] = field(default_factory=dict)
    template_json: Mapping[str, Any] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Decisions of the files beside a vocabulary.

    bos_id, eos_ids: from the model's configuration. bos_token, eos_token: by name. add_bos,
    add_eos, legacy, add_prefix_space: None where no file decides. special_tokens: as chat templates
    see them. gap_ids: see Tokenizer. added: in the order of their ids, then those without one.
    sources: for each field the file that decided it.
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    legacy: bool | None = None
    add_prefix_space: bool | None = None
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)
    tokenizer_class: str | None = None
    model_type: str | None = None
    special_tokens: Mapping[str, str | list[str]] = field(default_factory=dict)
    gap_ids: Mapping[str, int] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def special_ids(self, vocabulary: Mapping[str, int]) -> tuple[int | None, frozenset[int]]:
        """(bos_id, eos_ids), looked up by name in the vocabulary where needed."""
        bos_id = self.bos_id
        if self.bos_token is not None:
            bos_id = vocabulary.get(self.bos_token, bos_id)
        eos_ids = self.eos_ids
        if self.eos_token is not None and self.eos_token in vocabulary:
            eos_ids |= {vocabulary[self.eos_token]}
        if not eos_ids:
            eos_ids = frozenset(vocabulary[name] for name in ENDS if name in vocabulary)
        return bos_id, eos_ids

    @property
    def named(self) -> frozenset[str]:
        """The texts of all tokens that are named by their part ("eos_token")."""
        return frozenset(text for text in self.special_tokens.values() if isinstance(text, str))

    @property
    def hidden(self) -> frozenset[str]:
        """The texts of all tokens that a file calls special, whatever their own flags say."""
        lists = [text for text in self.special_tokens.values() if not isinstance(text, str)]
        return self.named.union(*lists)

    @property
    def is_bare(self) -> bool:
        """True where no file beside the vocabulary says anything."""
        return not self.sources

    def suffix(self, vocabulary: Mapping[str, int]) -> tuple[int, ...]:
        """The ids put after a text: EOS where add_eos_token says so."""
        id = vocabulary.get(self.eos_token or "") if self.add_eos else None
        return () if id is None else (id,)


def resolve(files: TokenizerFiles, bos_id: int | None, eos_ids: frozenset[int]) -> Settings:
    """Apply the table above. bos_id, eos_ids: as the caller's own configuration names them.

    Raises ModelError for contents of the wrong type.
    """
    sources: dict[str, str] = {}
    names = _names(files, sources)
    decided = "added_tokens_decoder" in files.config
    special = {key: text for key in names if (text := _text(names[key])) is not None}
    additional = _additional(names)
    texts: dict[str, str | list[str]] = {**special}
    if additional:
        texts[_ADDITIONAL] = [token.text for token in additional]
    added = _decoder(files.config["added_tokens_decoder"]) if decided else _json_added(files, texts)
    if added:
        sources["added"] = CONFIG if decided else ADDED_TOKENS
    known = {token.text for token in added}
    flagged = [_token(names[key]) for key in special] + additional
    added += [token for token in dict.fromkeys(flagged) if token.text not in known]
    template, named = _templates(files, sources)
    for source, stated in ((GENERATION, files.generation), (MODEL_CONFIG, files.model_config)):
        ids = _ids(source, stated, "bos_token_id")
        bos_id = min(ids) if bos_id is None and ids else bos_id
        eos_ids |= _ids(source, stated, "eos_token_id")
    model_type = files.model_config.get("model_type")
    return Settings(
        bos_id=bos_id,
        eos_ids=eos_ids,
        model_type=model_type if isinstance(model_type, str) else None,
        bos_token=special.get("bos_token"),
        eos_token=special.get("eos_token"),
        add_bos=_flag(files.config, "add_bos_token"),
        add_eos=_flag(files.config, "add_eos_token"),
        legacy=_flag(files.config, "legacy"),
        add_prefix_space=_flag(files.config, "add_prefix_space"),
        chat_template=template,
        named_templates=named,
        tokenizer_class=_class(files, sources),
        special_tokens=texts,
        added=tuple(added),
        sources=sources,
    )


def _class(files: TokenizerFiles, sources: dict[str, str]) -> str | None:
    """The tokenizer's class without "Fast", in which the two kinds of classes differ."""
    for source, stated in ((CONFIG, files.config), (MODEL_CONFIG, files.model_config)):
        name = stated.get("tokenizer_class")
        if isinstance(name, str) and name:
            sources["tokenizer_class"] = source
            return name if name == "PreTrainedTokenizerFast" else name.removesuffix("Fast")
    return None


def _names(files: TokenizerFiles, sources: dict[str, str]) -> dict[str, Any]:
    """Special tokens by their part ("eos_token"), as texts or objects; None: there is none."""
    names: dict[str, Any] = dict(_DEFAULTS.get(_class(files, {}) or "", {}))
    sources |= dict.fromkeys(names, "the tokenizer's class")
    places = [(CONFIG, files.config)]
    if "added_tokens_decoder" not in files.config:
        places.append((SPECIAL_TOKENS, files.special_tokens))
    for source, stated in places:
        extra = stated.get(_EXTRA)
        for key, value in {**stated, **(extra if isinstance(extra, Mapping) else {})}.items():
            if key in _NAMED or (key.endswith("_token") and not isinstance(value, bool)):
                if key not in _NAMED and isinstance(names.get(key), str):
                    continue  # of tokens that only this model has, the first text stays
                names[key] = value
            elif key in (_ADDITIONAL, _EXTRA) and isinstance(value, list):
                names[key] = [*names.get(key, ()), *value]
            else:
                continue
            sources[key] = source
    places_of = {key: place for place, key in enumerate(_NAMED)}
    return dict(sorted(names.items(), key=lambda item: places_of.get(item[0], len(_NAMED))))


def _additional(names: Mapping[str, Any]) -> list[AddedToken]:
    tokens = [*names.get(_ADDITIONAL, ()), *names.get(_EXTRA, ())]
    return list(dict.fromkeys(_token(value) for value in tokens if _text(value) is not None))


def _text(value: Any) -> str | None:
    """A token as its text, or as an object with its `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _token(value: Any, id: int | None = None, special: bool | None = True) -> AddedToken:
    """A token from its text, or from an object with flags. special: None reads it there too."""
    stated = value if isinstance(value, Mapping) else {}
    if special is None:
        special = stated.get("special") is True
    return AddedToken(
        id,
        _text(value) or "",
        special,
        stated.get("lstrip") is True,
        stated.get("rstrip") is True,
        stated.get("single_word") is True,
        stated.get("normalized", not special) is True,
    )


def _decoder(value: Any) -> list[AddedToken]:
    """The tokens of tokenizer_config.json's added_tokens_decoder, in the order of their ids."""
    added = []
    for id, token in value.items() if isinstance(value, Mapping) else ():
        if not (id.isascii() and id.isdecimal() and len(id) < 10) or _text(token) is None:
            raise ModelError(f"{CONFIG}: added_tokens_decoder has a damaged entry {shown(id)}")
        added.append(_token(token, int(id), None if isinstance(token, Mapping) else True))
    return sorted(added, key=lambda token: token.id or 0)


def _json_added(files: TokenizerFiles, named: Mapping[str, str | list[str]]) -> list[AddedToken]:
    """The tokens of added_tokens.json; special are those that a file names as such."""
    special_texts = {text for value in named.values() for text in _flat(value)}
    added = []
    for text, id in files.added_tokens.items():
        if type(id) is not int or not 0 <= id < 1 << 31 or not text:
            raise ModelError(f"{ADDED_TOKENS}: token {shown(text)} has no usable id: {shown(id)}")
        special = text in special_texts
        added.append(AddedToken(id, text, special, normalized=not special))
    return sorted(added, key=lambda token: token.id or 0)


def _flat(value: str | list[str]) -> Iterator[str]:
    yield from [value] if isinstance(value, str) else value


def _flag(stated: Mapping[str, Any], key: str) -> bool | None:
    value = stated.get(key)
    return value if isinstance(value, bool) else None


def _ids(source: str, stated: Mapping[str, Any], key: str) -> frozenset[int]:
    """One or several token ids. Raises ModelError for anything else."""
    value = stated.get(key)
    items = value if isinstance(value, list) else [] if value is None else [value]
    for item in items:
        if type(item) is not int or not 0 <= item < 1 << 31:
            raise ModelError(f"{source}: {key} is {value!r:.60}, not one or several token ids")
    return frozenset(items)


def _templates(
    files: TokenizerFiles, sources: dict[str, str]
) -> tuple[str | None, Mapping[str, str]]:
    """(the template of conversations, all templates by name)."""
    named = dict(files.templates)
    source = CHAT_TEMPLATE
    for place, stated in ((CONFIG, files.config), (CHAT_TEMPLATE_JSON, files.template_json)):
        if not named:
            source, named = place, _by_name(stated.get("chat_template"))
    if named:
        sources["chat_template"] = source
    return named.get("default"), named


def _by_name(value: Any) -> dict[str, str]:
    """One template, or several with names: a list of {"name", "template"}, or an object."""
    if isinstance(value, str):
        return {"default": value}
    items = [*value.items()] if isinstance(value, Mapping) else []
    listed = value if isinstance(value, list) else []
    items += [(x.get("name"), x.get("template")) for x in listed if isinstance(x, Mapping)]
    return {name: text for name, text in items if isinstance(name, str) and isinstance(text, str)}
