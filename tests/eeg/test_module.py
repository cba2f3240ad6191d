"""Training: noise, Adam as in Keras, norms, early stopping, resuming."""

import math

import numpy as np
import pytest
import torch

from voxelwave.eeg.adhdeepnet import ADHDeepNet
from voxelwave.eeg.module import (
    EEGModule,
    KerasAdam,
    WindowData,
    best_epoch,
    noise_levels,
    set_norm_momentum,
    subject_auc,
)
from voxelwave.eeg.search_spaces import AUGMENTATIONS
from voxelwave.eeg.settings import parse_augmentation
from voxelwave.runs.training import BestEpoch, fit_quietly

SMALL = {"n_chans": 2, "n_times": 16, "F1": 2, "D": 1, "kernel_length": 3, "se_nodes": 2}


def _fit(module: EEGModule, validation: WindowData | None = None, *, epochs: int, batch: int, best: BestEpoch) -> None:
    loader = None if validation is None else validation.loader(128)
    fit_quietly(module, _data().loader(batch, shuffle=module.order), loader, epochs=epochs, best=best)


def _data(n=12, levels=(0.0,)):
    x = torch.randn(n, 2, 16, generator=torch.Generator().manual_seed(1))
    return WindowData(x, torch.arange(n) % 2, torch.arange(n) // 2, levels=levels)


def test_nineteen_published_augmentations_and_their_sizes():
    sizes = [len(noise_levels(*parse_augmentation(text))) for text in AUGMENTATIONS]
    assert sizes == [1] + 9 * [2] + 9 * [5]


def test_copies_come_after_the_originals_with_their_level():
    data = _data(3, noise_levels([0.1], [1, 2]))
    batch = data[[0, 3, 6, 8]]
    assert len(data) == 9
    torch.testing.assert_close(batch["noise"], torch.tensor([0.0, 0.1, 0.2, 0.2]))
    torch.testing.assert_close(batch["x"], data.x[[0, 0, 0, 2]])


def test_noise_is_added_in_training_only_with_its_standard_deviation():
    seen = []
    module = EEGModule(arguments=SMALL, sigmas=[0.5], magnifications=[2])
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.log = lambda *_, **__: None
    data = _data(2000, module.levels)
    module.training_step(data[list(range(1000, 3000))], 0)
    module.on_validation_epoch_start()
    module.validation_step(data[list(range(2000, 3000))], 0)
    noise = seen[0] - data.x[torch.arange(1000, 3000) % 2000]
    assert noise[:1000].abs().max() == 0
    assert abs(float(noise[1000:].std()) - 1.0) < 0.02
    torch.testing.assert_close(seen[1], data.x[:1000])


def test_adam_is_that_of_keras():
    """Compare with the formula of Keras, with gradients so small that epsilon matters."""
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = KerasAdam([weight], lr=0.1)
    expected, m, v = 1.0, 0.0, 0.0
    for t in range(1, 6):
        g = 1e-6 * t
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected -= 0.1 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (math.sqrt(v) + 1e-7)
    assert float(weight) == pytest.approx(expected, rel=1e-12)


def test_norms_stay_below_the_limit_after_every_step():
    module = EEGModule(arguments={**SMALL, "max_norm": 0.1}, lr=0.5)
    _fit(module, epochs=2, batch=4, best=best_epoch())
    assert isinstance(module.network, ADHDeepNet)
    _, spatial = module.network.filters()
    assert float(spatial.norm(dim=-1).max()) <= 0.1 + 1e-6
    assert float(module.network.classify.weight.norm(dim=1).max()) <= 0.1 + 1e-6


def test_the_best_epoch_is_given_back_and_patience_ends_training():
    torch.manual_seed(0)
    module, best = EEGModule(arguments=SMALL, lr=0.05), best_epoch(patience=3)
    validation = _data(6)
    _fit(module, validation, epochs=40, batch=4, best=best)
    losses = [row["validation_loss"] for row in best.curve]
    assert best.epoch == 1 + int(np.argmin(losses))
    assert len(losses) == min(40, best.epoch + 3)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(module.eval()(validation.x), validation.label)
    assert float(loss) == pytest.approx(min(losses), rel=1e-4)


def test_training_is_the_same_for_a_seed_and_class_weights_act():
    def weights(seed, class_weights=None):
        torch.manual_seed(seed)
        module = EEGModule(arguments=SMALL, seed=seed, class_weights=class_weights)
        _fit(module, epochs=2, batch=5, best=best_epoch())
        return module.network.classify.weight.detach()

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert not torch.equal(weights(3), weights(3, [0.5, 2.0]))


def test_auc_over_subjects_uses_the_mean_of_their_windows():
    probability = torch.tensor([0.9, 0.0, 0.6, 0.4, 0.3])  # means 0.45, 0.5, 0.3
    label, subject = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([5, 5, 1, 1, 2])
    assert subject_auc(probability, label, subject) == 0.5
    assert math.isnan(subject_auc(probability[:2], label[:2], subject[:2]))


def test_running_averages_follow_faster_with_a_larger_momentum():
    """With the momentum of Keras, the averages are still near their initial values after a short training."""
    spread = []
    for momentum in (0.01, 0.5):
        torch.manual_seed(0)
        module = EEGModule(arguments=SMALL)
        set_norm_momentum(module.network, momentum)
        _fit(module, epochs=2, batch=4, best=best_epoch())
        norms = [layer for layer in module.network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
        spread.append(float(torch.stack([(norm.running_var - 1).abs().mean() for norm in norms]).mean()))
    assert spread[1] > 5 * spread[0]
    with pytest.raises(ValueError, match="norm_momentum must be above 0 and at most 1, got 0"):
        set_norm_momentum(torch.nn.BatchNorm2d(1), 0)
