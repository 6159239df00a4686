"""Models of other programs as runs."""

from __future__ import annotations

from tercet.errors import DataError
from tercet.interop.llama2c_model import read_llama2c
from tercet.interop.llama2c_tokenizer import read_llama2c_tokenizer
from tercet.interop.stage import ImportConfig
from tercet.training.run import Run


def import_model(config: ImportConfig, run: Run) -> None:
    """Read a model and its tokenizer from llama2.c's files into a run; it serves wherever a pretrained one does.

    Raises DataError where a file is something else, or the two do not belong together.
    """
    shape, tensors = read_llama2c(config.model)
    tokenizer = read_llama2c_tokenizer(config.tokenizer)
    if tokenizer.vocab_size != shape.vocab_size:
        raise DataError(
            f"{config.tokenizer} has {tokenizer.vocab_size} ids, but {config.model} has {shape.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    tokenizer.save(run.path / "tokenizer.json")
    run.save_model_config(shape)
    run.save_checkpoint(0, {"model": tensors}, {}, keep=1)
    run.log_line(f"{shape.parameters():,} parameters read from {config.model}")
