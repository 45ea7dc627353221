"""What happens inside a training loop: wrapped optimizers, averages, value ranges, lottery tickets."""

from modelzip_jax.loop.averaging import AverageState, mean_of, with_average
from modelzip_jax.loop.reading import averaged, metrics, pack, params, start
from modelzip_jax.loop.rewinding import rewind
from modelzip_jax.loop.states import WrapState, wrap_states
from modelzip_jax.loop.value_range import within_range
from modelzip_jax.loop.wrapping import wrap

__all__ = [
    "AverageState",
    "WrapState",
    "averaged",
    "mean_of",
    "metrics",
    "pack",
    "params",
    "rewind",
    "start",
    "with_average",
    "within_range",
    "wrap",
    "wrap_states",
]
