# make demo: from nothing to a report; make test: the fast tests. Everything is installed into .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
# Options of `pip install torch`, for example to choose another build of PyTorch.
TORCH_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := demo
MADE := $(DEMO)/.made
DATASET := Dataset901_KneePhantom
RUN = $(DEMO)/results/$(DATASET)/resnet3d-$(1)__oaplugPlans__3d_fullres

.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow lint wheel clean clean-demo

help:
	@echo "make demo        phantom knees -> training -> $(DEMO)/report/report.html (finished steps are skipped)"
	@echo "make test        the fast tests"
	@echo "make test-slow   the slow tests"
	@echo "make lint        ruff, ruff format and mypy"
	@echo "make wheel       dist/*.whl"
	@echo "make clean-demo  remove $(DEMO)/, so that make demo begins anew"
	@echo "make clean       remove everything that make has made, the virtual environment too"

# Installing: once, and again whenever setup.cfg or constraints.txt changes.

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_OPTIONS) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# The demo: every step leaves a mark in $(MADE) and is skipped from then on; one that was interrupted starts anew.
# The two models are worked on side by side, each on one thread: threads that wait for each other are slow where
# other programs want the processors too.

demo: export OMP_NUM_THREADS := 1
demo: export oaplug_raw := $(CURDIR)/$(DEMO)/raw
demo: export oaplug_preprocessed := $(CURDIR)/$(DEMO)/preprocessed
demo: export oaplug_results := $(CURDIR)/$(DEMO)/results

# A small network and few epochs, so that two cores need minutes; a real training keeps the defaults.
SMALL := --set backbone.width=16 --set backbone.dilated=false --set training.epochs=16 --set training.learning_rate=0.004

PREFIX = while IFS= read -r line; do echo "[$(1)] $$line"; done

$(MADE)/raw: | $(INSTALLED)
	rm -rf $(DEMO)/raw
	$(BIN)/oaplug_make_phantom -d 901 --cases 200 --seed 0
	mkdir -p $(MADE) && touch $@

$(MADE)/preprocessed: $(MADE)/raw
	rm -rf $(DEMO)/preprocessed
	$(BIN)/oaplug_plan_and_preprocess -d 901 --verify_dataset_integrity -c 3d_fullres --size 32 64 64
	touch $@

$(MADE)/trained_dual: $(MADE)/preprocessed
	rm -rf $(call RUN,dual)
	$(BIN)/oaplug_train 901 3d_fullres 0 -b resnet3d --head dual $(SMALL) 2>&1 | $(call PREFIX,dual)
	touch $@

$(MADE)/trained_single_kl: $(MADE)/preprocessed
	rm -rf $(call RUN,single_kl)
	$(BIN)/oaplug_train 901 3d_fullres 0 -b resnet3d --head single --target kl $(SMALL) 2>&1 | $(call PREFIX,single_kl)
	touch $@

$(MADE)/predicted_dual: $(MADE)/trained_dual
	$(BIN)/oaplug_predict -i $(DEMO)/raw/$(DATASET)/imagesTs -d 901 -b resnet3d --head dual -c 3d_fullres --features
	touch $@

$(MADE)/predicted_single_kl: $(MADE)/trained_single_kl
	$(BIN)/oaplug_predict -i $(DEMO)/raw/$(DATASET)/imagesTs -d 901 -b resnet3d --head single --target kl -c 3d_fullres --features
	touch $@

$(MADE)/report: $(MADE)/predicted_dual $(MADE)/predicted_single_kl
	rm -rf $(DEMO)/report
	$(BIN)/oaplug_analyze -m dual=$(call RUN,dual) single_kl=$(call RUN,single_kl) -o $(DEMO)/report
	touch $@

demo: $(INSTALLED)
	@$(MAKE) --no-print-directory -j 2 $(MADE)/report
	@echo
	@echo "dual:"
	@$(BIN)/oaplug_evaluate $(call RUN,dual)/predictions/imagesTs | grep -E '^(kl.qwk|kl.mae|oa.auc)'
	@echo "single_kl:"
	@$(BIN)/oaplug_evaluate $(call RUN,single_kl)/predictions/imagesTs | grep -E '^(kl.qwk|kl.mae|oa.auc)'
	@echo
	@echo "These are test knees that no network has seen. kl.qwk is the agreement of predicted and true grades"
	@echo "(1 perfect, 0 chance), kl.mae the mean error in grades, oa.auc the chance that a knee with OA"
	@echo "(kl >= 2) scores above one without (0.5 is guessing). Phantom knees, a small network and a short"
	@echo "training: they show that the chain works, and nothing about patients."
	@echo
	@echo "report: $(CURDIR)/$(DEMO)/report/report.html"
	@echo "Finished steps are skipped next time; make clean-demo begins anew."

test: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not slow' -n 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -p oaplug

wheel: $(INSTALLED)
	rm -rf dist build
	$(BIN)/python -m build --wheel --outdir dist

clean-demo:
	rm -rf $(DEMO)

clean: clean-demo
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
