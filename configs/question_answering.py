"""Question–answer matching by MiniLM-L6-v2, 22.6 million parameters, as it is published: nothing is trained.

modelzip compress model.safetensors minilm.mz
modelzip evaluate minilm.mz --task configs.question_answering:quality --against model.safetensors
"""

from modelzip_jax.evaluation.answer_matching import matching_quality


def quality(weights):
    """Recall and reciprocal rank of 500 docstrings' first sentences among 500 rests."""
    return matching_quality(weights)
