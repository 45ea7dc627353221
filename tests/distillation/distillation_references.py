"""The losses once more, in float64 and NumPy, row by row as the papers write them."""

from __future__ import annotations

import itertools
import math

import numpy as np


def numeric_gradient(function, x, step=1e-5):
    """Central differences, in float64."""
    x = np.asarray(x, np.float64)
    found = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[place] += step
        low[place] -= step
        found[place] = (function(high) - function(low)) / (2 * step)
    return found


def softmax(z, temperature=1.0):
    e = np.exp(z / temperature - np.max(z / temperature, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    """KL(p ‖ q) of two lists of probabilities."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def rows(*arrays):
    return zip(*(np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in arrays), strict=True)


def soft_targets(student, teacher, temperature):
    losses = [kl(softmax(t, temperature), softmax(s, temperature)) for s, t in rows(student, teacher)]
    return temperature**2 * np.mean(losses)


def decoupled(student, teacher, labels, temperature, alpha, beta):
    losses = []
    for (s, t), y in zip(rows(student, teacher), labels.reshape(-1), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        target = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        others = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        losses.append(alpha * target + beta * others)
    return temperature**2 * np.mean(losses)


def standardized(student, teacher, temperature):
    def z_score(z):
        z = np.asarray(z, np.float64)
        return (z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True)

    return soft_targets(z_score(student), z_score(teacher), temperature)


def correlation(student, teacher, inter, intra, temperature):
    p, q = (
        softmax(np.asarray(z, np.float64).reshape(-1, z.shape[-1]), temperature) for z in (teacher, student)
    )

    def distance(a, b):
        return 1 - np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])

    return temperature**2 * (inter * distance(p, q) + intra * distance(p.T, q.T))


def top_k(student, teacher, k, temperature):
    """With the mass of what is left out shared evenly by it at other temperatures."""
    losses = []
    for s, t in rows(student, teacher):
        order = np.argsort(-t, kind="stable")
        kept, rest = order[:k], order[k:]
        weights = list(np.exp(t[kept] / temperature))
        q = softmax(s, temperature)
        own = list(q[kept])
        if len(rest):
            weights.append(len(rest) * np.mean(np.exp(t[rest])) ** (1 / temperature))
            own.append(q[rest].sum())
        losses.append(kl(np.array(weights) / sum(weights), own))
    return temperature**2 * np.mean(losses)


def hint(student, teacher):
    return np.mean((student - teacher) ** 2)


def attention_transfer(student, teacher, power):
    def maps(x):
        a = (np.abs(x) ** power).sum(-1).reshape(len(x), -1)
        return a / np.sqrt((a**2).sum(1, keepdims=True))

    return np.mean((maps(student) - maps(teacher)) ** 2)


def flow(student, teacher):
    def matrix(first, second):
        positions = list(np.ndindex(first.shape[1:-1]))
        return sum(
            first[(slice(None), *p)][:, :, None] * second[(slice(None), *p)][:, None] for p in positions
        ) / len(positions)

    return np.mean((matrix(*student) - matrix(*teacher)) ** 2)


def similarity(student, teacher):
    def gram(x):
        x = x.reshape(len(x), -1)
        g = x @ x.T
        return g / np.sqrt((g**2).sum(1, keepdims=True))

    return np.sum((gram(student) - gram(teacher)) ** 2) / len(student) ** 2


def huber(d):
    return d * d / 2 if abs(d) < 1 else abs(d) - 0.5


def relational_distance(student, teacher):
    def psi(x):
        x = x.reshape(len(x), -1)
        far = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return far / far[far > 0].mean()

    a, b = psi(student), psi(teacher)
    return np.mean([huber(d) for d in (a - b).ravel()])


def relational_angle(student, teacher):
    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return 0.0 if j in (i, k) else a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    student, teacher = (x.reshape(len(x), -1) for x in (student, teacher))
    triplets = itertools.product(range(len(student)), repeat=3)
    return np.mean([huber(cosine(student, *t) - cosine(teacher, *t)) for t in triplets])


def correlation_congruence(student, teacher, gamma, order):
    def kernel(x):
        x = x.reshape(len(x), -1)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        powers = range(order + 1)
        terms = [(2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in powers]
        return math.exp(-2 * gamma) * sum(terms)

    return np.sum((kernel(student) - kernel(teacher)) ** 2) / len(student) ** 2


def contrastive_side(own, positive, negatives, temperature, z):
    """One anchor's loss, of h = e / (e + N z): embeddings `(b, d)`, `(b, d)`, `(b, n, d)`."""
    own = own / np.linalg.norm(own, axis=1, keepdims=True)

    def h(a, b, n):
        e = math.exp(a @ b / temperature)
        return e / (e + n * z)

    losses = []
    for a, b, others in zip(own, positive, negatives, strict=True):
        n = len(others)
        losses.append(-math.log(h(a, b, n)) - sum(math.log(1 - h(a, x, n)) for x in others))
    return np.mean(losses)


def hierarchical_context(student, teacher):
    """Of one level whose height and width are 1 or a multiple of 4."""
    difference = student - teacher
    n, h, w, c = difference.shape
    loss, weight, total = np.mean(difference**2), 1.0, 1.0
    for size in (4, 2, 1):
        if size < h:
            weight /= 2
            total += weight
            means = difference.reshape(n, size, h // size, size, w // size, c).mean((2, 4))
            loss += weight * np.mean(means**2)
    return loss / total
