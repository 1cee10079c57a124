"""The network: encoder, latent, decoder, heads, loss; also loading of BERT and reference checkpoints.

Face: `classification.BnbEncoderModel`, `classification.BnbForSequenceClassification`, `configuration.BnbConfig`,
`network.BnbLMHeadModel`, `network.BnbModel`.
"""
