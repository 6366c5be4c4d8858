# The five papers, one notebook each. `make` alone prints this file's targets.
#
# A notebook runs again when the content of its cells, its parameters, the library, the weights or the lock has changed,
# when another device is asked for, or when one of its products is gone; times and stored outputs do not count.

PROFILE      ?= small
DEVICE       ?= auto
PROFILES     := smoke small paper

ifneq ($(words $(PROFILE)) $(words $(filter $(PROFILE),$(PROFILES))),1 1)
$(error PROFILE=$(PROFILE): use one of $(PROFILES))
endif

# PYTHON names an environment that is already there; without it the targets make and use .venv.
# It is a program, whose path may hold spaces, or a command with arguments.
ifdef PYTHON
ENV  :=
else
PYTHON := python3
ENV  := .venv/.stamp
endif
BASE := $(if $(shell command -v "$(PYTHON)" 2>/dev/null),"$(PYTHON)",$(PYTHON))
PY   := $(if $(ENV),.venv/bin/python,$(BASE))

# What a shell exports is obeyed, but not in silence.
$(foreach name,PROFILE DEVICE PYTHON,$(if $(filter environment,$(origin $(name))),\
	$(info $(name)=$($(name)), as the environment says)))

export MANIFOLD_DATA
# This copy of the library, wherever an editable install points.
export PYTHONPATH              := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PYTHONHASHSEED          := 0
export CUBLAS_WORKSPACE_CONFIG := :4096:8
export JUPYTER_PREFER_ENV_PATH := 1
# Large buffers are used again and not returned to the system: gradients on a CPU take 15-30 % less time.
export MALLOC_MMAP_THRESHOLD_  := 1073741824
export MALLOC_TRIM_THRESHOLD_  := 1073741824
# Threads that wait sleep. Where they spin, as by default, another program on one of two cores makes gradients four times
# slower and not two times; on a machine of their own both take the same time.
export OMP_WAIT_POLICY         ?= passive
# Text is UTF-8 whatever the locale, and no startup file or kernel of the user's reaches into a notebook.
export PYTHONUTF8              := 1
export IPYTHONDIR              := $(CURDIR)/.build/ipython
unexport PYTHONSTARTUP JUPYTER_PATH
# Notebooks choose the inline backend themselves.
unexport MPLBACKEND

# Not 01_x-Copy1, whose results would take the place of those of 01_x.
SLUGS   := $(shell ls notebooks | sed -n 's/^\([0-9][0-9]_[A-Za-z0-9_]*\)\.ipynb$$/\1/p')
NUMBERS := $(foreach slug,$(SLUGS),$(firstword $(subst _, ,$(slug))))
RUN     := $(PY) manifold_lib/reproduction

.DEFAULT_GOAL := help
.PHONY: help all report sweep portable refresh site data models lab test nbval bench lint env lock clean distclean $(SLUGS) $(NUMBERS)

# ---------------------------------------------------------------------------------------- results

all: QUIET := --quiet
all: $(SLUGS) ## every notebook, then the report ## small: 30-50 min
	@test -f .build/report.done && test -f figures/README.md || { $(WRITE_REPORT); }
	@echo "profile $(PROFILE): $(words $(SLUGS)) notebooks and the report are up to date"

$(SLUGS): | $(ENV)
	@$(RUN) run $@ --profile $(PROFILE) --device "$(DEVICE)" $(QUIET)

$(foreach slug,$(SLUGS),$(eval $(firstword $(subst _, ,$(slug))): $(slug)))

WRITE_REPORT = $(PY) -m manifold_lib.reproduction.report && mkdir -p .build && touch .build/report.done

report: | $(ENV) ## the tables and the gallery, from the results at hand ## seconds
	$(WRITE_REPORT)
	@test ! -d figures/sweep || $(PY) -m manifold_lib.reproduction.sweeps.pooled

sweep: | $(ENV) ## many sets and network seeds; see notebooks/site/sweep.md ## minutes a unit
	@$(RUN) sweep $(NOTEBOOKS) --profile $(PROFILE) --device "$(DEVICE)" --sets "$(SETS)" --seeds "$(SEEDS)" \
		--scheduler "$(SCHEDULER)" --workers "$(SWEEP_WORKERS)" --threads "$(THREADS)"

