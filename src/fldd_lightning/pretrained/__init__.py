"""Trained models as folders: a configuration, weights and a model card; and the two that come with this package."""

from .card import check_options, model_card
from .folder import (
    CONFIG,
    WEIGHTS,
    check_own,
    find_folder,
    load_pretrained,
    read_folder,
    shipped,
    write_folder,
    writing_to_hub,
)

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "check_options",
    "check_own",
    "find_folder",
    "load_pretrained",
    "model_card",
    "read_folder",
    "shipped",
    "write_folder",
    "writing_to_hub",
]
