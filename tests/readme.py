"""Make README.md from nbs/index.ipynb: `python tests/readme.py`."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = "nbs/images"


def render():
    "The README's text and its pictures (path relative to the project -> bytes)."
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    removed = dict(remove_input_tags={"remove_input"}, remove_cell_tags={"remove_cell"})
    config = Config(TagRemovePreprocessor=dict(enabled=True, **removed))
    places = dict(output_files_dir=PICTURES, unique_key="index")
    exporter = MarkdownExporter(config=config)
    text, resources = exporter.from_filename(str(ROOT / "nbs/index.ipynb"), resources=places)
    text = re.sub(r"\]\(([\w/]+\.ipynb)\)", r"](nbs/\1)", text).replace("](../", "](")
    return text.strip() + "\n", resources["outputs"]


if __name__ == "__main__":
    text, pictures = render()
    (ROOT / "README.md").write_text(text)
    for path, content in pictures.items():
        os.makedirs((ROOT / path).parent, exist_ok=True)
        (ROOT / path).write_bytes(content)
