"""A few seconds from start to end: runs everything, learns nothing."""

from configs import base


def get_config():
    config = base.get_config()
    config.steps = 12
    config.data.batch_size = 8
    config.data.capacity.text = 24
    config.data.sizes = ((64, 0.5), (32, 0.5))
    config.tokenizer.vocab_size = 512
    backbone = config.model.backbone
    backbone.layers, backbone.width, backbone.feedforward = 2, 32, 64
    backbone.head_dim, backbone.rope_sections = 16, (4, 2, 2)
    encoder = config.model.encoder
    encoder.layers, encoder.width, encoder.feedforward = 1, 32, 64
    config.model.representation.codebook_size = 64
    config.sampling.steps = 4
    config.log.every = 4
    config.checkpoint.every = 4
    config.evaluation.samples = 8
    return config
