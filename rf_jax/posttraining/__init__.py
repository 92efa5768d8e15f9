"""Reinforcement on a trained model: rollouts, rewards, and GRPO beside the train step of
pre-training (docs/post_training.md).
"""
