"""Writes templates.json: chat templates with what transformers makes of them. Run it after changing the cases:

python router/tests/golden/templates.py > router/tests/golden/templates.json
"""

import json

from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = {
    "chatml": """{% for message in messages %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "headers": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{{- "Cutting off: " + "today" + "\\n\\n" }}
{{- system_message }}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls[0].function | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    "alternating": """{%- if messages[0]["role"] == "system" -%}
  {%- set system = messages[0]["content"] -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}
  {%- set loop_messages = messages -%}
{%- endif -%}
{%- set ns = namespace(index=0) -%}
{%- for message in loop_messages -%}
  {%- if (message["role"] == "user") != (ns.index % 2 == 0) -%}
    {{- raise_exception("roles must alternate user and assistant") -}}
  {%- endif -%}
  {%- set ns.index = ns.index + 1 -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in loop_messages -%}
  {%- if message["role"] == "user" -%}
    {%- if loop.last and system is defined -%}
      {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" -}}
    {%- else -%}
      {{- "[INST] " + message["content"] + "[/INST]" -}}
    {%- endif -%}
  {%- else -%}
    {%- generation -%}{{- " " + message["content"].strip() + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
""",
    "turns": """{{ bos_token }}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model
' }}
{%- endif -%}
""",
    "thinking": """{%- macro show(message) -%}{{ message.role | upper }}: {{ message.content }}{%- endmacro -%}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is string and not message.content.startswith('<tool>') %}
        {%- set ns.last = index %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- content }}
    {%- elif message.reasoning_content is defined and message.reasoning_content is not none %}
        {{- '<think>' + message.reasoning_content + '</think>' + message.content }}
    {%- else %}
        {{- show(message) }}
    {%- endif %}
    {%- if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}
{{ ns.last }}
""",
    "printing": """{% for message in messages %}
{{ message }}
  {% if loop.first %}first{% else %}{{ loop.index }}/{{ loop.length }}{% endif %}

{{ message.content | tojson }} {{ message.content | tojson(indent=2) }} {{ message | string | length }}
{{ message.get('name', 'nobody') }} {{ message.items() | list | length }} {{ message.keys() | join('+') }}
{{ tools is none }} {{ tools }} {{ 1.0 }} {{ 1e20 }} {{ [1, 'a', none, {'b': true}] }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }}
{{ message.content | replace('a', 'b') | title }} {{ (message.content ~ 1 ~ none) | length }}
{% endfor %}
{%- if messages[-1].role != 'user' %}{{ "not a user" }}{% endif %}
""",
}

CONVERSATIONS = {
    "one": [{"role": "user", "content": 'Hello, <b>world</b> & it\'s "fine"'}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi\n"}],
    "several": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "  b\n\n"},
        {"role": "user", "content": "c é 😀 \u2028 \x7f"},
    ],
    "wrong order": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "reasoning": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "because"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "<think>x</think>\n\nd"},
        {"role": "user", "content": "e"},
    ],
    "calls": [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"city": "Z'ürich", "n": 1.0}}}],
        },
        {"role": "tool", "content": '{"t": 3}', "name": "w"},
        {"role": "user", "content": "thanks"},
    ],
    "empty": [{"role": "user", "content": ""}],
    "continued": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Sure, "}],
    "continued long": [{"role": "user", "content": "Sure"}, {"role": "assistant", "content": "Sure\n\nb"}],
}


def render(template: str, messages: list) -> str | None:
    continues = messages[-1]["role"] == "assistant"
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            continue_final_message=continues,
            add_generation_prompt=not continues,
            bos_token="<s>",
            eos_token="</s>",
        )
    except Exception:
        return None
    return rendered[0]


def main() -> None:
    cases = [
        {"name": f"{kind}, {case}", "template": template, "messages": messages, "rendered": render(template, messages)}
        for kind, template in TEMPLATES.items()
        for case, messages in CONVERSATIONS.items()
    ]
    print(json.dumps(cases, indent=1, ensure_ascii=True))


if __name__ == "__main__":
    main()
