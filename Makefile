# make book                                      the phantom's book: no download, minutes on a laptop
# make book PARAMS=miyawaki MIYAWAKI=FILE.mat    the same notebooks on a real recording
# make book PARAMS=nsd NSD=FOLDER                the same notebooks on NSD
# make book PARAMS=laion LAION=FOLDER            the same notebooks on LAION-fMRI
# make book PARAMS=paper NSD=FOLDER              … with the settings of the paper
# make book PARAMS=own OWN=FILE.h5               the same notebooks on your own recording
# make test | make browser | make lint | make size | make lab | make clean

PYTHON ?= python3
VENV ?= .venv
PARAMS ?= phantom
SET ?=
MIYAWAKI ?=
MIYAWAKI_FULL ?=
KAY ?=
NSD ?=
LAION ?=
OWN ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA_miyawaki := $(MIYAWAKI)
DATA_miyawaki_full := $(MIYAWAKI_FULL)
DATA_kay := $(KAY)
DATA_nsd := $(NSD)
DATA_laion := $(LAION)
DATA_paper := $(or $(PAPER),$(NSD))
DATA_own := $(OWN)
DATA := $(DATA_$(PARAMS))

# pip would compile every module of every package, for most of a minute (--no-compile, below). Each is
# compiled when it is first imported instead, and that must be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book test browser lint size lab clean environment
.DEFAULT_GOAL := book

book: $(READY)
	@$(BIN)/minddiff book $(PARAMS) $(if $(DATA),--data "$(DATA)") $(foreach item,$(SET),--set $(item))

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(TESTS)

# The books in runs/ in a real browser: tests/test_browser.py says what it needs.
browser: $(READY)
	@$(BIN)/python -m pytest -q -m browser tests/test_browser.py

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

size: $(READY)
	@$(BIN)/python -m studies size

lab: $(READY)
	@$(BIN)/minddiff data
	@cd notebooks && $(abspath $(BIN))/python -m jupyter lab

clean:
	rm -rf runs .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

environment: $(READY)

# What the lock names is complete: two halves of it at a time, and nothing looked up; then what only
# some machines need, as torch for a GPU. The stamp comes last, so an installation that was stopped half-way is done again.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("$(PYTHON) is Python %d.%d; the book needs 3.11 or later: make PYTHON=python3.11 …" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Installing the packages of requirements.lock into $(VENV): a few minutes, the first time only."
	@$(PYTHON) -m venv --clear $(VENV)
	@grep -v '^#' requirements.lock | xargs -P 2 -n 130 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
