# wmpo-lite: `make` installs into .venv, `make demo` runs the main job, `make help` lists the rest.
# Choices: make PYTHON=/path/to/python3.12 ..., make demo ARGS="--task square --seed 1"

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
TORCH := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# The environment remembers absolute paths, so the stamp carries the folder's checksum: a moved checkout installs anew.
STAMP := $(VENV)/.installed-$(shell pwd | cksum | cut -d' ' -f1)

# The first Python that is new enough, the environment's own before others; else an old one, to say that it is too old.
find_python = for p in $(BIN)/python python3.11 python3.12 python3.13 python3.14 python3 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done; \
    python3 -c '' 2>/dev/null && echo python3
ifeq ($(origin PYTHON),undefined)
PYTHON = $(shell $(find_python))
endif

# What tests see: no progress bars, no downloads, and on Linux no screen (elsewhere MuJoCo's default draws without one).
TEST_ENV := TQDM_DISABLE=1 HF_HUB_OFFLINE=1 JUPYTER_PLATFORM_DIRS=1 TRANSFORMERS_VERBOSITY=error
# Notebooks under test: static pictures for widgets, short training, 90 s a cell at most.
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=90
ifeq ($(shell uname -s),Linux)
TEST_ENV += MUJOCO_GL=$${MUJOCO_GL:-egl}
endif
PYTEST = WMPO_STATIC=1 WMPO_PROFILE=smoke $(TEST_ENV) $(BIN)/python -m pytest $(NBVAL)
JOBS ?= 2

.DEFAULT_GOAL := setup
.PHONY: setup check demo test style types test-libero reliability endurance bench findings lab notebooks browser book assets \
    reproduce release grade doctor clean help

setup: check $(STAMP)  ## check this machine and install into .venv (the default)
	@echo "wmpo-lite is installed in $(VENV). Next: make demo"

check:
	@python="$(PYTHON)"; test -n "$$python" || { \
	    echo "wmpo-lite: no Python found: install 3.11 or newer (Debian: sudo apt-get install -y python3-venv)" >&2; \
	    exit 1; }; \
	"$$python" -I wmpo_lite/setup_check.py $(if $(wildcard $(STAMP)),--installed)

# torch comes first and alone. Without a GPU its CPU build is wanted: as pip's configuration offers it, else from
# PyTorch's own index, else what the default index has (on Linux that brings several GB of CUDA libraries).
$(STAMP): pyproject.toml | check
	@$(BIN)/python -c '' 2>/dev/null || { echo "wmpo-lite: creating $(VENV)"; "$(PYTHON)" -m venv --clear $(VENV); }
	@if nvidia-smi >/dev/null 2>&1; then \
	    echo "wmpo-lite: GPU found, installing torch $(TORCH)"; \
	    $(BIN)/python -m pip install -q torch==$(TORCH); \
	else \
	    echo "wmpo-lite: no GPU found, installing the CPU build of torch $(TORCH)"; \
	    $(BIN)/python -m pip install -q 'torch==$(TORCH)+cpu' 2>/dev/null \
	    || $(BIN)/python -m pip install -q --retries 1 torch==$(TORCH) --index-url $(TORCH_CPU_INDEX) 2>/dev/null \
	    || $(BIN)/python -m pip install -q torch==$(TORCH); \
	fi
	@echo "wmpo-lite: installing the other packages (a few minutes)"
	@$(BIN)/python -m pip install -q -e '.[dev,notebooks,arm]'
	@rm -f $(VENV)/.installed-* && touch $@

demo: check $(STAMP)  ## WMPO and its baselines on one task, with a report in runs/
	$(BIN)/wmpo-lite demo $(ARGS)

# Files of tests are shared out between as many workers as JOBS; those of the arms run in real time, so they come when the
# trainings are over.
SHARE := -n $(JOBS) --dist loadfile --no-loadscope-reorder
test: check $(STAMP)  ## all tests (ARGS="-k policy -x" go to pytest)
ifeq ($(ARGS),)
	$(PYTEST) $(SHARE) --ignore tests/arms tests notebooks; code=$$?; $(PYTEST) $(SHARE) tests/arms && exit $$code
