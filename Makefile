# make demo   from text to an aligned, measured model: makes .venv, installs, runs (MINUTES=12, OUT=folder)
# make test   the tests, in the same .venv
# make proofs   the slow proofs: TRL as oracle, optima, curves        make bench   speed and memory beside TRL's and lm-eval's (ROUNDS=5)
# make mutants   faults of one line in the code of post-training: do the tests catch them? (half an hour)
# make random-mutants   a hundred random faults of one line in the whole package (SEED=1, COUNT=100; half an hour)
# make lint   style and types        make e2e   a short demo whose claims are checked        make wheel   build it
# make docs   the documentation as a site in site/, every link and anchor checked

PYTHON ?= python3
MINUTES ?= 12
OUT ?=
ROUNDS ?= 5
SEED ?= 1
COUNT ?= 100
# nothing outside of this folder is touched: caches live in .venv too
export PIP_CACHE_DIR = $(CURDIR)/.venv/cache/pip
export MPLCONFIGDIR = $(CURDIR)/.venv/cache/matplotlib
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test proofs mutants random-mutants bench lint docs e2e wheel clean

demo: .venv/.demo
	.venv/bin/tercet demo --minutes $(MINUTES) $(if $(OUT),--out $(OUT))

test: .venv/.test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal

proofs: .venv/.proof
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest proofs -n 2 --dist worksteal

mutants: .venv/.test
	.venv/bin/python proofs/mutants.py --jobs 2

random-mutants: .venv/.test
	.venv/bin/python proofs/random_mutants.py --jobs 2 --seed $(SEED) --count $(COUNT)

bench: .venv/.proof
	.venv/bin/python benchmarks/compare.py --rounds $(ROUNDS) --out $(if $(OUT),$(OUT),runs/bench)
	.venv/bin/python benchmarks/evaluation.py --rounds $(ROUNDS) --out $(if $(OUT),$(OUT),runs/bench)-evaluation

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/.docs
	.venv/bin/python scripts/reference.py
	.venv/bin/zensical build --clean --strict
	.venv/bin/python scripts/check_site.py site

e2e: .venv/.demo
	rm -rf demo-e2e
	.venv/bin/tercet demo --minutes $(MINUTES) --out demo-e2e
	.venv/bin/python tests/check_demo.py demo-e2e

wheel: .venv/.dev
	.venv/bin/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv build dist site .cache src/*.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "tercet needs Python 3.10 or newer; found $$($(PYTHON) --version 2>&1 || echo none)."; \
	  echo "Install one, then say which: make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "could not make .venv; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

# one stamp for each set of extras: installed again only when what is asked for changes
.venv/.demo .venv/.test .venv/.proof .venv/.dev .venv/.docs: .venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing tercet with what '$*' needs into .venv (the first time: some minutes)"
	@.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,$*]' || { \
	  echo "could not install: is a package index within reach? What pip said stands above."; exit 1; }
	@touch $@
