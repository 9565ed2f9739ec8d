"""Chat templates for models that have none: a base model, or one trained from nothing, that is to chat.

In: a name, or a template of one's own. Out: its jinja source, the control tokens it writes with, and the one that ends
a turn. What the assistant says stands in {% generation %} blocks, so that the mask of training is the template's own
word. Functions are offered and called as JSON between <tools> and <tool_call>, which stay text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatTemplate:
    """`control_tokens` are added to a tokenizer that lacks them; `end` (one of them) ends every turn."""

    source: str
    control_tokens: tuple[str, ...] = ()
    end: str | None = None


# What a call looks like: '{"name": …, "arguments": …}' between its marks, on lines of their own.
_CALLS = """\
{%- macro called(message) %}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function if call.function else call %}
{{- ('\\n' if message.content or not loop.first else '') + '<tool_call>\\n{"name": ' + function.name | tojson }}
{{- ', "arguments": ' + (function.arguments if function.arguments is string else function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{%- endmacro %}
{%- macro offered() %}
{{- 'Functions that may be called, by {"name": …, "arguments": {…}} between <tool_call> and </tool_call>:\\n' }}
{{- '<tools>\\n' }}
{%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}
{{- '</tools>' }}
{%- endmacro %}
{%- set own_system = messages and messages[0].role in ('system', 'developer') %}
"""

CHATML = _CALLS + """\
{%- if tools and not own_system %}{{ '<|im_start|>system\\n' + offered() + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ (message.content or '') + called(message) + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content or '' }}
{%- if tools and loop.first and own_system %}{{ '\\n\\n' + offered() }}{% endif %}{{ '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = _CALLS + """\
{{- bos_token if bos_token else '' }}
{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- if tools and not own_system %}{{ head('system') + offered() + '<|eot_id|>' }}{% endif %}
{%- for message in messages %}
{{- head(message.role) }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ (message.content or '') + called(message) + '<|eot_id|>' }}{% endgeneration %}
{%- else %}{{ message.content or '' }}
{%- if tools and loop.first and own_system %}{{ '\\n\\n' + offered() }}{% endif %}{{ '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""

TEMPLATES = {
    "chatml": ChatTemplate(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama3": ChatTemplate(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
}


def template_named(name: str) -> ChatTemplate:
    """The template of that name; any other text is a template's source, whose control tokens a tokenizer must have."""
    return TEMPLATES.get(name, ChatTemplate(name))
