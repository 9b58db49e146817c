# `make demo` and `make test` each set up all they need in one .venv and install nothing twice.
#   TORCH_INDEX=https://...   take torch and torchvision from another package index
#   PYTHON=python3.12         use another interpreter
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint torture lock clean help
help:
	@echo "make demo      train on handwritten digits and write a report (minutes, CPU)"
	@echo "make test      lint, types and tests"
	@echo "make torture   the long reliability tests"
	@echo "make lock      pin the versions that are installed now"

# A torch that the interpreter already has is used; else torch and torchvision come as a pair from one index.
$(READY):
	@test -x $(BIN)/python || { \
	  if $(PYTHON) -c "import torch, torchvision" 2>/dev/null; \
	  then $(PYTHON) -m venv --system-site-packages $(VENV); else $(PYTHON) -m venv $(VENV); fi; }
	@$(BIN)/python -c "import torch, torchvision" 2>/dev/null || { \
	  echo "Installing torch and torchvision (a few gigabytes; once)."; \
	  $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),$$(grep -E '^(torch|torchvision)==' requirements.lock)) \
	    $(if $(TORCH_INDEX),torch torchvision,); }
	@echo "Installing fourstage and what it needs."
	@grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' requirements.lock > $(VENV)/pins.txt
	@$(PIP) --requirement $(VENV)/pins.txt
	@$(PIP) --no-deps --editable .
	@touch $@

demo: $(READY)
	$(BIN)/fourstage train digits_visformer --out runs/demo
	@echo
	@echo "Open runs/demo/report.html in a browser. With your own images: $(BIN)/fourstage train digits_visformer --data FOLDER"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest --durations=10

torture: $(READY)
	$(BIN)/python -m pytest -m torture -o addopts="-q --strict-markers" -o timeout=7200

lock: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable --exclude fourstage > requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
