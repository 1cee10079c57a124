"""Families of pre-trained encoders, chosen by ``model_type``: what the halves of a model are made of.

Face: `entries.backbone_of`, `entries.half_of`, `entries.positions_of`, `backbone.Backbone`.
"""
