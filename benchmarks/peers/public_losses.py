"""Values and gradients of published implementations of distillation losses, for the tests to compare with.

Run where torch is installed (torch 2.14 wrote what is recorded), with a folder of clones of

    https://github.com/HobbitLong/RepDistiller                    (BSD 2-Clause)
    https://github.com/megvii-research/mdistiller                 (MIT)
    https://github.com/sunshangquan/logit-standardization-KD      (no licence stated)
    https://github.com/hunto/DIST_KD                              (Apache 2.0)

    python benchmarks/peers/public_losses.py CLONES tests/distillation/public_losses.npz

Their code is called as it stands, in float64 on the CPU. Arrays are drawn here and rounded to float32, channels last.
An entry is `loss/student`, `loss/teacher`, `loss/value`, `loss/gradient` (with respect to the student), and more where
a loss takes more.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

RNG = np.random.default_rng(0)
FOUND: dict[str, np.ndarray] = {}


def module(file: Path, package: str) -> Any:
    """A file as a module whose relative imports work, without running its package's `__init__`."""
    holder = types.ModuleType(package)
    holder.__path__ = [str(file.parent)]
    sys.modules[package] = holder
    spec = importlib.util.spec_from_file_location(f"{package}.{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(x, -1, 1) if x.ndim == 4 else x, dtype=torch.float64).contiguous()


def record(name: str, student: np.ndarray, teacher: np.ndarray, loss: Any, **more: np.ndarray) -> None:
    """The loss of torch tensors, channels first, and its gradient, channels last."""
    s, t = channels_first(student).requires_grad_(), channels_first(teacher)
    value = loss(s, t)
    value.sum().backward()
    gradient = s.grad.numpy()
    gradient = np.moveaxis(gradient, 1, -1) if gradient.ndim == 4 else gradient
    entry = {
        "student": student,
        "teacher": teacher,
        "value": value.detach().numpy().reshape(()),
        "gradient": gradient,
    }
    FOUND.update({f"{name}/{key}": np.asarray(x) for key, x in (entry | more).items()})


def logits(clones: Path) -> None:
    student, teacher = 2.0 * drawn(6, 5), 3.0 * drawn(6, 5)
    labels = RNG.integers(0, 5, 6)
    zoo = module(clones / "RepDistiller/distiller_zoo/KD.py", "zoo_kd")
    record("soft_targets", student, teacher, zoo.DistillKL(4.0))
    dkd = module(clones / "mdistiller/mdistiller/distillers/DKD.py", "mdistiller_dkd")
    record(
        "decoupled", student, teacher,
        lambda s, t: dkd.dkd_loss(s, t, torch.tensor(labels), 1.0, 8.0, 4.0), labels=labels,
    )  # fmt: skip
    standard = module(clones / "logit-standardization-KD/mdistiller/distillers/KD.py", "standard_kd")
    record("standardized", student, teacher, lambda s, t: standard.kd_loss(s, t, 2.0, True))
    dist = module(clones / "DIST_KD/segmentation/losses/dist_kd.py", "dist_kd")
    record("correlation", student, teacher, dist.DIST(2.0, 0.5))


def features(clones: Path) -> None:
    zoo = clones / "RepDistiller/distiller_zoo"
    record("hint", drawn(3, 2, 2, 4), drawn(3, 2, 2, 4), module(zoo / "FitNet.py", "zoo_hint").HintLoss())
    attention = module(zoo / "AT.py", "zoo_at").Attention(2)
    record("attention_transfer", drawn(3, 6, 6, 4), drawn(3, 4, 4, 5), lambda s, t: attention([s], [t])[0])
    flow = module(zoo / "FSP.py", "zoo_fsp").FSP([(3, 4), (3, 4)], [(3, 4), (3, 4)])
    pool = torch.nn.functional.adaptive_avg_pool2d
    record(
        "flow", drawn(3, 6, 6, 4), drawn(3, 6, 6, 4), lambda s, t: flow([s, pool(s, 4)], [t, pool(t, 4)])[0]
    )
    similarity = module(zoo / "SP.py", "zoo_sp").Similarity()
    record("similarity", drawn(5, 2, 2, 4), drawn(5, 3, 3, 2), lambda s, t: similarity([s], [t])[0])
    rkd = module(zoo / "RKD.py", "zoo_rkd")
    student, teacher = drawn(5, 4), drawn(5, 7)
    record("relational_distance", student, teacher, rkd.RKDLoss(1, 0))
    record("relational_angle", student, teacher, rkd.RKDLoss(0, 1))


def contrastive(clones: Path) -> None:
    memory = module(clones / "RepDistiller/crd/memory.py", "crd")
    criterion = module(clones / "RepDistiller/crd/criterion.py", "crd")
    torch.Tensor.cuda = lambda self: self  # Its memory asks for a GPU.
    torch.manual_seed(0)
    size, width, count = 9, 4, 3
    buffer = memory.ContrastMemory(width, size, count, T=0.5, momentum=0.5)
    kept = [drawn(size, width), drawn(size, width)]
    buffer.memory_v1, buffer.memory_v2 = (torch.tensor(x, dtype=torch.float64) for x in kept)
    examples, negatives = np.array([4, 0, 7]), RNG.integers(0, size, (3, count))
    places = torch.tensor(np.concatenate([examples[:, None], negatives], 1))
    likelihood = criterion.ContrastLoss(size)

    def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        unit = [x / x.norm(dim=1, keepdim=True) for x in (s, t)]
        return sum(map(likelihood, buffer(*unit, torch.tensor(examples), places)))

    more = {"memory_student": kept[0].copy(), "memory_teacher": kept[1].copy(), "negatives": negatives}
    record("contrastive", drawn(3, width), drawn(3, width), loss, examples=examples, **more)
    after = {"after_student": buffer.memory_v1, "after_teacher": buffer.memory_v2}
    FOUND.update({f"contrastive/{key}": x.detach().numpy() for key, x in after.items()})


def review(clones: Path) -> None:
    found = module(clones / "mdistiller/mdistiller/distillers/ReviewKD.py", "mdistiller_review")
    torch.manual_seed(0)
    levels = [
        (4, 8, 5, 8),
        (6, 4, 7, 3),
        (8, 1, 9, 1),
    ]  # Channels and positions, of the student and the teacher.
    width = 3
    stages = [found.ABF(a, width, b, i < 2).double() for i, (a, _, b, _) in enumerate(levels)]
    student = [drawn(4, p, p, c) for c, p, _, _ in levels]
    teacher = [drawn(4, p, p, c) for _, _, c, p in levels]
    own = [channels_first(x).requires_grad_() for x in student]
    deeper, results = None, []
    for x, stage, (_, p, _, q) in reversed(list(zip(own, stages, levels, strict=True))):
        result, deeper = stage(x, deeper, p, q)
        results.insert(0, result)
    value = found.hcl_loss(results, [channels_first(x) for x in teacher])
    value.backward()
    for i, stage in enumerate(stages):
        gradient = np.moveaxis(own[i].grad.numpy(), 1, -1)
        arrays = {"student": student[i], "teacher": teacher[i], "gradient": gradient}
        convolutions = {"narrow": stage.conv1[0], "widen": stage.conv2[0]}
        if stage.att_conv is not None:
            convolutions["attention"] = stage.att_conv[0]
            arrays["attention_bias"] = stage.att_conv[0].bias.detach().numpy()
        for name, convolution in convolutions.items():
            arrays[name] = convolution.weight.detach().numpy().transpose(2, 3, 1, 0)
        FOUND.update({f"review/{i}/{key}": x for key, x in arrays.items()})
    FOUND["review/value"] = value.detach().numpy()


def main(clones: Path, target: Path) -> None:
    """Asks every implementation, and writes what they say."""
    for part in (logits, features, contrastive, review):
        part(clones)
    heads = [
        (p.name, subprocess.check_output(["git", "-C", p, "rev-parse", "HEAD"], text=True))
        for p in clones.iterdir()
    ]
    FOUND["versions"] = np.array(
        [f"{name} {head.strip()}" for name, head in sorted(heads)] + [f"torch {torch.__version__}"]
    )
    np.savez_compressed(target, **FOUND)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
