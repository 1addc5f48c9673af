"""A program that ends while it still holds the iterator of a loader with workers; for tests."""

from tiny import Pairs

if __name__ == "__main__":
    data = Pairs(num_workers=2)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    print("done", flush=True)
