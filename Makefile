# Two commands do everything, set-up included:  make paper   make test
PYTHON ?= python3
PRESET ?= mini
SEEDS  ?= 1
DATA   ?=
ONLY   ?=
ENGINE ?= $(if $(filter mini,$(PRESET)),ray,local)
BIN    := .venv/bin

.PHONY: setup paper paper-all test campaign bench lab export clean

setup: .venv/installed

.venv/installed: settings.ini setup.py requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[faces,paper,cluster,study,dev]' --constraint requirements.lock
	$(BIN)/python -c "import cv2" || { echo "OpenCV needs the system's libGL. On Debian or Ubuntu: apt install libgl1 libglib2.0-0"; exit 1; }
	touch $@

# Tables I, III, VIII, Figures 1-4, 7, 8 and outputs/report.html; half an hour on two cores.
# ray: as many runs at once as there are cores; local: one after the other, each on all cores or the GPU.
# make paper ONLY="table3 figure7" SEEDS=3 PRESET=paper DATA=/data
paper: setup
	$(BIN)/prle reproduce $(ONLY) --preset $(PRESET) --seeds $(SEEDS) --engine $(ENGINE) $(if $(DATA),--data $(DATA))

# every table, figure and claim
paper-all: ONLY = all
paper-all: paper

test: setup
	$(BIN)/ruff check nbs tests setup.py
	OMP_NUM_THREADS=1 PRLE_QUIET=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

# 20 minutes of accidents and attacks, on this machine alone; exit code 1 if one ends badly. Linux.
campaign: setup
	$(BIN)/python -m tests.campaign --seed 0 --minutes 20 --out outputs/campaign.md

# with nothing else running; the results stay in the notebooks
bench: setup
	for name in faces datasets detectors localization fusion masking metrics trainer engines; do \
	  PRLE_QUIET=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/bench/$$name.ipynb && $(BIN)/nbdev_clean --fname nbs/bench/$$name.ipynb || exit 1; \
	done

lab: setup
	$(BIN)/jupyter lab --notebook-dir nbs

# after editing a notebook: generated code, clean notebooks, README
export: setup
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tests/readme.py

# outputs/ stays: it may hold days of training
clean:
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .coverage
