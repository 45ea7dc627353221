"""Every optimizer of optax and optax.contrib, and how it is called."""

import functools
import inspect
import warnings

import jax
import optax
import optax.contrib

RATE = 1e-2
_BY_RATE = [
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan",
    "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd",
    "optimistic_gradient_descent", "optimistic_adam_v2", "radam", "rmsprop", "rprop", "sgd", "sign_sgd",
    "signum", "sm3", "yogi",
]  # fmt: skip
_CONTRIB_BY_RATE = [
    "acprop", "ademamix", "adopt", "cocob", "dadapt_adamw", "galore", "madgrad", "momo", "momo_adam",
    "muon", "prodigy", "schedule_free_adamw", "schedule_free_sgd", "simplified_ademamix", "sophia",
]  # fmt: skip
OPTIMIZERS = {name: functools.partial(getattr(optax, name), RATE) for name in _BY_RATE}
OPTIMIZERS |= {name: functools.partial(getattr(optax.contrib, name), RATE) for name in _CONTRIB_BY_RATE}


def _dpsgd():
    with warnings.catch_warnings():  # Its number is to become a key.
        warnings.simplefilter("ignore", DeprecationWarning)
        return optax.contrib.dpsgd(RATE, 1.0, 0.1, 0)


OPTIMIZERS |= {
    "noisy_sgd": lambda: optax.noisy_sgd(RATE, key=jax.random.key(0)),
    "polyak_sgd": lambda: optax.polyak_sgd(RATE),
    "lbfgs": lambda: optax.lbfgs(RATE),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8)),
    "lookahead": lambda: optax.lookahead(optax.sgd(RATE), 2, 0.5),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(RATE)),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(RATE), RATE),
    "sam": lambda: optax.contrib.sam(optax.sgd(RATE), optax.sgd(RATE), opaque_mode=True),
    "dpsgd": _dpsgd,
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(RATE), optax.contrib.reduce_on_plateau()),
    "apply_every": lambda: optax.chain(optax.sgd(RATE), optax.apply_every(2)),
    "adaptive_grad_clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(RATE)),
    "ema": lambda: optax.chain(optax.sgd(RATE), optax.ema(0.5)),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), optax.sgd(RATE)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(RATE), 3),
    "flatten": lambda: optax.flatten(optax.adam(RATE)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=RATE),
    "masked decay": lambda: optax.adamw(RATE, mask={"bias": False, "kernel": True}),
}

# What is no optimizer by itself: gradients' and updates' transformations (several stand in chains above), what combines
# optimizers (tests/loop/test_containers.py), and what only watches.
# "optimistic_adam" is deprecated for its second version.
_OTHERS = {
    "optimistic_adam",
    "add_decayed_weights", "apply_every", "centralize", "chain", "clip", "clip_by_block_rms",
    "clip_by_global_norm", "conditionally_mask", "conditionally_transform", "ema", "flatten", "freeze",
    "identity", "inject_stateful_hyperparams", "keep_params_nonnegative", "masked", "measure_with_ema",
    "multi_transform", "named_chain", "normalize_by_update_norm", "partition", "scale",
    "selective_transform", "set_to_zero", "snapshot", "stateless", "stateless_with_tree_map", "trace",
    "with_extra_args_support", "zero_nans", "add_noise", "normalize", "differentially_private_aggregate",
    "split_real_and_imaginary",
}  # fmt: skip


def missing() -> list[str]:
    """Functions that make gradient transformations and are neither here nor known to be something else."""
    found = []
    for module in (optax, optax.contrib):
        for name in dir(module):
            function = getattr(module, name)
            if name.startswith(("_", "scale_by")) or not callable(function) or inspect.isclass(function):
                continue
            try:
                result = str(inspect.signature(function).return_annotation)
            except (TypeError, ValueError):
                continue
            if "GradientTransformation" in result and name not in OPTIMIZERS and name not in _OTHERS:
                found.append(name)
    return found
