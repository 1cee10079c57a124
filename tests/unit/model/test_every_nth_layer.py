"""Deep supervision of every n-th layer of the decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bnb_ds.errors import ConfigError
from tests.tiny import bnb_config, packed_form
from tests.unit.model.test_deep_supervision import LABELS, SOURCES, deep_model, slots_of


@pytest.mark.parametrize(("every", "predicting"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [1]), (4, [0])])
def test_every_nth_layer_predicts(every, predicting):
    """Counted from the last one. The others are as in a model without predictions."""
    model = deep_model(layers=5, deep_supervision_every=every)
    assert model.config.predicting_layers == predicting
    encoded, slots, targets = slots_of(model, SOURCES, LABELS)
    decoder, head, weight = model.model.decoder, model.lm_head, model.get_output_embeddings().weight
    hidden, found = decoder.embeddings(encoded.latent, slots), []
    for number, layer in enumerate(decoder.layer):
        hidden = layer(hidden[None], None, encoded.hidden[None], layout=slots.layout, memory_layout=encoded.layout)[0]
        if number in [*predicting, 4]:
            found.append(head(hidden))
        if number in predicting:
            tokens = (found[-1] @ weight.T + head.bias).argmax(1)
            hidden = decoder.feedback[number](hidden, weight[tokens])
    states = model.states(encoded, slots)
    torch.testing.assert_close(states.hidden, found[-1], rtol=0, atol=1e-12)
    losses = [model.target.scores(replace(states, hidden=each), targets).loss_sum for each in found]
    labels = {
        "labels": torch.cat(LABELS),
        "label_lengths": targets.lengths,
        "max_label_length": int(targets.lengths.max()),
    }
    loss_sum = model(**packed_form(SOURCES), **labels).loss_sum
    torch.testing.assert_close(loss_sum, torch.stack(losses).mean(), rtol=1e-12, atol=0)
    names = [name for name in model.state_dict() if "feedback" in name]
    assert names == [f"model.decoder.feedback.{number}.weight" for number in predicting]


def test_layers_that_cannot_predict_are_refused():
    for fields, message in (
        ({"deep_supervision": True, "deep_supervision_every": 0}, "deep_supervision_every is 0: give a value of at"),
        ({"deep_supervision": True, "deep_supervision_every": 2}, "no layer predicts but the last of 2: lower it, or"),
        ({"deep_supervision_every": 2}, "last of 2: set deep_supervision to true, or leave it out"),
    ):
        with pytest.raises(ConfigError, match=message):
            bnb_config(**fields)
