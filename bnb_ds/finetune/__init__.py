"""Fine-tuning: recipe, plan, run, GLUE sweep, distillation.

Face: `main.main`, `plan.make_plan`, `run.finetune`.
"""
