# make reproduce [PROFILE=smoke|laptop]   set up, then run all notebooks; continues a stopped run
PROFILE ?= laptop
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
LONG := slow or browser or distributed or notebooks

.PHONY: reproduce test test-rest test-all lab setup browser clean distclean

reproduce: setup
	$(BIN)/python -m vlaa_lib run --profile $(PROFILE)

test: setup
	$(PYTEST) -m "not ($(LONG))"

# what `make test` leaves out: long ones, Chromium, several processes, all notebooks
test-rest: setup
	$(PYTEST) -m "$(LONG)"

test-all: test test-rest

lab: setup
	cd notebooks && $(BIN)/jupyter lab

setup: $(STAMP)

# installs again only when one of the two files changed
$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

# the browser that the trace viewer's tests drive; Debian's and Ubuntu's package
browser:
	command -v chromium-headless-shell || command -v chromium || { apt-get update -q && \
	apt-get install -qy --no-install-recommends chromium-headless-shell; }

# never data/, never the virtual environment
clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find vlaa_lib tests notebooks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
