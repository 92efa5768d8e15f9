"""The batch: every array that the model, the losses and the sampler read, in one place.

`layout.make_batch` makes the arrays of `Batch` on the host, in numpy; the train step adds those of
`StepBatch` on the devices. An annotation gives dtype and shape, its comment the meaning.

Shape letters: B rows · T, Vn, R, P places of the text, vision, representation and pixel streams,
with L = T + Vn + R + P · C values of a patch (3 patch_size^2) · Z values of a patch in the space of
the flow (C for pixels) · Denc encoder width. I_v and I_p count the images of a row that are
encoded and that are generated. A group is the pool x pool patches that one token stands for.
"""

from typing import Annotated, Any, TypedDict

Array = Any  # np.ndarray on a host, jax.Array in a jitted function


class Batch(TypedDict, total=False):
    """What `layout.make_batch` makes of examples; unused places are as in `layout.empty`."""

    # Attention (models.attention.masks) and rotary positions of all tokens.
    segment: Annotated[Array, 'int32', 'B L']  # example within the row, from 1; 0 is padding
    order: Annotated[Array, 'int32', 'B L']  # place in the example; NEVER for pixels
    reach: Annotated[Array, 'int32', 'B L']  # last order that the token attends to; -1 for none
    block: Annotated[Array, 'int32', 'B L']  # tokens of a block attend to each other; 0 for none
    position: Annotated[Array, 'float32', 'B L 3']  # (order, row, column), in patches

    # Text.
    text_tokens: Annotated[Array, 'int32', 'B T']  # token ids
    text_targets: Annotated[Array, 'int32', 'B T']  # ids to be predicted
    text_weight: Annotated[Array, 'float32', 'B T']  # 1 where the target counts, else 0

    # Images that are encoded: four patches for each vision token.
    vision_pixels: Annotated[Array, 'uint8', 'B 4Vn C']  # patches, in 2 x 2 groups
    vision_image: Annotated[Array, 'int32', 'B 4Vn']  # image within the row; -1 for none
    vision_coords: Annotated[Array, 'float32', 'B 4Vn 2']  # (row, column) in [-1, 1] of the image
    vision_counts: Annotated[Array, 'int32', 'B I_v']  # patches of each image; 0 for none

    # Representation: a begin token, then one token for each group of patches.
    cells: Annotated[Array, 'int32', 'B R 2']  # (row, column) of the token; -1 for the begin token
    input_group: Annotated[Array, 'int32', 'B R']  # group whose token is the input; -1 for none
    target_group: Annotated[Array, 'int32', 'B R']  # group whose token is the target; -1 for none
    representation_weight: Annotated[Array, 'float32', 'B R']  # 1 where the target counts, else 0

    # Images that are generated.
    pixels: Annotated[Array, 'uint8', 'B P C']  # clean patches, group by group
    pixel_weight: Annotated[Array, 'float32', 'B P']  # 1 where it counts, else 0
    pixel_image: Annotated[Array, 'int32', 'B P']  # image within the row; -1 for none
    pixel_cells: Annotated[Array, 'int32', 'B P 2']  # (row, column) of the patch in its image
    pixel_coords: Annotated[Array, 'float32', 'B P 2']  # the same, in [-1, 1] of the image
    pixel_counts: Annotated[Array, 'int32', 'B I_p']  # patches of each image; 0 for none


class StepBatch(Batch, total=False):
    """A batch with what `training.step` adds: noise for all, targets by the representation kind."""

    live: Annotated[Array, 'float32', 'B L']  # 1 for a token, 0 for padding

    # The flow (`training.flow`).
    x: Annotated[Array, 'float32', 'B P Z']  # clean patches or latents, in [-1, 1] for pixels
    t: Annotated[Array, 'float32', 'B P']  # time in [0, 1], one per image; 1 is clean
    z: Annotated[Array, 'float32', 'B P Z']  # noisy patches or latents at time t
    posterior_noise: Annotated[Array, 'float32', 'B P Z']  # of model.space='vae' alone

    # Inputs of the representation stream; their form depends on the kind.
    tokens: Annotated[Array, 'int32 | float32', 'B R | B R Denc']  # codes (-1 for none) or features

    # Targets, of one kind each.
    code_targets: Annotated[Array, 'int32', 'B R']  # forcing: codes in [0, K); -1 for none
    feature_targets: Annotated[Array, 'float32', 'B R Denc']  # continuous: features
    patch_features: Annotated[Array, 'float32', 'B P Denc']  # alignment: unit features of patches
