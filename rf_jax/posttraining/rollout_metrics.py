"""What is logged of a rollout: each reward, also by level, diversity and length, to reveal reward
hacking.
"""

from collections.abc import Mapping

import numpy as np

from rf_jax.posttraining.episodes import Collected, Episode, grouped

_ALIKE = 1e-6  # standard deviation of rewards from which nothing is learned


def of(
    found: Collected,
    values: Mapping[str, np.ndarray],
    total: np.ndarray,
    valid: np.ndarray,
    episode: Episode,
) -> dict[str, float]:
    """`values`: each reward [groups, n]; `total` [groups, texts, images], their weighted sum;
    `valid` bool [groups]: which groups have all rewards that count.
    """
    images = total.shape[2]
    with np.errstate(all='ignore'):
        seen = {f'reward/{name}': float(np.nanmean(each)) for name, each in values.items()}
        seen['reward/total'] = float(np.nanmean(total))
    known = total[valid]
    seen |= _spread('in_group', 'groups_all_alike', known.reshape(len(known), -1))
    if images > 1:
        seen |= _spread('of_texts', 'texts_all_alike', known.mean(2))
        seen |= _spread('in_text', 'images_all_alike', known.reshape(-1, images))
    seen['rollout/groups_skipped'] = float((~valid).sum())
    samples = [sample for group in found.samples for sample in group]
    if 'text' in episode.policies:
        groups = [[sample.text for sample in group[::images]] for group in found.samples]
        seen['rollout/words'] = float(np.mean([len(sample.text.split()) for sample in samples]))
        different = [len(set(group)) / len(group) for group in groups]
        seen['rollout/different_texts'] = float(np.mean(different))
    there = [sample.image is not None for sample in samples]
    if episode.images:
        seen['rollout/without_image'] = 1 - float(np.mean(there))
    if any(there):
        seen['rollout/pixel_spread'] = _pixel_spread(found.samples)
    if any(there) and images > 1:
        seen['rollout/pixel_spread_in_text'] = _pixel_spread(grouped(samples, images))
    return seen


def _spread(spread: str, alike: str, rewards: np.ndarray) -> dict[str, float]:
    """Mean standard deviation of rewards [groups, n] in a group, and share of groups without."""
    found = rewards.std(1)
    return {
        f'reward/spread_{spread}': float(found.mean()) if len(found) else float('nan'),
        f'reward/{alike}': float((found < _ALIKE).mean()) if len(found) else 1.0,
    }


def _pixel_spread(samples) -> float:
    """Standard deviation of a pixel over the images of a group, of 255; groups may have none."""
    groups = [[sample.image for sample in group if sample.image is not None] for group in samples]
    return float(np.mean([np.std(group, 0, np.float32).mean() for group in groups if group]))


def line(seen: Mapping[str, float]) -> str:
    """The metrics of a rollout in one line."""
    return ' | '.join(f'{name} {value:.3g}' for name, value in seen.items())