else
	$(PYTEST) $(ARGS)
endif

style: check $(STAMP)  ## format and lint (ruff, 100 columns)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: check $(STAMP)  ## check the types of the core (half a minute)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test-libero: check $(STAMP)  ## LIBERO: install the extra (360 MB), tests, notebook 08
	@echo "wmpo-lite: installing LIBERO"
	@$(BIN)/python -m pip install -q -e '.[libero]'
	$(PYTEST) $(or $(ARGS),$(SHARE) tests/libero notebooks/08_libero.ipynb)

reliability: check $(STAMP)  ## 1,400 damaged inputs, 20 kills, ... (20 min; ARGS="fuzz")
	cd tests && $(TEST_ENV) ../$(BIN)/python -m reliability $(or $(ARGS),kinds fuzz kill)

endurance: check $(STAMP)  ## 2,000 arm episodes, 200 GRPO iterations: memory, threads
	cd tests && $(TEST_ENV) ../$(BIN)/python -m reliability endurance $(ARGS)

bench: check $(STAMP)  ## speed of imagination, cost as work grows, two processes
	$(TEST_ENV) $(BIN)/python -m pytest tests/bench/bench_imagination.py -s $(ARGS)
	$(TEST_ENV) $(BIN)/python tests/bench/bench_scale.py
	$(TEST_ENV) $(BIN)/python tests/bench/bench_start.py

# Not part of the tests: it downloads what it tries, some of it several hundred MB.
findings:  ## what other packages do, tried anew (ARGS="two_dtypes")
	@PYTHON="$(PYTHON)" bash findings/all.sh $(ARGS)

lab: check $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks/00_start_here.ipynb

notebooks: check $(STAMP)  ## execute and store the notebooks (ARGS="03" for one)
	$(TEST_ENV) $(BIN)/python -m wmpo_lite.report.notebooks $(ARGS)

browser: check $(STAMP)  ## click the widgets in Chromium (installs playwright)
	@$(BIN)/python -m pip install -q -e '.[browser]'
	WMPO_SCREENSHOTS=build/screenshots $(TEST_ENV) $(BIN)/python -m pytest tests/browser $(ARGS)

# The book needs no torch: the notebooks are shown as stored. It has its own environment, so its pins disturb no other.
book:  ## the notebooks as an HTML book in build/book
	@test -x .venv-book/bin/jupyter-book || { "$(PYTHON)" -m venv --clear .venv-book && .venv-book/bin/python -m pip install -q jupyter-book==1.0.4.post1 jupyter-server-mathjax==0.2.6; }
	.venv-book/bin/jupyter-book build -q --path-output build/book notebooks
	@mkdir -p build/book/_build/html/_static/mathjax  # formulas without a network
	@cp -r .venv-book/lib/python*/site-packages/jupyter_server_mathjax/static/. build/book/_build/html/_static/mathjax
	@echo "wmpo-lite: open build/book/_build/html/index.html"

assets: check $(STAMP)  ## train the shipped weights again (hours; see the README)
	$(BIN)/wmpo-lite assets $(ARGS)

# The missing cells take hours; ARGS="--dry-run" lists them and their cost.
reproduce: check $(STAMP)  ## the paper's claims in miniature, from a ledger of cells
	$(BIN)/wmpo-lite reproduce $(ARGS)

release: check $(STAMP)  ## exercises and their solutions, as zips in build/release
	$(BIN)/wmpo-lite release $(ARGS)

grade: check $(STAMP)  ## grade submissions into build/grades (ARGS="FOLDER")
	@test -n "$(ARGS)" || { echo "wmpo-lite: name the folder: make grade ARGS=submissions" >&2; exit 1; }
	$(TEST_ENV) $(BIN)/wmpo-lite grade $(ARGS)

doctor: check $(STAMP)  ## versions, rendering and a known-answer rollout
	$(BIN)/wmpo-lite doctor $(ARGS)

clean:  ## remove what make installed, and caches; runs/ stays
	rm -rf $(VENV) .venv-book build dist *.egg-info .pytest_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

help:  ## this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | while IFS=$$'\t' read -r name text; do \
	    printf '  make %-12s %s\n' "$$name" "$$text"; done
