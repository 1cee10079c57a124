"""Stands before the real MLflow on the path of the programs that tests start.

DeepSpeed imports MLflow where it is installed, though nothing here uses it. That takes two seconds of every launcher
and rank, and begins threads. The tests of trackers, which need MLflow, start their programs without this directory.
"""

raise ModuleNotFoundError("left out, as in an environment without it", name="mlflow")
