"""Forms of calls of the families whose chat templates do not show them."""

from collections.abc import Sequence

from hearth.root.api.tools.formats.base import CallFormat
from hearth.root.api.tools.formats.gemma import GemmaCalls
from hearth.root.api.tools.formats.json_calls import PLAIN, JsonCalls
from hearth.root.api.tools.formats.pythonic import PythonicCalls

# (texts that the template holds, all of them; the form), the first that fits.
_FORMS: Sequence[tuple[tuple[str, ...], CallFormat]] = (
    (("<|tool_call>call:",), GemmaCalls()),
    (
        ("<start_function_call>",),
        GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    # LFM2, Olmo 3, Llama 4: their templates write earlier calls as text, or not at all.
    (("<|tool_call_start|>",), PythonicCalls("<|tool_call_start|>", "<|tool_call_end|>")),
    (("<|tool_list_start|>",), PythonicCalls("<|tool_call_start|>", "<|tool_call_end|>")),
    (("<function_calls>", "<functions>"), PythonicCalls("<function_calls>", "</function_calls>")),
    (("<|python_start|>",), PythonicCalls("<|python_start|>", "<|python_end|>")),
    # Granite 3.
    (
        ("<|start_of_role|>", "<|tool_call|>"),
        JsonCalls("<|tool_call|>", others=("<tool_call>",), listed=True),
    ),
    # Phi-4-mini, Firefunction.
    (
        ("<|tool|>", "<|/tool|>"),
        JsonCalls("<|tool_call|>", "<|/tool_call|>", others=("functools",), listed=True),
    ),
    (("functools[",), JsonCalls("functools", listed=True)),
    # SmolLM3.
    (("xml_tools",), PLAIN),
    # Llama 3: JSON alone, or after the token that also opens code.
    (
        ("<|start_header_id|>", '"parameters": '),
        JsonCalls(others=("<|python_tag|>",), arguments_key="parameters"),
    ),
)


def exception_of(template: str) -> CallFormat | None:
    """The form of the family to which a chat template belongs; None where it shows its form."""
    return next((form for texts, form in _FORMS if all(t in template for t in texts)), None)
