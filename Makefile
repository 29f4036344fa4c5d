# Two commands do everything, set-up included:  make paper   make test
PYTHON ?= python3
PRESET ?= mini
SEEDS  ?= 1
DATA   ?=
ONLY   ?=
ENGINE ?= $(if $(filter mini,$(PRESET)),ray,local)
BIN    := .venv/bin
TOOLS  := .tools/bin

.PHONY: help setup paper paper-all claims reference test test-fast test-long coverage campaign bench lab export docs lock audit clean

help: # what can be made
	@grep -E '^[a-z-]+:.*# ' Makefile | sed -E 's/^([a-z-]+):.*# /\1|/' | column -t -s '|'

setup: .venv/installed # .venv, exactly as requirements.lock says

# Nothing floats: every package is in requirements.lock with the hashes of its files. setuptools comes first, for those
# that are built from source. A .venv that was made here of another lock, or that was not finished, is emptied, so that
# nothing of it stays. One that was not made here is kept.
RECENT = import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " \
	+ sys.version.split()[0] + "; name another: make PYTHON=python3.11")
.venv/locked: requirements.lock
	test -x $(BIN)/python -a ! -e $@ -a ! -e .venv/installed -a ! -e .venv/made || { \
	  $(PYTHON) -c '$(RECENT)' || exit 1; \
	  $(PYTHON) -m venv --clear .venv && touch .venv/made || { rm -rf .venv; exit 1; }; }
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > .venv/setuptools.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement .venv/setuptools.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation --use-pep517 --requirement requirements.lock
	touch $@

.venv/installed: .venv/locked settings.ini setup.py
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --use-pep517 --editable .
	touch $@

# Tables I, III, VIII, Figures 1-4, 7, 8, the controls and outputs/report.html; one and a half to two hours on two cores.
# ray: as many runs at once as there are cores; local: one after the other, each on all cores or the GPU.
# make paper ONLY="table3 figure7" SEEDS=3 PRESET=paper DATA=/data
paper: setup # the headline tables and figures, and outputs/report.html
	$(BIN)/prle reproduce $(ONLY) --preset $(PRESET) --seeds $(SEEDS) --engine $(ENGINE) $(if $(DATA),--data $(DATA))

# every table, figure and claim
paper-all: ONLY = all
paper-all: paper # every table, figure and claim

# Table III with four seeds, which test all forty people of the mini benchmark once; its caption says which difference
# that could have seen. What is there is used again, so that it can be stopped, or go on with SEEDS=8.
claims: ONLY = table3
claims: SEEDS = 4
claims: paper # the main comparison of the mini benchmark, with the seeds that it needs

# After make paper-all: what its notebooks show goes into nbs/paper/, their tables into outputs/reference/.
reference: setup # keep what the notebooks of the paper show, for readers who run nothing
	$(BIN)/python tests/reference.py

# tests/conftest.py puts the longest files first
SHARED = --numprocesses 2 --dist loadfile --no-loadscope-reorder
# of nbs/paper, where the tests run the other notebooks themselves, and .notest keeps nbdev_test away
EXPORTED = --path nbs/paper --file_re '^[0-9]' --ignore_fname .none
test: setup # everything that has to pass
	$(BIN)/ruff format --quiet --check nbs tests setup.py
	$(BIN)/ruff check nbs tests setup.py
	$(BIN)/mypy
	OMP_NUM_THREADS=1 PRLE_QUIET=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 PRLE_QUIET=1 $(BIN)/nbdev_test --n_workers 2 $(EXPORTED)
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SHARED)

# Apart from the tests, since tracing every line takes as long again as they do.
coverage: setup # how much of prle/ the tests run; fails below 97%
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SHARED) --cov=prle --cov-report=term:skip-covered --cov-fail-under=97

FAST = frame core trust fields localization fusion masking metrics datasets paper
test-fast: setup # lint, the frame and the method
	$(BIN)/ruff format --quiet --check nbs tests setup.py
	$(BIN)/ruff check nbs tests setup.py
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SHARED) $(wildcard $(FAST:%=tests/test_%.py)) -k "not setup_installs"

# The cells that train something worth a picture, the mini benchmark with fully trained generators, full-size networks,
# the claims on official layouts.
test-long: setup # what takes minutes each
	OMP_NUM_THREADS=1 PRLE_QUIET=1 $(BIN)/nbdev_test --n_workers 2 --flags slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -m long

# 20 minutes of accidents and attacks, on this machine alone; exit code 1 if one ends badly. Linux.
campaign: setup # twenty minutes of accidents and attacks
	$(BIN)/python -m tests.campaign --seed 0 --minutes 20 --out outputs/campaign.md

# with nothing else running; the results stay in the notebooks
bench: setup # speed and memory, measured again
	for name in faces datasets detectors localization fusion masking metrics trainer scale engines; do \
	  PRLE_QUIET=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/bench/$$name.ipynb && $(BIN)/nbdev_clean --fname nbs/bench/$$name.ipynb || exit 1; \
	done

lab: setup # JupyterLab
	$(BIN)/jupyter lab --notebook-dir nbs

export: setup # after editing a notebook: formatted, generated code, clean notebooks, README
	$(BIN)/ruff format nbs tests setup.py
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tests/readme.py

# Nothing is executed: the outputs that the notebooks hold are shown. A warning (a dead link, a formula that cannot be read) is
# an error.
docs: setup .tools/installed # the site, in _docs/html/
	$(BIN)/python docs/api.py
	$(TOOLS)/sphinx-build --fail-on-warning --keep-going --quiet --jobs auto -c docs -d _docs/trees . _docs/html

# uv, which writes the locks, pip-audit, and what makes the site: in a place of their own, by a lock of their own
.tools/installed: tools.lock
	$(PYTHON) -m venv --clear .tools
	$(TOOLS)/python -m pip install --quiet --require-hashes --requirement tools.lock
	touch $@

# After a change of settings.ini's packages. One version of each for all platforms and Python versions, with the hashes of all
# of its files; uv reads settings.ini anew and not from its cache. What is locked stays as it is; LOCK=--upgrade takes the newest, LOCK="--upgrade-package NAME" one of them.
COMPILE = $(TOOLS)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --allow-unsafe \
	--python-version $(shell sed -n 's/^min_python = //p' settings.ini) --custom-compile-command 'make lock' \
	--refresh-package prle $(LOCK)
# mtcnn and onnx are installed on request alone.
LOCKED = faces paper cluster study dev
lock: .tools/installed # both locks anew, with all hashes
	$(COMPILE) setup.py $(LOCKED:%=--extra %) --output-file requirements.lock
	printf '%s\n' uv pip-audit sphinx myst-nb furo | $(COMPILE) - --output-file tools.lock

# known vulnerabilities of the locked packages
audit: .tools/installed # known vulnerabilities of what is locked, where the service can be reached
	$(TOOLS)/python tests/audit.py $(TOOLS)/pip-audit requirements.lock

# outputs/ stays: it may hold days of training
clean: # all but outputs/
	rm -rf .venv .tools _docs docs/api *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage
