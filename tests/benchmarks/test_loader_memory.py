import torch

from resdet.benchmarks.data import private_growth


def test_a_forked_reader_of_lists_copies_pages():
    table = [[float(i)] for i in range(200_000)]  # each visit writes a reference count, and so copies its page
    block = torch.zeros(200_000).numpy()
    lists = private_growth(lambda: [row[0] for row in table] and None)
    arrays = private_growth(lambda: float(block.sum()) and None)
    assert lists > arrays + 4
