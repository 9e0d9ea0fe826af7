r"""The chat template of a model file, adjusted so that a small model's tool calls are recognised.

llama.cpp derives its tool-call parser from the chat template. Qwen2.5-Coder-1.5B is trained on <tool_call> markers but
writes its calls into a ```json fence, so they would come back as text; with the fence as the marker they come back as
calls. It also needs to be told that acting means calling, and after a result that there is something left to say: it
repeats its last call otherwise. The wording was settled by trials; `tests/e2e/test_local_model.py` keeps one of them.

A template without those markers is used as it is: it belongs to a model we know nothing about.
"""

from __future__ import annotations

from typing import Final

CALL_OPENS: Final = "<tool_call>"
CALL_CLOSES: Final = "</tool_call>"
RESULT_CLOSES: Final = r"'\n</tool_response>'"
HOW_TO_CALL: Final = "within <tool_call></tool_call> XML tags"

RULES: Final = (
    "You act only through functions: nothing is written or run unless you call one. Answer a task with a function "
    "call, not with code for the user to run."
)
RULE_OF_WRITE: Final = (
    "To make a program, first write its source to a file, such as program.py, with the write function. After that, "
    "run it with bash."
)
"""Said only to a model that has a `write` function."""
AFTER_RESULT: Final = (
    "If the user asked for another step, such as running the program, call the function for it now. Otherwise tell "
    "the user in one sentence what was done."
)
AFTER_ERROR: Final = "That did not work. Call a function now that corrects it, or that does the step which is missing."
ERROR_PREFIX: Final = "Error: "
"""How `local.py` marks a result that is an error."""


def adjusted(template: str | None) -> str | None:
    """The template to serve instead, or None when the model's own is right as it is."""
    if template is None or not all(marker in template for marker in (CALL_OPENS, CALL_CLOSES, RESULT_CLOSES)):
        return None
    template = _with_rules(template)
    template = template.replace(HOW_TO_CALL, "in a ```json code block")
    template = template.replace(CALL_OPENS, "```json").replace(CALL_CLOSES, "```")
    note = f"('{AFTER_ERROR}' if '{ERROR_PREFIX}' in message.content else '{AFTER_RESULT}')"
    return template.replace(RESULT_CLOSES, rf"{RESULT_CLOSES} + ('\n\n' + {note} if loop.last else '')")


def _with_rules(template: str) -> str:
    """The rules stand right behind the explanation of how to call."""
    # The explanation shows the form of a call with its braces doubled, a mistake of the upstream template.
    template = template.replace(r"{{\"name\": <function-name>", r"{\"name\": <function-name>")
    template = template.replace("<args-json-object>}}", "<args-json-object>}")
    explained, end, rest = template.partition(rf"{CALL_CLOSES}<|im_end|>")
    if not end:
        return template
    write = (
        f"""{{%- for tool in tools if tool.function.name == 'write' %}}{{{{- " {RULE_OF_WRITE}" }}}}{{%- endfor %}}"""
    )
    return rf'{explained}{CALL_CLOSES}\n\n{RULES}" }}}}{write}{{{{- "<|im_end|>{rest}'
