"""Make README.md from nbs/index.ipynb: `python tests/readme.py`."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = "nbs/images"


def render():
    "The README's text and its pictures (path relative to the project -> bytes)."
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    removed = dict(remove_input_tags={"remove_input"}, remove_cell_tags={"remove_cell"})
    config = Config(TagRemovePreprocessor=dict(enabled=True, **removed))
    places = dict(output_files_dir=PICTURES, unique_key="index")
    exporter = MarkdownExporter(config=config)
    notebook = ROOT / "nbs/index.ipynb"
    text, resources = exporter.from_filename(str(notebook), resources=places)
    sources = "\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells)
    alts = iter(re.findall(r"^#\| fig-alt: (.+)$", sources, flags=re.M))
    text = re.sub(r"!\[png\]", lambda picture: f"![{next(alts)}]", text)
    text = re.sub(r"\]\(([\w/]+\.ipynb)\)", r"](nbs/\1)", text).replace("](../", "](")
    return text.strip() + "\n", resources["outputs"]


if __name__ == "__main__":
    text, pictures = render()
    (ROOT / "README.md").write_text(text)
    for path, content in pictures.items():
        os.makedirs((ROOT / path).parent, exist_ok=True)
        (ROOT / path).write_bytes(content)
