"""A directed acyclic graph of slots as a target: its loss, its links, and reading outputs off it.

Face: `DagOptions`, `DagOutput`, `LinkNetwork`, `NgramOutput`, `dag_best_path`, `dag_decode`, `linear_dag_loss`,
`linear_dag_ngram_loss`.
"""

from bnb_ds.ctc.ngram_matches import NgramOutput
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.dag.loss import DagOutput, linear_dag_loss
from bnb_ds.dag.ngrams import linear_dag_ngram_loss
from bnb_ds.dag.paths import dag_best_path
from bnb_ds.dag.strategies import DagOptions, dag_decode

__all__ = [
    "DagOptions",
    "DagOutput",
    "LinkNetwork",
    "NgramOutput",
    "dag_best_path",
    "dag_decode",
    "linear_dag_loss",
    "linear_dag_ngram_loss",
]
