"""Import of models of other programs as runs."""

from __future__ import annotations

from tercet.errors import DataError
from tercet.interop.llama2c_model import read_llama2c
from tercet.interop.llama2c_tokenizer import read_llama2c_tokenizer
from tercet.interop.stage import ImportConfig
from tercet.training.run import Run


def import_model(config: ImportConfig, run: Run) -> None:
    """Read a model and its tokenizer from files of llama2.c into a run, which is used like a pretrained one.

    Raises DataError if a file has another format, or model and tokenizer have different vocabularies.
    """
    shape, tensors = read_llama2c(config.model)
    tokenizer = read_llama2c_tokenizer(config.tokenizer)
    if tokenizer.vocab_size != shape.vocab_size:
        raise DataError(
            f"{config.tokenizer} has {tokenizer.vocab_size} ids, but {config.model} has {shape.vocab_size}; "
            "give the --tokenizer that the model was trained with"
        )
    tokenizer.save(run.path / "tokenizer.json")
    run.save_model_config(shape)
    run.save_checkpoint(0, {"model": tensors}, {}, keep=1)
    run.log_line(f"{shape.parameters():,} parameters read from {config.model}")
