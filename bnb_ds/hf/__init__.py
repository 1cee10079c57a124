"""What programs written for Hugging Face transformers expect of a model.

They pass arguments that mean nothing to a parallel decoder, smooth labels on their own, and look for code beside a
model. Face: its modules.
"""
