"""Recurrences over positions on a GPU: a kernel that does all steps in one launch, or the host."""