portable: | $(ENV) ## the verdicts on another processor, as far as one can stand in for it ## an hour
	$(PY) -m manifold_lib.reproduction.portable $(PROFILE)

refresh: | $(ENV) ## execute the sources in place and keep their outputs ## 1 min a notebook
	@OMP_NUM_THREADS=1 $(RUN) refresh $(SLUGS)

site: | $(ENV) ## notebooks, gallery and API as HTML in .build/site ## under 1 min
	$(PY) notebooks/site/build.py $(PROFILE)

data: | $(ENV) ## download the published data sets ## minutes, 2 GB
	$(PY) -m manifold_lib.data

models: | $(ENV) ## train the committed weights again, from the real data ## hours on 2 cores
	$(PY) -m manifold_lib.reproduction.zoo --again

lab: | $(ENV) ## open the notebooks in JupyterLab ## seconds
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

# ----------------------------------------------------------------------------------------- checks

# Processes use cores better than threads do; each holds 1 GB.
PARALLEL = OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4

test: | $(ENV) ## tests and doctests, with the line coverage of the library ## 7 min
	$(PARALLEL) --dist worksteal tests manifold_lib --ignore=tests/bench --ignore=manifold_lib/reproduction \
		--doctest-modules --cov --cov-report=term

nbval: | $(ENV) ## execute the notebooks and compare their checked outputs ## 1 min a notebook
ifneq ($(SLUGS),)
	$(PARALLEL) --dist loadfile --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg \
		--nbval-cell-timeout 600 notebooks/
else
	@echo "nbval: there is no notebook yet"
endif

bench: | $(ENV) ## time the methods against their peers ## minutes
	$(PY) -m pytest tests/bench --benchmark-only
	$(PY) -m pytest tests/bench/test_tricks.py

lint: | $(ENV) ## ruff and mypy ## seconds
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy manifold_lib

# ------------------------------------------------------------------------------------ environment

env: .venv/.stamp ## .venv from the lock; TORCH_BACKEND=cpu swaps torch ## 5 min, 6 GB
ifdef TORCH_BACKEND
	.venv/bin/uv pip install --python .venv/bin/python --torch-backend=$(TORCH_BACKEND) \
		--reinstall-package torch --reinstall-package torchvision \
		$$(sed -nE 's/^(torch|torchvision)==([0-9.]+).*/\1==\2/p' requirements.lock)
	@echo "torch is now the $(TORCH_BACKEND) build, which is not the one in requirements.lock"
endif

.venv/.stamp: requirements.lock pyproject.toml
	@$(BASE) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
		"$(PYTHON) is Python %d.%d: 3.11 to 3.13 is needed, such as make env PYTHON=python3.12" % v[:2])'
	$(BASE) -m venv .venv
	.venv/bin/python -m pip install --quiet uv
	awk '/^[a-z]/ { skip = "$(TORCH_BACKEND)" && /^(torch|torchvision|triton|cuda-|nvidia-)/ } !skip' \
		requirements.lock > .venv/requirements.lock
	.venv/bin/uv pip sync --python .venv/bin/python .venv/requirements.lock
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --no-build-isolation -e .
	@touch $@

lock: | $(ENV) ## pin what pyproject.toml asks for in requirements.lock ## seconds
	$(PY) -m uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --all-extras \
		pyproject.toml -o requirements.lock

clean: ## remove .build and caches, so that all notebooks run again ## seconds
	rm -rf .build .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find manifold_lib notebooks tests \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv ## seconds
	rm -rf .venv *.egg-info
	@echo "Left in place: figures/, and data/ with its weights, downloads and checkpoints."

help: ## this list ## at once
	@echo "make TARGET [PROFILE=small] [DEVICE=auto|cpu|cuda] [MANIFOLD_DATA=folder] [PYTHON=python]"
	@echo "PROFILE is one of: $(PROFILES)"
	@echo
	@awk -F ' *## *' '/^[a-z]+:.*##/ { sub(/:.*/, "", $$1); printf "  %-10s %-58s %s\n", $$1, $$2, $$3 }' Makefile
	@for slug in $(SLUGS); do printf '  %-10s %-58s %s\n' $${slug%%_*} "$$slug" "small: minutes"; done

