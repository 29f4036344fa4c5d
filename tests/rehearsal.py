"""The whole paper in the preset smoke: `python tests/rehearsal.py OUTPUTS`.

This is `prle reproduce` with fewer kernels: the notebooks of the paper have one form, so one of them goes
through papermill, and the others run in this process, which has paid for the imports once.
"""

import sys

import nbformat
from execnb.shell import exec_nb

from prle import cli
from prle.paper import reproduce as module

PAPERMILL = ("table3_cross_manipulation",)
"The notebooks that are run as always: one with a table and a figure."
run_notebook = module.run_notebook


def run_here(source, out, **parameters):
    "Run a notebook in this process, and write its copy with the outputs."
    cells = nbformat.read(source, as_version=4).cells
    (place,) = [i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    given = [f"{name} = {value!r}" for name, value in parameters.items()]
    code = "\n".join([cells[place].source, *given])
    out.parent.mkdir(parents=True, exist_ok=True)
    main = sys.modules["__main__"]
    try:
        exec_nb(str(source), str(out), exc_stop=True, inject_code=code, inject_idx=place)
    finally:
        sys.modules["__main__"] = main  # a shell puts its own there
    return out


def run(source, out, **parameters):
    "Run a notebook here or with papermill."
    through = run_notebook if source.stem in PAPERMILL else run_here
    return through(source, out, **parameters)


if __name__ == "__main__":
    module.run_notebook = run
    words = ["reproduce", *module.list_notebooks(), "--preset", "smoke"]
    sys.exit(cli.main([*words, "--outputs", sys.argv[1]]))
