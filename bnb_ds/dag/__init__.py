"""A directed acyclic graph of slots as a target: its loss, its links, and reading outputs off it.

Face: `DagOutput`, `linear_dag_loss`.
"""

from bnb_ds.dag.loss import DagOutput, linear_dag_loss

__all__ = ["DagOutput", "linear_dag_loss"]
