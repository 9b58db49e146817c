# `make demo` and `make test` each set up all they need in one .venv and install nothing twice.
#   TORCH_INDEX=https://...   take the newest torch and torchvision of another package index, not the pinned pair
#   PYTHON=python3.12         use another interpreter
#   JOBS=1                    number of test processes; default: one for each core, at most eight
PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= auto
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
FROM_DEMO := weights=runs/demo/checkpoints/best.pt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo test lint torture gpu lock clean help
help:
	@echo "make install   set up .venv with the package"
	@echo "make demo      train a classifier, a detector and a segmentor on handwritten digits (minutes, CPU)"
	@echo "make test      lint, types and tests"
	@echo "make torture   the long reliability tests"
	@echo "make gpu       tests and tables on a GPU, in MINUTES=8, to a folder RESULTS=...; nothing is installed"
	@echo "make lock      pin the versions that are installed now"

# A torch that the interpreter already has is used; else torch and torchvision come as a pair from one index.
HAS_TORCH := -c "import torch, torchvision; assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 11)"

$(READY):
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || { \
	  if $(PYTHON) $(HAS_TORCH) 2>/dev/null; \
	  then $(PYTHON) -m venv --system-site-packages $(VENV); else $(PYTHON) -m venv $(VENV); fi; }
	@$(BIN)/python $(HAS_TORCH) 2>/dev/null || { \
	  echo "Installing torch and torchvision (a few gigabytes; once)."; \
	  $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),$$(grep -E '^(torch|torchvision)==' requirements.lock)) \
	    $(if $(TORCH_INDEX),torch torchvision,); }
	@echo "Installing fourstage and what it needs."
	@grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' requirements.lock > $(VENV)/pins.txt
	@$(PIP) --requirement $(VENV)/pins.txt
	@$(PIP) --no-deps --editable .
	@touch $@

install: $(READY)

# One backbone, three tasks: a classifier, then a detector and a segmentor that start from it. Each shows the time left
# of all three, which take about these shares of it.
SHARES := 14,36,50
demo: $(READY)
	@export FOURSTAGE_STAGE="1/3 $(SHARES)"; \
	$(BIN)/fourstage train digits_visformer --out runs/demo
	@export FOURSTAGE_STAGE="2/3 $(SHARES)"; \
	$(BIN)/fourstage train digit_scenes_mask_rcnn $(FROM_DEMO) optimisation.length=2ep --out runs/demo_detection
	@export FOURSTAGE_STAGE="3/3 $(SHARES)"; \
	$(BIN)/fourstage train digit_scenes_upernet $(FROM_DEMO) optimisation.length=5ep --out runs/demo_segmentation
	$(BIN)/fourstage report runs/demo runs/demo_detection runs/demo_segmentation --out runs/demo.html
	@echo "Open runs/demo.html in a browser. With your own images: $(BIN)/fourstage train digits_visformer --data FOLDER"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest --durations=10 -n $(JOBS) --maxprocesses=8 --dist loadfile --no-loadscope-reorder

torture: $(READY)
	$(BIN)/python -m pytest -m torture -o addopts="-q --strict-markers" -o timeout=7200

# A GPU machine brings its own Python with torch; nothing is installed there. PYTHONPATH=... names a folder of packages
# that it lacks, such as pydantic, without which complete runs are skipped.
MINUTES ?= 8
RESULTS ?=
gpu:
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --minutes $(MINUTES) \
	  $(if $(RESULTS),--out $(RESULTS))

lock: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable --exclude fourstage > requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
