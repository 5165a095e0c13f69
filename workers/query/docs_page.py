"""docs/openapi.yaml as one readable page: no script, no font, nothing from another machine. Pure: a document to text.

It shows what an OpenAPI 3.1 document of ours uses; a part that it does not know is shown as YAML would have it.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

import yaml

_METHODS: Final = ("get", "post", "put", "delete")
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#1b1b1b;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}h3{font-size:1rem}
code,pre{font:13px/1.45 ui-monospace,monospace;background:#f3f3f3;border-radius:3px;padding:.1em .3em}
pre{padding:.6rem;overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #e3e3e3}
.method{display:inline-block;min-width:4.5rem;font-weight:600}nav a{display:block}a{color:#0b57a4}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#151515}code,pre{background:#262626}
th,td,h2{border-color:#3a3a3a}a{color:#7ab7f5}}
"""


def render(document: Mapping[str, Any]) -> str:
    """The page."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: HTTP API</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{title}: HTTP API</h1>{_text(info.get('summary'))}{_text(info.get('description'))}",
        '<p>The same for programs: <a href="/openapi.yaml">openapi.yaml</a></p>',
        f"<nav>{''.join(_links(document))}</nav>",
        *_operations(document),
        "<h2>Schemas</h2>",
        *(_schema(name, schema) for name, schema in document["components"]["schemas"].items()),
        "</body></html>\n",
    ]
    return "".join(parts)


def _each(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """Path, method, operation, and the path's own item."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method], item


def _links(document: Mapping[str, Any]) -> Iterator[str]:
    for path, method, operation, _ in _each(document):
        text = f'<span class="method">{method.upper()}</span><code>{escape(path)}</code>'
        yield f'<a href="#{_anchor(method, path)}">{text} {escape(operation.get("summary", ""))}</a>'


def _anchor(method: str, path: str) -> str:
    return escape(method + path.replace("/", "-").replace(".", "-"))


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, method, operation, item in _each(document):
        yield f'<h2 id="{_anchor(method, path)}">{method.upper()} <code>{escape(path)}</code></h2>'
        yield _text(operation.get("summary")) + _text(operation.get("description"))
        given = (*item.get("parameters", ()), *operation.get("parameters", ()))
        parameters = [_resolved(document, each) for each in given]
        if parameters:
            yield "<h3>Parameters</h3>" + _table(_parameter(each) for each in parameters)
        body = operation.get("requestBody")
        if body is not None:
            yield "<h3>Body</h3>" + _content(_resolved(document, body))
        yield "<h3>Answers</h3>"
        answers = operation["responses"].items()
        yield _table((escape(str(status)), _answer(_resolved(document, each))) for status, each in answers)


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str]:
    need = ", required" if parameter.get("required") else ""
    name = f"<code>{escape(parameter['name'])}</code>{need}"
    return name, _text(parameter.get("description")) + _shape(parameter.get("schema", {}))


def _answer(response: Mapping[str, Any]) -> str:
    return _text(response.get("description")) + _content(response)


def _content(holder: Mapping[str, Any]) -> str:
    shown = []
    for kind, media in holder.get("content", {}).items():
        shown.append(f"<p><code>{escape(kind)}</code></p>{_shape(media.get('schema', {}))}")
        examples = [media["example"]] if "example" in media else []
        examples += [each["value"] for each in media.get("examples", {}).values() if "value" in each]
        shown += [f"<pre>{escape(_yaml(example))}</pre>" for example in examples]
    return "".join(shown)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    return f'<h3 id="schema-{escape(name)}">{escape(name)}</h3>{_text(schema.get("description"))}{_shape(schema)}'


def _shape(schema: Any) -> str:
    """A schema: its name, its properties, or what is left of it as YAML."""
    if not isinstance(schema, Mapping):
        return f"<pre>{escape(_yaml(schema))}</pre>"
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rsplit("/", 1)[-1])
        return f'<a href="#schema-{name}">{name}</a>'
    if "properties" in schema:
        required = schema.get("required", ())
        rows = (
            (f"<code>{escape(name)}</code>" + (", required" if name in required else ""), _property(each))
            for name, each in schema["properties"].items()
        )
        return _table(rows)
    rest = {key: value for key, value in schema.items() if key != "description"}
    return f"<pre>{escape(_yaml(rest))}</pre>" if rest else ""


def _property(schema: Any) -> str:
    return (_text(schema.get("description")) if isinstance(schema, Mapping) else "") + _shape(schema)


def _table(rows: Iterator[tuple[str, str]] | Any) -> str:
    cells = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def _text(text: str | None) -> str:
    """Paragraphs, `code` in them marked."""
    if not text:
        return ""
    paragraphs = (escape(each.strip()) for each in str(text).split("\n\n"))
    return "".join(f"<p>{_code(each)}</p>" for each in paragraphs if each)


def _code(text: str) -> str:
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return text
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100))


def _resolved(document: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in part:
        return part
    found: Any = document
    for name in str(part["$ref"]).removeprefix("#/").split("/"):
        found = found[name]
    return found  # type: ignore[no-any-return]
