"""The network: encoder, latent, decoder, heads and loss; starting from BERT or the reference implementation.

Face: `classification.BnbEncoderModel`, `classification.BnbForSequenceClassification`, `configuration.BnbConfig`,
`network.BnbLMHeadModel`, `network.BnbModel`.
"""
