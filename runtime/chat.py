"""Chat templates in jinja2's immutable sandbox, with the conveniences that templates for transformers expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from edge_svd.runtime.bundle import Bundle
from edge_svd.runtime.errors import InputError

TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
_MAX_REPEAT = 1_000_000
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template with the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """InputError if the template does not compile."""
        from jinja2 import TemplateError

        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise InputError(f"The chat template cannot be compiled ({_short(error)}).") from None

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ChatTemplate:
        """From chat_template.jinja, else from tokenizer_config.json; InputError if the bundle has neither."""
        config = bundle.read_json(TOKENIZER_CONFIG_NAME)
        config = config if isinstance(config, dict) else {}
        if TEMPLATE_NAME in bundle.manifest.files:
            try:
                source: Any = bundle.read(TEMPLATE_NAME).decode("utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{TEMPLATE_NAME} in the bundle {bundle.path} is not UTF-8.") from None
        else:
            source = config.get("chat_template")
        if isinstance(source, list):
            named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
            source = named.get("default")
        if not isinstance(source, str):
            raise InputError(
                f"The bundle {bundle.path} has no chat template, so its model cannot chat; use `edge-svd run` instead."
            )
        return cls(source, _special_tokens(config))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text that the model continues.

        InputError if the template refuses the messages or reaches out of its sandbox.
        """
        values = {**self._special_tokens, "tools": None, "documents": None, **variables}
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **values)
        except MemoryError:
            raise InputError("The chat template needs more memory than there is.") from None
        except Exception as error:  # a template is a program: it can raise whatever Python can
            raise InputError(f"The chat template cannot be rendered ({_short(error)}).") from None


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; rendering only needs what is inside."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Environment(ImmutableSandboxedEnvironment):
        """The sandbox, with a limit on `'x' * n` and `a ** b`, which it leaves free."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or any(isinstance(side, int) and abs(side) > _MAX_REPEAT for side in (left, right)):
                raise TemplateError("the product or power is too large")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        # jinja2's own filter escapes HTML, which models are not trained on.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    result = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            result[name] = value
    return result


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
