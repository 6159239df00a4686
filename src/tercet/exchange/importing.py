"""Models of other programs as runs."""

from __future__ import annotations

from pathlib import Path

from tercet.data.readers import fingerprints
from tercet.errors import DataError
from tercet.exchange.config import ImportConfig
from tercet.model.llama2c import read_llama2c
from tercet.tokenizer.llama2c import read_llama2c_tokenizer
from tercet.training.progress import Progress
from tercet.training.run import Run


def import_model(config: ImportConfig, out: str | Path, *, progress: Progress | None = None) -> Run:
    """A run with the model and tokenizer of llama2.c's files; it serves wherever a pretrained one does.

    Raises DataError where a file is something else, or the two do not belong together.
    """
    with Run.start("import", config, out, progress=progress) as run:
        shape, tensors = read_llama2c(config.model)
        tokenizer = read_llama2c_tokenizer(config.tokenizer)
        if tokenizer.vocab_size != shape.vocab_size:
            raise DataError(
                f"{config.tokenizer} has {tokenizer.vocab_size} ids, but {config.model} has {shape.vocab_size}; "
                "give the tokenizer that the model was trained with"
            )
        run.pin_inputs(fingerprints((config.model, config.tokenizer)))
        tokenizer.save(run.path / "tokenizer.json")
        run.save_model_config(shape)
        run.save_checkpoint(0, {"model": tensors}, {}, keep=1)
        run.log_line(f"{shape.parameters():,} parameters read from {config.model}")
    return run
