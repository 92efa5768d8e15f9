"""Every field of an rf_jax run, with its meaning. The other configs change a few lines.

Override any field on the command line: `--config.optimizer.learning_rate=1e-3`.
Comments give the values of the paper (arXiv 2605.31604, section 4.1 and appendices A-B) after
"paper:"; "paper: silent" where it gives none.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # determines data order, initial weights, noise and samples
    # Comma-separated: workdirs of other runs, also in gs:// and s3://, at their newest step or, as
    # in runs/earlier@4000, at another, and folders of pretrained weights, as in
    # hf:/models/Qwen3-0.6B,hf:/models/dinov3-vits16 (docs/weights.md). Each parameter comes from
    # the first one that has it.
    config.initialise_from = ''
    # Parameters start from the averages of these runs, which are what was evaluated.
    config.initialise_from_average = False
    config.initialise_new = ()  # regexes of parameters to initialise from scratch anyway
    # (regex, replacement) on the path of a parameter: gives its path in the source.
    config.initialise_as = ()
    config.steps = 1000  # optimizer steps of the run
    config.compute_dtype = 'float32'  # activations; parameters and float32 islands stay float32

    data = config.data = ConfigDict()
    # Comma-separated: emoji | scenes:rung/size[/option...] | folder:/path |
    # tfds:name[/config][:split] | text:/path | prepared:/path | webdataset:/path/*.tar |
    # arrayrecord:/path/*.array_record*; prepared and webdataset also in gs:// and s3:// buckets.
    # All examples are sampled equally often; those of a source that is listed three times, three
    # times as often. \, is a comma in a path; folder+links and text+links follow symbolic links out
    # of their folder.
    data.sources = 'emoji'
    data.batch_size = 32  # B, rows of the global batch
    # Sampling weight of each task; a task that no source can serve is an error.
    data.tasks = ConfigDict({'text_to_image': 1.0, 'image_to_text': 1.0, 'text_only': 0.0})
    data.tasks.conversation = 0.0
    # The user shows an image, the model draws it again, its depth, the outlines of its objects, or
    # each in a colour of its own; scenes and folders have such maps (docs/conversations.md).
    data.tasks.update(image_to_pixels=0.0, image_to_depth=0.0)
    data.tasks.update(image_to_segmentation=0.0, image_to_regions=0.0)
    # Tokens per row, by stream. An image to generate takes height/patch x width/patch pixel
    # tokens, and one representation token per pool x pool of these, plus one; an image to read
    # takes a quarter as many vision tokens.
    data.capacity = ConfigDict({'text': 32, 'vision': 8, 'representation': 5, 'pixels': 16})
    data.capacity.vision_images = 2  # maximum number of images to read per row
    data.capacity.pixel_images = 1  # maximum number of images to generate per row
    # Whether representation tokens come before the pixels of an image to generate. Must agree with
    # model.representation.kind: True for forcing and continuous, False for alignment and none.
    data.representation_tokens = True
    data.patch_size = 16  # side of a patch in pixels; paper: 16
    # (longest side in pixels, weight): each time an image is sampled it is resized to one of
    # these, to the nearest aspect ratio whose sides are multiples of 2 x patch (4 x patch for a
    # pool of 4). Small images are not enlarged beyond the smallest entry.
    data.sizes = ((64, 1.0),)
    data.max_text_tokens = 24  # tokens of one text span; longer text is truncated and counted
    # Probability that a prompt is the bare label, else a paraphrase with tags.
    data.label_prob = 0.5
    data.question_prob = 0.3  # probability that image_to_text is a question, else a caption
    data.text_dropout = 0.1  # probability of dropping the prompt of text_to_image; paper: 0.1
    data.representation_dropout = 0.1  # the same for the representation; paper: 0.1, independent
    # The same for all other images of a conversation before an image to generate.
    data.image_dropout = 0.1
    data.joint_dropout = 0.0  # extra probability of dropping both together; paper: none
    # Whether a dropped prompt still advances the positions of what follows; paper: silent.
    data.dropout_keeps_positions = False
    data.prompt_loss = False  # language-model loss on the prompts of text_to_image too
    # Lanczos by pillow | simd: vector instructions, in a quarter of the time; a tenth of the values
    # differ by 1 of 255 (pip install '.[simd]'; docs/data.md).
    data.resizer = 'pillow'
    data.max_pixels = 64_000_000  # larger images are skipped and counted
    # Sampling weights of the entries of `sources`, from a step on: ((0, (3, 1)), (10000, (1, 1))).
    # (): all examples are sampled equally often.
    data.weights = ()
    # Parts of the data and of each batch that are planned apart: a host plans those of its rows.
    # Batches depend on it, but not on the number of hosts. -1: one for each row (docs/data.md).
    data.lanes = 1
    # Of decoded images, and what is read ahead from a bucket: two windows a lane (docs/data.md).
    data.cache_megabytes = 256
    data.prefetch = 4  # batches prefetched
    # Reader threads, at most `prefetch`: each makes whole batches.
    data.threads = 1
    # Processes that make the batches, each with lanes, threads and prefetched batches of its own;
    # must divide the lanes of a host. 0: the threads of this process (docs/data.md).
    data.workers = 0

    tokenizer = config.tokenizer = ConfigDict()
    tokenizer.vocab_size = 2048  # V of a new one, and of compile_check; lower on a tiny corpus
    # A SentencePiece .model file, Qwen's tokenizer.json, or a folder of downloaded weights or of a
    # run that holds one, also in a bucket; V is then theirs. '' trains a SentencePiece model on the
    # sources.
    tokenizer.path = ''

    model = config.model = ConfigDict()
    backbone = model.backbone = ConfigDict()  # Qwen3's block
    backbone.layers = 4
    backbone.width = 128  # D
    backbone.heads = 2  # H, query heads
    backbone.kv_heads = 1  # key/value heads; must divide heads
    backbone.head_dim = 64
    backbone.feedforward = 384  # F, SwiGLU width of each expert group
    backbone.ffn = 'dense'  # dense: one SwiGLU per group | moe: a mixture of experts
    moe = backbone.moe = ConfigDict()  # only with ffn='moe'
    moe.num_experts = 8  # E, experts per pool; paper: 128 (Qwen3-30B-A3B)
    moe.top_k = 2  # experts per token; paper: 8
    moe.feedforward = 192  # F of one expert; paper: 768
    moe.pool = 'separate'  # separate: one pool per group | shared: one pool for all groups
    # auto: kernel on TPU and GPU | ragged: XLA | kernel: Pallas; that for GPUs has not run on one.
    moe.grouped_matmul = 'auto'
    # Size of one all-to-all over mesh.expert devices, relative to an even load. Tokens beyond it
    # are exchanged in further rounds; no token is dropped.
    moe.capacity_factor = 1.25
    # What each of the three groups has of its own: ffn (paper): feed-forwards | full (BAGEL):
    # everything but the attention product | none: nothing
    backbone.split = 'ffn'
    backbone.rope_theta = 10_000.0  # Qwen3: 1e6
    # Shares of the rotary frequencies for (order, row, column); they sum to head_dim / 2.
    backbone.rope_sections = (16, 8, 8)
    backbone.norm_eps = 1e-6
    # What is recomputed in the backward pass: none | dots (all but matrix products) | full (all but
    # the inputs of layers). In between, by what each layer saves beside its input: attention
    # (output of the TPU kernel) | projections (also queries, keys, values and output projection) |
    # gate (also the gates of the feed-forward) | feedforward (also `up`)
    backbone.remat = 'none'
    backbone.unroll = 1  # layers per scan iteration; = layers: no loop; same parameter tree

    # Factor of the gradient that reaches the encoder through the tokens of images to read; UniMRG:
    # 0.1. Features of images to generate have none.
    model.vision_gradient_scale = 1.0

    attention = model.attention = ConfigDict()  # implementation, in the backbone and the encoder
    # auto: reference for short rows; for long ones pallas on TPU (from one block on), cudnn on GPU
    # (up to 8,192 tokens, then triton), blockwise on CPU (from 4,097 tokens on).
    # reference: L x L mask and logits in memory | blockwise: XLA, memory linear in L (on GPU, XLA
    # keeps the logits of all tiles) | pallas: TPU kernel, linear, skips tiles without visible pairs
    # (interpreted elsewhere, for tests) | cudnn: GPU, bfloat16; no logits in memory, but an L x L
    # mask: a few thousand tokens | triton: GPU kernel, as pallas; has not run on a GPU yet.
    attention.implementation = 'auto'
    attention.block_q = 512  # queries per tile, for blockwise and pallas; a multiple of 128
    attention.block_k = 512  # keys per tile; a multiple of 128

    encoder = model.encoder = ConfigDict()
    # dinov3 | siglip2 (NaFlex). DINOv3 only: gated to rope_theta, query_value_bias.
    encoder.kind = 'dinov3'
    encoder.layers = 3
    encoder.width = 128
    encoder.heads = 2
    encoder.feedforward = 384
    encoder.gated = False  # True: SwiGLU, as in ViT-H+; False: GELU, as in ViT-S/B/L
    encoder.registers = 4
    encoder.layer_scale = 1.0  # initial value
    encoder.rope_theta = 100.0
    encoder.norm_eps = 1e-5  # SigLIP2: 1e-6
    encoder.query_value_bias = True  # False: DINOv3 7B
    # Of the red, green and blue that the encoder sees, in [0, 1]; what is generated is in [-1, 1]
    # whatever they are. DINOv3: (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
    encoder.pixel_mean = (0.5, 0.5, 0.5)
    encoder.pixel_std = (0.5, 0.5, 0.5)
    encoder.position_grid = 16  # side of SigLIP2's table of positions, resized to each image
    encoder.remat = 'none'  # as backbone.remat
    encoder.unroll = 1  # as backbone.unroll

    # What the flow generates: pixels | vae (latents of model.autoencoder, trained by a separate
    # run) | wan (latents of Wan 2.1's VAE, from its own weights)
    model.space = 'pixels'
    autoencoder = model.autoencoder = ConfigDict()  # encoder and decoder, both as model.encoder
    autoencoder.channels = 16  # of a latent; one latent per patch
    autoencoder.layers = 2
    autoencoder.width = 128
    autoencoder.heads = 2
    autoencoder.feedforward = 384
    autoencoder.gated = False
    autoencoder.registers = 1
    autoencoder.layer_scale = 1.0
    autoencoder.rope_theta = 100.0
    autoencoder.norm_eps = 1e-5
    autoencoder.remat = 'none'
    autoencoder.unroll = 1

    wan = model.wan = ConfigDict()  # Wan 2.1's VAE, of one frame; 16 channels per 8 x 8 pixels
    wan.base_dim = 96  # channels of the widest feature map
    wan.dim_mult = (1, 2, 4, 4)  # factors of base_dim; each but the last halves the resolution
    wan.num_res_blocks = 2  # of the encoder at each resolution; the decoder has one more

    representation = model.representation = ConfigDict()
    # forcing (the paper's: discrete tokens before the pixels) | continuous (features before them,
    # by squared-error regression; the paper names a diffusion head) | alignment (no tokens; pixel
    # tokens are aligned with the features: REPA) | none | the dotted name of a module of your own
    # with an object KIND (docs/adding_a_kind.md)
    representation.kind = 'forcing'
    representation.pool = 2  # side of the group of patches of one token: 1 | 2 (paper) | 4
    # For alignment: the layer that is aligned with the features (REPA: at about a third of them).
    representation.alignment_layer = 1
    representation.codebook_size = 512  # K; paper: 16384
    # Side of the learned 2D position table, in representation tokens.
    representation.position_grid = 16
    quantizer = representation.quantizer = ConfigDict()
    quantizer.mode = 'printed'  # printed (paper's listing) | sinkhorn | nearest
    quantizer.temperature = 0.5  # paper: 0.5
    quantizer.sinkhorn_iterations = 1  # for sinkhorn; paper: 1
    quantizer.momentum = 0.99  # paper: 0.9999, for runs a hundred times longer
    quantizer.pool_first = True  # 2x2 pooling before the normalisation; paper: silent
    # At these steps (skipped ones not counted) the codebook is initialised from the features of the
    # batch, and of the following ones if its rows hold fewer than there are prototypes; copies
    # stand in for padding. A batch without images leaves it as it is; paper: silent.
    quantizer.data_init_steps = (0,)
    # How it is initialised: random (features sampled uniformly) | farthest (features far from each
    # other, so that rare ones get prototypes too)
    quantizer.data_init = 'random'

    denoiser = model.denoiser = ConfigDict()
    denoiser.bottleneck = 0  # JiT's low-rank patch embedding; 0: a single full linear layer
    denoiser.time_embed_dim = 256  # sinusoids of the time embedding
    # Add fixed sinusoids of row and column to noisy patches, as JiT and BAGEL do: rotary positions
    # are relative and do not tell a patch which part of a representation token it belongs to.
    denoiser.sinusoids = False

    flow = config.flow = ConfigDict()
    flow.time_mean = -0.8  # t = sigmoid(N(mean, std)); JiT: -0.8, 0.8; paper: silent
    flow.time_std = 0.8
    flow.t_eps = 0.05  # lower bound of 1 - t in the velocity; JiT: 0.05; paper: silent
    flow.noise_scale = 1.0  # standard deviation of the noise; images are in [-1, 1]
    # Timestep shift alpha at pixels = base_pixels, growing as sqrt(pixels / base_pixels) (SD3).
    flow.shift = 1.0
    flow.base_pixels = 64 * 64

    losses = config.losses = ConfigDict()  # weights of the named terms; paper: all 1
    losses.text = 1.0
    losses.representation = 1.0
    losses.flow = 1.0
    # Load balance of routed experts, as Hugging Face scales it: top_k if even. Qwen3: 1e-3.
    losses.balance = 0.0
    losses.router_z = 0.0  # logsumexp(router logits)^2
    losses.reconstruction = 0.0  # of model.autoencoder: squared error of pixels in [-1, 1]
    losses.kl = 0.0  # of its posterior from N(0, 1), nats per latent value

    optimizer = config.optimizer = ConfigDict()  # AdamW as in the paper
    optimizer.learning_rate = 1e-3  # paper: 5e-5 from pretrained weights
    # Steps of linear warm-up, then constant. The rate moves on by the updates made: steps that are
    # skipped (`max_skipped_steps`) do not count for it.
    optimizer.warmup_steps = 100
    optimizer.decay_steps = 0  # last steps of the run, in which it falls linearly to 0
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.95
    optimizer.epsilon = 1e-8
    optimizer.weight_decay = 0.1  # on matrices, not on norms, biases, layer scales
    optimizer.grad_clip_norm = 1.0  # global gradient norm
    # (regex on the parameter path, factor of the learning rate); first match wins.
    # Paper: 4x for newly initialised generation parameters.
    optimizer.lr_multipliers = ()
    optimizer.freeze = ()  # regexes; matching parameters are not trained
    optimizer.grad_accum_steps = 1  # microbatches per step; gradients are averaged over all tokens
    optimizer.max_skipped_steps = 20  # consecutive non-finite steps before the run stops

    # Low-rank adapters of frozen weights (docs/usage.md): a kernel W of `initialise_from` (of its
    # average, if it is a run) is used as W + alpha / rank a b; only a, b and `full` are trained and
    # saved.
    lora = config.lora = ConfigDict()
    lora.rank = 0  # r of a [D, r] and b [r, F]; 0: no adapters, everything is trained
    lora.alpha = 16.0
    # Regexes on parameter paths; the kernels they match have adapters. These match no router.
    lora.targets = (r'^backbone/.*(query|key|value|output|gate|up|down)',)
    lora.full = ()  # regexes of parameters that are trained without adapters

    ema = config.ema = ConfigDict()
    ema.decay = 0.999  # paper: 0.9999
    # Limits the decay to (1 + step) / (warmup_offset + step). False: only for `initialise_new`; the
    # rest continues the average of `initialise_from`.
    ema.warmup = True
    # 10 discards the initial weights quickly but averages over a ninth of the steps so far: it
    # reaches 0.9999 at step 89,990. 2 is a uniform average of all steps and reaches it at 9,998.
    ema.warmup_offset = 10.0
    ema.encoder_decay = 0.999  # of the encoder that the quantizer uses; paper: silent

    mesh = config.mesh = ConfigDict()  # devices along each axis; -1 takes the rest
    mesh.data = 1
    mesh.fsdp = -1
    mesh.expert = 1
    mesh.tensor = 1
    mesh.context = 1
    # (regex on the parameter path, mesh axes of its dimensions); the first match wins, and every
    # parameter needs one. Leading dimensions that a rule leaves out (scanned layers) are not
    # sharded.
    config.sharding = (
        (r'(query|key|value|gate|up)/kernel$', ('fsdp', 'tensor')),
        (r'(output|down)/kernel$', ('tensor', 'fsdp')),
        (r'(gate|up)$', ('expert', 'fsdp', 'tensor')),  # routed experts
        (r'down$', ('expert', 'tensor', 'fsdp')),
        (r'router$', ('fsdp', None)),
        (
            r'(patch_embed|bottleneck|patch|logits|text_head|features|predicted|posterior)/kernel$',
            ('fsdp', 'tensor'),
        ),
        (r'conv\w*/kernel$', ('fsdp', 'tensor')),
        (r'table$', ('tensor', 'fsdp')),
        (r'class_and_registers$', (None, 'fsdp')),
        (r'codebook$', ('fsdp', None)),
        (r'(scale|bias)$', ('fsdp',)),
    )

    # Parts of the state that are kept in host memory between steps: 'ema', 'opt_state'.
    config.offload = ()

    sampling = config.sampling = ConfigDict()
    sampling.steps = 25  # flow steps; paper: 25
    sampling.method = 'euler'  # euler | heun
    sampling.top_k = 0  # for representation tokens; 0 keeps all; paper: top-k, k not given
    sampling.temperature = 1.0
    sampling.guidance_representation = 2.0  # paper: 2.0
    sampling.guidance_pixels = 3.0  # paper: 3.0, for both conditions together
    # Scale of the other images of a conversation, for pixels and tokens; 0: as the text's.
    sampling.guidance_image = 0.0
    sampling.guidance_text = 0.0  # scale of the prompt alone for pixels; 0: as guidance_pixels
    sampling.guidance_interval = (0.0, 1.0)  # times t at which pixel guidance is on
    sampling.max_answer_tokens = 16  # tokens of a caption or answer
    # Rows as of `sharding`, before those of INFERENCE in rf_jax/generation/placement.py: the layout
    # of a model that is loaded on a mesh, `Sampler.load(workdir, mesh={'tensor': 4})`.
    sampling.sharding = ()

    log = config.log = ConfigDict()
    log.every = 50  # steps between progress lines
    log.samples_every = 0  # steps between sample grids and captions; 0: at the end only
    log.samples = 16  # images per grid
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 200  # steps
    config.checkpoint.keep = 2  # newest kept
    config.checkpoint.keep_period = 0  # also save and keep every multiple of this; 0: none

    evaluation = config.evaluation = ConfigDict()
    evaluation.samples = 200  # images generated and captioned at the end; 0: none

    validation = config.validation = ConfigDict()  # losses of data that is not trained on
    validation.sources = ''  # as data.sources; '': none
    validation.every = 500  # steps; at the end too
    validation.batches = 8  # the same ones every time
    # Folder of compiled programs for later runs; '' turns it off. Only the first process writes it:
    # several hosts need one that they share.
    config.compilation_cache = '~/.cache/rf_jax'
    return config.lock()  # a misspelt field in a config is an error, not a new field
