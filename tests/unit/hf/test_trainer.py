"""transformers' Seq2SeqTrainer, PEFT and accelerate train, evaluate and use a model as they do any other."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import sacrebleu
import torch
from transformers import DataCollatorForSeq2Seq

from bnb_ds.errors import ConfigError
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.tiny import bnb_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("accelerate") is None,
        reason='needs accelerate (`pip install ".[test]"` in the checkout)',
    ),
]

PAIRS = [
    ("the first of them", "this is number one"),
    ("the second of them", "and this is number two"),
    ("nothing at all", "there is not any number here"),
]


@pytest.fixture
def rows(small_tokenizer):
    """Rows as a user's `map` makes them: sources, and labels with their special tokens."""
    return [{**small_tokenizer(source), "labels": small_tokenizer(target)["input_ids"]} for source, target in PAIRS]


def new_model(tokenizer, **fields) -> BnbForConditionalGeneration:
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 48, "hidden_dropout_prob": 0.0}
    sizes |= {"attention_probs_dropout_prob": 0.0, "num_hidden_layers": 1, "hidden_size": 24}
    torch.manual_seed(0)
    return BnbForConditionalGeneration(bnb_config(sizes, sizes, **fields))


def trainer(model, tokenizer, rows, folder, **arguments):
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    def compute_metrics(predicted):
        ids = np.where(predicted.predictions < 0, 0, predicted.predictions)
        labels = np.where(predicted.label_ids < 0, 0, predicted.label_ids)
        texts, references = (tokenizer.batch_decode(each, skip_special_tokens=True) for each in (ids, labels))
        return {"bleu": sacrebleu.corpus_bleu(texts, [references], force=True, smooth_method="none").score}

    settings = {
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "max_steps": 60,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "predict_with_generate": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_num_workers": 0,
    }
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(output_dir=str(folder), **{**settings, **arguments}),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=compute_metrics
        if settings | arguments and arguments.get("predict_with_generate", True)
        else None,
    )


@pytest.mark.parametrize("fields", [{}, {"decoder_length": "predicted"}], ids=["ctc", "token"])
def test_training_evaluation_and_prediction(small_tokenizer, rows, tmp_path, fields):
    model = new_model(small_tokenizer, **fields)
    work = trainer(model, small_tokenizer, rows, tmp_path)
    before = work.evaluate()
    with torch.no_grad():
        loss = model(**work.data_collator(rows)).loss
    assert before["eval_loss"] == pytest.approx(float(loss), rel=1e-5)
    work.train()
    after = work.evaluate(max_length=30, num_beams=3)
    assert after["eval_loss"] < 0.1 < before["eval_loss"]
    assert before["eval_bleu"] < 1
    assert after["eval_bleu"] == pytest.approx(100)
    predicted = work.predict(rows).predictions
    texts = small_tokenizer.batch_decode(np.where(predicted < 0, 0, predicted), skip_special_tokens=True)
    assert texts == [target for _, target in PAIRS]


def test_micro_batches_train_as_the_whole_batch(small_tokenizer, rows, tmp_path):
    """The targets differ in length, so a mean of the micro batches' means would be another loss."""
    ways = {"whole": (3, 1), "cut": (1, 3)}
    found = {}
    for name, (size, steps) in ways.items():
        model = new_model(small_tokenizer)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        trainer(model, small_tokenizer, rows, tmp_path, optim="sgd", **options).train()
        found[name] = model.state_dict()
    for name, weight in found["whole"].items():
        torch.testing.assert_close(found["cut"][name], weight, rtol=1e-4, atol=1e-6)


def test_evaluation_without_generation_gives_the_loss(small_tokenizer, rows, tmp_path):
    work = trainer(new_model(small_tokenizer), small_tokenizer, rows, tmp_path, predict_with_generate=False)
    assert work.evaluate()["eval_loss"] > 0
    assert work.predict(rows).metrics["test_loss"] > 0


def test_label_smoothing_is_refused_in_training_and_evaluation(small_tokenizer, rows, tmp_path):
    work = trainer(new_model(small_tokenizer), small_tokenizer, rows, tmp_path, label_smoothing_factor=0.2)
    for use in (work.train, work.evaluate):
        with pytest.raises(ConfigError, match=r"label_smoothing_factor 0.2: .*load the model with kl_weight=0.25,"):
            use()


def test_a_classifier_gives_its_logits(small_tokenizer, rows, tmp_path):
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    sizes = {"vocab_size": len(small_tokenizer), "max_position_embeddings": 48}
    model = BnbForSequenceClassification(bnb_config(sizes, sizes, num_labels=4)).eval()
    labelled = [{**row, "labels": number} for number, row in enumerate(rows)]
    options = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True)
    work = Trainer(model, options, DataCollatorWithPadding(small_tokenizer), eval_dataset=labelled)
    found = work.predict(labelled)
    batch = work.data_collator(labelled)
    with torch.no_grad():
        expected = model(**batch)
    np.testing.assert_allclose(found.predictions, expected.logits.numpy(), atol=1e-6)
    assert found.metrics["test_loss"] == pytest.approx(float(expected.loss), rel=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason='needs peft (`pip install ".[test]"` in the checkout)'
)
def test_lora(small_tokenizer, rows, tmp_path):
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    base = new_model(small_tokenizer)
    frozen = {name: weight.clone() for name, weight in base.state_dict().items()}
    settings = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=8, target_modules=["query", "value", "dense"])
    model = get_peft_model(base, settings)
    work = trainer(model, small_tokenizer, rows, tmp_path, max_steps=40, learning_rate=3e-2)
    before = work.evaluate()["eval_loss"]
    work.train()
    after = work.evaluate()
    assert after["eval_loss"] < 0.7 * before
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(new_model(small_tokenizer), tmp_path / "adapter").eval()
    sources = work.data_collator([{"input_ids": row["input_ids"]} for row in rows])
    sources.pop("labels", None)
    model.eval()
    assert torch.equal(again.generate(**sources), model.generate(**sources))
    merged = model.merge_and_unload().state_dict()
    assert any(not torch.equal(merged[name], weight) for name, weight in frozen.items())
    assert torch.equal(merged["model.latent.weight"], frozen["model.latent.weight"])  # no adapter there


def test_accelerate(small_tokenizer, rows):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = new_model(small_tokenizer)
    loader = torch.utils.data.DataLoader(rows, batch_size=3, collate_fn=DataCollatorForSeq2Seq(small_tokenizer))
    model, optimizer, loader = accelerator.prepare(model, torch.optim.Adam(model.parameters(), 2e-2), loader)
    losses = []
    for _ in range(12):
        for batch in loader:
            output = model(**batch)
            accelerator.backward(output.loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]
