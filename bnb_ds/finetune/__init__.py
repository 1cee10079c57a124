"""The fine-tuning run: recipe, plan, run, GLUE sweep, distillation.

Face: `main.main`, `plan.make_plan`, `run.finetune`.
"""
