"""Model FLOPs by arithmetic: what the products need, without recomputation or padding of masks."""


def backbone_token(config) -> float:
    """Forward FLOPs of one token in the dense products of all layers."""
    c = config.model.backbone
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    return 2.0 * c.layers * (attention + 3 * c.width * c.feedforward)


def encoder_token(config) -> float:
    """The same for one patch, class token or register of the vision encoder."""
    c = config.model.encoder
    ffn = (3 if c.gated else 2) * c.width * c.feedforward
    return 2.0 * c.layers * (4 * c.width**2 + ffn)


def train_step(config, vocabulary: int) -> float:
    """FLOPs of one step at the row capacities: forward, twice that backward, EMA encoder forward.

    Attention products count every pair of a row, as the reference form computes them.
    """
    capacity, c, e = config.data.capacity, config.model.backbone, config.model.encoder
    row = sum(capacity[name] for name in ('text', 'vision', 'representation', 'pixels'))
    channels = config.data.patch**2 * 3

    def encoder(patches, pictures):
        tokens = patches + pictures * (1 + e.registers)
        if not patches:
            return 0.0
        pairs = 4.0 * e.layers * tokens**2 * e.width
        return tokens * encoder_token(config) + pairs + 2.0 * patches * channels * e.width

    forward = row * backbone_token(config) + 4.0 * c.layers * row**2 * c.heads * c.head_dim
    forward += 2.0 * capacity.text * c.width * vocabulary
    forward += 2.0 * capacity.representation * c.width * config.model.representation.codes
    forward += 4.0 * capacity.pixels * channels * c.width
    forward += encoder(4 * capacity.vision, capacity.vision_pictures)
    connector = 2.0 * capacity.vision * (e.width * c.width + c.width**2)
    targets = encoder(capacity.pixels, capacity.pixel_pictures)
    return config.data.rows * (3 * (forward + connector) + targets)
