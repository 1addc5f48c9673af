"""Make the folder of a model that comes with the package: weights in 16 bits, and the card with its bound.

    fldd-lightning fit --config examples/pretrained/digits.yaml
    python examples/pretrained/make.py digits best.ckpt FOLDER --budget "the best of 600 in half a minute"

and for text, with text8 from mattmahoney.net/dc/textdata:

    head -c 5000000 text8 > text8_head.txt
    fldd-lightning fit --config examples/pretrained/text.yaml --data.path text8_head.txt
    python examples/pretrained/make.py text best.ckpt FOLDER --budget "..."
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning import seed_everything
from torch.utils.data import DataLoader, Subset

from fldd_lightning import FLDD, DiscreteDataModule, load_model

MOST_EXAMPLES = 1_000  # of the test split, in which the bound is measured
DATA = {
    "digits": "the 8×8 digits of scikit-learn, binarised: 1,257 training examples (E. Alpaydin and C. Kaynak, Optical "
    "Recognition of Handwritten Digits, UCI, CC BY 4.0)",
    "text": "the first 5,000,000 characters of text8, blocks of 64, 90 % for training (M. Mahoney; text of the English "
    "Wikipedia of 3 March 2006, which was under the GFDL)",
}
COMMANDS = {
    "digits": "fldd-lightning fit --config examples/pretrained/digits.yaml",
    "text": "head -c 5000000 text8 > text8_head.txt\n"
    "fldd-lightning fit --config examples/pretrained/text.yaml --data.path text8_head.txt",
}


def bound(model: FLDD, data: DiscreteDataModule) -> dict[str, float]:
    """What testing logs, in numbers."""
    examples = data.splits["test"]
    chosen = Subset(examples, range(min(MOST_EXAMPLES, len(examples))))
    return {key: float(value) for key, value in model.evaluate(DataLoader(chosen, batch_size=100)).items()}


def main() -> None:
    """Read the options and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DATA)
    parser.add_argument("ckpt_path")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", required=True, help="steps, time and machine of the training")
    args = parser.parse_args()
    seed_everything(0)
    data = DiscreteDataModule.load_from_checkpoint(args.ckpt_path)
    model = load_model(args.ckpt_path)
    before = bound(model, data)
    model.half().save_pretrained(args.folder, model_card_kwargs={"data": DATA[args.name]})
    after = bound(FLDD.from_pretrained(args.folder), data)
    (args.folder / "README.md").unlink()  # for one with the bound of the weights that are there
    said = f"{after['nelbo']:.3f} nats per example, standard error {after['nelbo_se']:.3f}"
    if "bits_per_char" in after:
        said += f", {after['bits_per_char']:.3f} bits a character"
    print(said)
    number = min(MOST_EXAMPLES, len(data.splits["test"]))
    notes = f"""## Train it again

```
{COMMANDS[args.name]}
```

The seed is 0. The weights are averages, in 16 bits; in 32 bits the bound is {before["nelbo"]:.3f}. It is of
{number:,} examples of the test split; none of them was trained on. PyTorch {torch.__version__.partition("+")[0]}.
"""
    if args.name == "text":
        notes += "Test blocks have neighbours in the training text, so that the bound is a little too good."
    model.save_pretrained(
        args.folder,
        model_card_kwargs={
            "data": DATA[args.name],
            "bound": said,
            "budget": f"{model.trained_steps:,} optimiser steps; {args.budget}",
            "license": "apache-2.0",
            "notes": notes,
        },
    )


if __name__ == "__main__":
    main()
