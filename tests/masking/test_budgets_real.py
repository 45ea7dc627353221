"""Budgets on networks of real sizes: twenty random ones each, of parameters, FLOPs and bytes."""

import jax
import numpy as np
import pytest
from budget_models import REAL, bounds, case, flops_left, kernels, params_left, size

import modelzip_jax as mz
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.fitting import fit

pytestmark = pytest.mark.slow


def pruned(weights, **budget):
    return mz.compress(weights, mz.only("**/kernel", mz.prune(allocation=mz.allocation.at_most(**budget))))


def report(record_property, what, name, left, budgets):
    """Prints and records the shares of the budgets that stay unused, and that none is exceeded."""
    unused = [1 - found / budget for found, budget in zip(left, budgets, strict=True)]
    assert min(unused) >= 0
    record_property(f"{what}, {name}: largest share unused", float(max(unused)))
    print(f"{what}, {name}: {len(budgets)} budgets, at most {float(max(unused)):.2e} unused")
    return max(unused)


@pytest.mark.parametrize("what", ["params", "flops"])
def test_laws(what):
    params, cost = case("mlp")
    budget = {"params": size(params) // 2} if what == "params" else {"flops": cost.flops // 2, "costs": cost}
    t = mz.prune(allocation=mz.allocation.at_most(**budget))
    mz.testing.check_laws(mz.only("**/kernel", mz.chain(t, mz.quantize(bits=4))), params)


@pytest.mark.parametrize("name", REAL)
def test_parameters(name, record_property):
    params, _ = case(name)
    total = size(params)
    budgets = bounds(total, total - sum(x.size for x in kernels(params)), 20, seed=1)[:-1]
    left = [params_left(pruned(params, params=b), params) for b in budgets]
    assert report(record_property, "parameters", name, left, budgets) == 0


@pytest.mark.parametrize("name", REAL)
def test_flops(name, record_property):
    params, cost = case(name)
    frozen = cost.flops - sum(f for n, f in cost.by_leaf().items() if n.endswith("kernel"))
    budgets = [b for b in bounds(cost.flops, frozen, 20, seed=2)[:-1] if b > frozen + 1]
    left = [flops_left(pruned(params, flops=b, costs=cost), params, cost) for b in budgets]
    assert report(record_property, "FLOPs", name, left, budgets) <= 0.005


@pytest.mark.parametrize("name", REAL)
def test_bytes(name, record_property):
    params = jax.tree.map(np.asarray, case(name)[0])

    def recipe(sparsity):
        chain = mz.chain(mz.prune(sparsity=sparsity, allocation="global"), mz.quantize(bits=4))
        return mz.only("**/kernel", chain)

    smallest, largest = (file_sizes(mz.compress(params, recipe(s))).total for s in (0.999, 0.0))
    budgets = list(map(int, np.random.default_rng(3).integers(smallest, largest, 20)))
    left = [file_sizes(fit(params, recipe, bytes=b)).total for b in budgets]
    assert report(record_property, "bytes", name, left, budgets) <= 0.005
