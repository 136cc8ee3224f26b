"""Our exact ranks against torchmetrics' retrieval metrics and scikit-learn's top-k accuracy."""

import numpy as np
import torch
from sklearn.metrics import top_k_accuracy_score
from torchmetrics.functional.retrieval import retrieval_hit_rate

from coreclip.training.ranking import best_ranks, recall_at


def test_recall_is_torchmetrics_hit_rate_with_several_right_items():
    generator = torch.Generator().manual_seed(3)
    queries, items = torch.randn(25, 6, generator=generator), torch.randn(60, 6, generator=generator)
    is_right = torch.rand(25, 60, generator=generator) < 0.05
    is_right[torch.arange(25), torch.arange(25)] = True
    ranks = best_ranks(queries, items, is_right.nonzero().T.numpy())
    scores = queries @ items.T
    for k in (1, 5, 10):
        expected = np.mean([float(retrieval_hit_rate(scores[i], is_right[i], top_k=k)) for i in range(25)])
        assert recall_at(ranks, k) == expected


def test_recall_of_one_right_item_is_top_k_accuracy():
    scores_of = torch.Generator().manual_seed(4)
    queries, items = torch.randn(40, 5, generator=scores_of), torch.randn(40, 5, generator=scores_of)
    ranks = best_ranks(queries, items, np.stack([np.arange(40), np.arange(40)]))
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(np.arange(40), (queries @ items.T).numpy(), k=k, labels=np.arange(40))
        assert recall_at(ranks, k) == expected
