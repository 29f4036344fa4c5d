"""Notebooks and README as readers of the site want them."""

import json
import re

DIRECTIVE = re.compile(r"^#\| ?(?P<name>[\w-]+):? ?(?P<value>.*)\n?", re.MULTILINE)
HIDDEN = ("hide", "default_exp")


def readable(text):
    "Return a notebook without what is nbdev's alone, its pictures with alternative texts."
    notebook = json.loads(text)
    shown, said = [], ""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            said = last_paragraph(source) or said
        else:
            directives = {m["name"]: m["value"] for m in DIRECTIVE.finditer(source)}
            if any(name in directives for name in HIDDEN):
                continue
            cell["source"] = DIRECTIVE.sub("", source)
            alt = directives.get("fig-alt", "").strip('"') or f"Output of the code above. {said}"
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        shown.append(cell)
    return json.dumps(notebook | {"cells": shown})


def last_paragraph(markdown):
    "Return the last paragraph of a text as plain words, at most two hundred characters of it."
    paragraphs = [p for p in markdown.split("\n\n") if p.strip() and p[0] not in "|`$"]
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", paragraphs[-1] if paragraphs else "")
    words = " ".join(re.sub(r"[#>*`$\\]", "", words).split())
    return words if len(words) <= 200 else words[:200].rsplit(" ", 1)[0] + " ..."


def from_docs(readme):
    "Return README's text with links that hold in docs/."
    return re.sub(r"\]\((?!\w+:|#)", "](../", readme)
