"""The packaging of bnb_ds; a comment gives the reason for every dependency."""

import re
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = run_path(str(ROOT / "bnb_ds" / "version.py"))["__version__"]
#: place in an installed package -> folder of the checkout; bnb_ds/common/shipped.py finds the files in both
SHIPPED = {"bnb_ds.shipped.runs": "runs", "bnb_ds.shipped.ds_configs": "ds_configs"}


def long_description() -> str:
    """README.md without its pictures and its links to other files, which a package index could not follow."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"<!--.*?-->\n|!\[[^\]]*\]\([^)]*\)\n\n", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


INSTALL_REQUIRES = [
    "torch>=2.6,<3",  # tensors, autograd, SDPA, CTC loss; CONTRIBUTING says which releases were tried
    "deepspeed>=0.19,<0.20",  # training engine: ZeRO, half precision, launcher; 0.18 applies NaN gradients unnoticed
    "transformers>=5,<6",  # BERT layers, checkpoints and tokenizers; the exported model is a Hugging Face directory
    "tokenizers>=0.22",  # training the WordPiece vocabulary
    "datasets>=4",  # downstream data sets and streamed hub corpora
    "pyarrow>=15",  # reading parquet and arrow corpora in bounded memory; the dictionary of the word engine
    "lxml>=5",  # streaming PubMed XML and MediaWiki dumps
    "huggingface_hub>=1",  # model cards, `bnb-ds push`, and models by their name on the hub
    "numpy>=1.26",  # token shards, loader and corruption
    "safetensors>=0.5",  # weights of exported models
    "pydantic>=2.7",  # typed recipes with errors that carry the path of the field
    "PyYAML>=6",  # recipes are YAML
    "tensorboard>=2.16",  # monitoring
    "psutil>=5.9",  # free memory, which decides the batches that `bnb-ds bench generate` skips
    "wrapt>=1.16",  # runs code when transformers is imported, so that importing bnb_ds stays quick
    "tqdm>=4.66",  # progress bar
    "rapidfuzz>=3.6",  # edit distance of token sequences for the token accuracy
    "sacrebleu>=2.4",  # BLEU with a signature
    "rouge-score>=0.1.2",  # ROUGE
    "scikit-learn>=1.4",  # accuracy, F1 and Matthews' correlation of GLUE
    "shtab>=1.7",  # completion of commands and flags in bash, zsh and tcsh
    "scipy>=1.11",  # Pearson's and Spearman's correlation of GLUE
]

EXTRAS_REQUIRE = {
    # NVIDIA apex is not on PyPI: the package `apex` there is another program, which bnb_ds refuses.
    # Install its build tools with `pip install ".[apex]"`, then build it against your torch and CUDA:
    #   git clone https://github.com/NVIDIA/apex && cd apex
    #   APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation .
    "apex": ["ninja", "packaging", "wheel"],
    # Optional for `bnb-ds prep`; a tokenisation engine is proven over all code points before it is used.
    "fast": [
        "nanotoken>=0.1,<0.2",  # WordPiece at several times the speed of the word dictionary
        "isal>=1.6",  # inflates .gz at twice the speed
        "zstandard>=0.22",  # reading .zst
    ],
    "cluster": ["distributed>=2025.1"],  # `bnb-ds prep --executor dask`
    "filters": [
        "datasketch>=2,<3",  # MinHash of `bnb-ds prep --drop-near-duplicates`
        "py3langid>=0.4,<0.5",  # `bnb-ds prep --language`; its model is in the package
    ],
    # Loggers besides TensorBoard: `tracking.loggers` of a recipe.
    "wandb": ["wandb>=0.20"],
    "mlflow": ["mlflow-skinny>=3"],  # the client alone; a server needs `mlflow`
    "trackio": ["trackio>=0.20"],
    "tune": ["optuna>=5,<6"],  # proposals, early ends and the resumable storage of `bnb-ds tune`
    "lora": ["peft>=0.18"],  # low-rank adapters in fine-tuning: `lora` of a recipe
    "plot": ["matplotlib>=3.8"],  # pictures of `bnb-ds prep stats --png` and `bnb-ds bench generate --png`
    "lm": ["kenlm>=0.2"],  # n-gram language models in the CTC beam search; built from source, with a C++ compiler
    "onnx": [
        "onnx>=1.17",  # the graph of `bnb-ds export --format onnx`
        "onnxscript>=0.3",  # torch's exporter needs it
        "onnxruntime>=1.20",  # runs the graph, and makes int8 weights
    ],
    "serve": [
        "fastapi>=0.115",  # routes, validation and the OpenAPI description of `bnb-ds serve`
        "uvicorn>=0.30",  # the HTTP server
        "prometheus-client>=0.20",  # /metrics
    ],
    "docs": [
        "mkdocs>=1.6,<2",  # the site of docs/; its hook adds pages from outside the folder
        "mkdocs-material>=9.6,<10",  # the theme, without requests to other servers
        "mkdocstrings[python]>=1,<2",  # the API from docstrings
    ],
    "test": [
        "pytest>=8",  # the test runner
        "pytest-xdist>=3.6",  # runs several test files at a time, because much of their time is start-up and waiting
        "pytest-timeout>=2.3",  # ends distributed tests that hang
        "hypothesis>=6.100",  # property tests
        "matplotlib>=3.8",  # the picture of `prep stats`
        "mkdocs>=1.6,<2",  # the extra `docs`
        "mkdocs-material>=9.6,<10",
        "mkdocstrings[python]>=1,<2",
        "zstandard>=0.22",  # .zst input
        "distributed>=2025.1",  # the extra `cluster`
        "datasketch>=2,<3",  # the extra `filters`
        "py3langid>=0.4,<0.5",
        "mwparserfromhell>=0.6.6",  # a contender of `bnb-ds bench prep --extract`
        "onnx>=1.17",  # the extra `onnx`
        "onnxscript>=0.3",
        "onnxruntime>=1.20",
        "optuna>=5,<6",  # the extra `tune`
        "mlflow-skinny>=3",  # the extras `mlflow`, `wandb` and `trackio`
        "wandb>=0.20",
        "trackio>=0.20",
        "fastapi>=0.115",  # the extra `serve`
        "uvicorn>=0.30",
        "prometheus-client>=0.20",
        "httpx>=0.27",  # clients for tests of the service
        "httptools>=0.6",  # the other HTTP parser that uvicorn may use; the service is tested with both
        "accelerate>=1.10",  # transformers' Trainer, which trains our models in a test
        "peft>=0.18",  # the extra `lora`; LoRA adapters of our models in transformers' Trainer
        "playwright>=1.48",  # drives an installed Chromium for tests of the service's pages
        "schemathesis>=4",  # makes malformed requests from the OpenAPI description
        "ruff>=0.17,<0.18",  # linter, run as a test; other releases have other rules
        # Compiles the kernels for GPUs and interprets them where there is none. Torch for CUDA brings the release it
        # needs; beside torch for the CPU, pip takes the newest: 0.3 GB to download, 1 GB unpacked. Linux alone has it.
        "triton>=3.2; platform_system == 'Linux'",
        # Compiles the kernels in CUDA C++, also for GPUs that CUDA 13 no longer knows; 0.1 GB.
        "nvidia-cuda-nvrtc-cu12>=12.4; platform_system == 'Linux'",
        "mypy>=2.4,<2.5",  # checks the types of the public API, run as a test; pinned for the same reason
        "pyright>=1.1.414,<1.1.415",  # the same from a user's side; it needs Node.js, else its test is skipped
    ],
}

setup(
    name="bnb_ds",
    version=VERSION,
    description="BERT-NAR-BERT, a non-autoregressive sequence-to-sequence model, on DeepSpeed",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={
        "Paper": "https://doi.org/10.1109/ACCESS.2023.3346952",
        "Reference implementation": "https://github.com/aistairc/BERT-NAR-BERT",
    },
    keywords=["non-autoregressive generation", "sequence-to-sequence", "BERT", "CTC", "DeepSpeed"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["bnb_ds*", "data_prep*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "bnb_ds": ["py.typed"],  # type checkers read the annotations of a package that has this file
        "bnb_ds.recurrences": ["recurrences.cu"],  # compiled on the GPU's machine
        "bnb_ds.serve": ["static/*.html"],  # the pages of the service
        "bnb_ds.shipped.runs": ["recipes/**/*.yaml", "launch/*.sh", "slurm/*.sbatch"],
        "bnb_ds.shipped.ds_configs": ["*.json"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": ["bnb-ds = bnb_ds.cli:main"],
        # bnb_ds never imports data_prep: `bnb-ds` finds the `prep` commands through this group.
        "bnb_ds.commands": ["prep = data_prep.cli:add_commands"],
        "bnb_ds.benchmarks": ["prep = data_prep.cli:add_subject"],  # the same for `bnb-ds bench prep`
    },
)
