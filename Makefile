# Sets up .venv, then demonstrates, tests or checks milpver. Needs python >= 3.11 with venv, and make.
#
#   make demo                     exact worst margins and distances on the shipped networks
#   make test                     the test suite
#   make check                    mypy and ruff
#   make venv                     the set-up alone (also what plain `make` does)
#   make clean, make distclean    removes what builds and tools leave behind; distclean also the environment
#
# What is installed stays: the set-up runs again only when setup.cfg, pyproject.toml or constraints.txt change.
#   make PYTHON=python3.12 test   chooses the interpreter
#   make VENV=/somewhere test     chooses the environment's folder
#   make PIP_ARGS=... test        goes to `pip install` (--index-url, --no-index --find-links, --quiet)

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
STAMP := $(VENV)/.milpver-installed

# READY: this environment runs, was installed from this folder (the stamp names it: an editable install does
# not survive a move), and is of the Python asked for on the command line, if one was.
WANTED := $(if $(findstring command,$(origin PYTHON)),$(PYTHON),$(BIN)/python)
RUNS := $(shell (test "$$('$(WANTED)' -V)" = "$$('$(BIN)/python' -V)" && '$(BIN)/python' -c '' && echo yes) 2>/dev/null)
READY := $(and $(RUNS),$(shell (test "$$(cat '$(STAMP)')" = '$(CURDIR)' && echo yes) 2>/dev/null))

.PHONY: venv demo test check fresh clean distclean FORCE

venv: $(STAMP)

demo: fresh $(STAMP)
	$(BIN)/milpver demo

test: fresh $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: fresh $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# Says in one line why the set-up cannot run here, and nothing where it can.
define OBSTACLE
choose="or choose an interpreter: make PYTHON=python3.12"; \
if ! '$(PYTHON)' -c ''; then \
  echo "$(PYTHON) does not run: install python >= 3.11 with venv and pip, $$choose"; \
elif ! '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
  echo "$(PYTHON) is $$('$(PYTHON)' -V), milpver needs python >= 3.11: install it, $$choose"; \
elif ! '$(PYTHON)' -c 'import venv, ensurepip'; then \
  echo "$(PYTHON) has no venv or no pip: install them (Debian, Ubuntu: apt install python3-venv), $$choose"; \
elif ! { test -d milpver/encodings && test -d milpver/solvers && test -d milpver/onnx_models; }; then \
  echo "milpver/encodings, milpver/solvers and milpver/onnx_models are not symbolic links here:" \
    "git config core.symlinks true && git checkout -- milpver, or do without make: pip install ."; \
fi
endef

$(STAMP): setup.cfg pyproject.toml constraints.txt $(if $(READY),,FORCE)
	$(if $(shell ($(OBSTACLE)) 2>/dev/null),$(error $(shell ($(OBSTACLE)) 2>/dev/null)))
	$(if $(RUNS),,'$(PYTHON)' -m venv --clear '$(VENV)')
	'$(BIN)/python' -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@printf %s '$(CURDIR)' > '$@'

# setuptools never deletes from build/lib: a module that was renamed would stay in the next wheel.
fresh:
	@rm -rf build

clean: fresh
	rm -rf dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
	find $(wildcard milpver encodings solvers onnx_models tests bench) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf '$(VENV)'
