"""Write a page of reference for each module: `python docs/api.py` (part of `make docs`).

The parameters are what `docments`, nbdev's parser, reads from the comments; the pages are made of Sphinx's
Python domain, so that names are found by the search and can be linked to."""

import ast
import inspect
import pkgutil
import re
import types
from importlib import import_module
from io import StringIO
from pathlib import Path
from textwrap import dedent
from tokenize import COMMENT, generate_tokens

from fastcore.basics import AttrDict
from fastcore.docments import docments

import prle

HERE = Path(__file__).parent
WINGS = {
    "": "The method",
    "detectors": "Detectors",
    "data": "Data",
    "training": "Training",
    "mini": "The mini benchmark",
    "lab": "The lab",
    "study": "The user study",
    "paper": "The paper",
}
"Packages below `prle` in the order of reading, and what the site calls them."

METHODS = (types.FunctionType, classmethod, staticmethod, property)


def spelled(annotation):
    "Return a type as it is written, without the modules that it comes from."
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(\w+\.)+(?=\w)", "", text)


def value(default):
    "Return a default as one would write it; long ones are cut."
    name = getattr(default, "__name__", None)
    text = name or (f'"{default}"' if isinstance(default, Path) else repr(default))
    text = re.sub(r"<(\w+\.)*(\w+).*>", r"\2", text.replace("\n", " "))
    return text if len(text) <= 60 else text[:57] + "..."


def signature(symbol):
    "Return names and defaults of the parameters, in brackets; the types stand in the table."
    try:
        parameters = inspect.signature(symbol).parameters.values()
    except ValueError:  # a class that takes what its base class takes
        return "()"
    plain = []
    for p in parameters:
        if p.name != "self":
            default = p.default if p.default is p.empty else Verbatim(value(p.default))
            plain.append(p.replace(annotation=p.empty, default=default))
    return str(inspect.Signature(plain))


class Verbatim(str):
    "Text whose representation is the text."

    def __repr__(self):
        return str(self)


def field_comments(cls):
    "Return the comments behind the fields of a `NamedTuple`, which `docments` does not read."
    source = dedent(inspect.getsource(cls))
    tokens = generate_tokens(StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == COMMENT}
    listed = [n for n in ast.parse(source).body[0].body if isinstance(n, ast.AnnAssign)]
    return {n.target.id: comments.get(n.end_lineno) for n in listed}


def documented(symbol):
    "Return what `docments` says of the parameters, and of what comes back (`return`)."
    found = docments(symbol, full=True, args_kwargs=True)
    found.pop("self", None)
    if inspect.isclass(symbol) and hasattr(symbol, "_fields"):
        for name, comment in field_comments(symbol).items():
            p = inspect.signature(symbol).parameters[name]
            found[name] = AttrDict(docment=comment, anno=p.annotation, default=p.default)
    return found


def code(text):
    "Return code for a cell of a table."
    return f"`{text}`".replace("|", r"\|") if text else ""


def rows(symbol):
    "Return a table of the documented parameters and of what comes back, or nothing where none is."
    found = documented(symbol)
    back = found.pop("return", None)
    lines = []
    for name, p in found.items():
        default = "" if p.default is inspect.Parameter.empty else value(p.default)
        lines.append((code(name), spelled(p.anno), default, p.docment))
    if back and back.docment:
        lines.append(("*returns*", spelled(back.anno), "", back.docment))
    if not any(meaning for *_, meaning in lines):
        return ""
    head = "| name | type | default | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(
        f"| {name} | {code(kind)} | {code(default)} | {cell(meaning)} |"
        for name, kind, default, meaning in lines
    )


def cell(comment):
    "Return a comment as the cell of a table."
    return re.sub(r"(?<!\\)\|", r"\|", " ".join((comment or "").split()))


def block(kind, name, *content, fence=4):
    "Return a directive of the Python domain."
    marks = "`" * fence
    body = "\n\n".join(part for part in content if part)
    return f"{marks}{{py:{kind}}} {name}\n{body}\n{marks}"


def described(name, symbol):
    "Return the entry of one function or class, its public methods among it."
    doc = inspect.cleandoc(symbol.__doc__ or "")
    if not inspect.isclass(symbol):
        return block("function", name + signature(symbol), doc, rows(symbol))
    methods = []
    for method, member in vars(symbol).items():
        if method.startswith("_") or not isinstance(member, METHODS):
            continue
        if isinstance(member, property):
            methods.append(block("property", method, inspect.cleandoc(member.__doc__ or "")))
        else:
            bound = getattr(symbol, method)
            methods.append(described(method, bound).replace("{py:function}", "{py:method}", 1))
    return block("class", name + signature(symbol), doc, rows(symbol), *methods, fence=5)


def constants(tree):
    "Return the constants of a module and the string below each."
    found = {}
    for node, after in zip(tree.body, tree.body[1:]):
        said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if said and isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = inspect.cleandoc(after.value.value)
    return found


def page(module):
    "Return the Markdown of a module's page."
    source = inspect.getsource(module)
    notebook = re.search(r"nbs/\S+\.ipynb", source)[0]
    said = constants(ast.parse(source))
    name = module.__name__
    parts = [f"# {name}", f"```{{py:module}} {name}\n```", inspect.cleandoc(module.__doc__ or "")]
    parts.append(f"Explained and tried out in [its notebook](../../{notebook}).")
    for exported in module.__all__:
        symbol = getattr(module, exported)
        if getattr(symbol, "__module__", name) != name:
            continue
        if inspect.isclass(symbol) or inspect.isfunction(symbol):
            parts.append(described(exported, symbol))
        else:
            parts.append(block("data", exported, said.get(exported, "")))
    return "\n\n".join(parts) + "\n"


def pages():
    "Return all pages by their path in docs/api/, and the table of contents."
    made = {}
    wings = {wing: [] for wing in WINGS}
    for found in pkgutil.walk_packages(prle.__path__, "prle."):
        module = import_module(found.name)
        if getattr(module, "__all__", None):
            wing = found.name.split(".")[1] if found.name.count(".") > 1 or found.ispkg else ""
            made[f"{found.name}.md"] = page(module)
            wings[wing].append(found.name)
    contents = ["# Reference", "All that the modules export, by module."]
    for wing, names in wings.items():
        contents.append(f"```{{toctree}}\n:caption: {WINGS[wing]}\n\n" + "\n".join(names) + "\n```")
    return made | {"index.md": "\n\n".join(contents) + "\n"}


def write(folder):
    "Write the pages that changed, so that Sphinx reads only these again."
    folder.mkdir(exist_ok=True)
    made = pages()
    for name, text in made.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.glob("*.md"):
        if path.name not in made:
            path.unlink()


if __name__ == "__main__":
    write(HERE / "api")
