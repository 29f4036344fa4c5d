"""Install prle; everything it says is read from settings.ini."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here / "settings.ini")
cfg = config["DEFAULT"]
extras = {
    name: cfg[f"{name}_requirements"].split()
    for name in ("faces", "mtcnn", "onnx", "paper", "cluster", "study", "dev")
}
readme = here / "README.md"


def elsewhere(text):
    "README as a package index shows it: links lead to `git_url`, and are plain words as long as there is none."
    home = cfg["git_url"].rstrip("/")
    if not home:
        text = re.sub(r"!\[[^]]*\]\((?!\w+:)[^)]*\)", "", text)
        return re.sub(r"\[([^]]*)\]\((?!\w+:|#)[^)]*\)", r"\1", text)
    text = re.sub(r"(!\[[^]]*\])\((?!\w+:)", rf"\1({home}/raw/{cfg['branch']}/", text)
    return re.sub(r"\]\((?!\w+:|#)", f"]({home}/blob/{cfg['branch']}/", text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=elsewhere(readme.read_text(encoding="utf-8")) if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["prle", "prle.*"]),
    # py.typed: the hints are for type checkers too (PEP 561)
    # the pages of the demo and of the user study; the files of jsPsych and js-sha256 come from npm, see their LICENSE
    package_data={
        "prle": ["py.typed"],
        "prle.lab": ["static/*"],
        "prle.study": ["static/*", "static/jspsych/*", "static/js-sha256/*"],
    },
    install_requires=cfg["requirements"].split(),
    extras_require={**extras, "all": sum(extras.values(), [])},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
