"""`voxelwave registration evaluate`: register a list of pairs and measure each."""

from pathlib import Path
from typing import Literal


def evaluate(
    pairs: Path,
    *,
    output: Path,
    weights: Path | None = None,
    method: Literal["nestedmorph", "field", "syn"] | None = None,
    similarity: Literal["auto", "ncc", "mi", "mind"] = "auto",
    diffeomorphic: bool = False,
    baseline: bool = False,
    split: Literal["all", "train", "val", "test"] = "all",
    cache: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
) -> int:
    """Register every pair of a list and print a table: overlap of label maps, folds, time.

    OUTPUT receives evaluation.csv (a row per pair and method) and evaluation.json (mean and spread over pairs, options,
    versions). A pair that fails is named with its reason, the others go on, and the exit code is 3.

    Args:
        pairs: a list (.csv, .tsv, .json) with columns moving, fixed and, where known, moving_labels, fixed_labels,
            subject, split, contrast.
        output: the folder to write to.
        weights: a trained NestedMorph.
        method: field, nestedmorph or syn. Default: nestedmorph with weights, field without.
        similarity: as in register.
        diffeomorphic: as in register.
        baseline: also run ANTs SyN on every pair.
        split: only pairs that the list puts into this split.
        cache: a folder where affine alignments are kept and found again.
        device: where the refinement runs.
        seed: of the affine's sampling.
    """
    from .pair_table import Method, measure_pairs, print_summary, write_evaluation

    chosen = method or ("field" if weights is None else "nestedmorph")
    if (weights is None) == (chosen == "nestedmorph"):
        raise ValueError(f"--weights are needed for --method nestedmorph and only for it, got --method {chosen}")
    methods: list[Method] = [chosen, "syn"] if baseline and chosen != "syn" else [chosen]
    options = {
        "similarity": similarity,
        "diffeomorphic": diffeomorphic,
        "device": device,
        "seed": seed,
    }
    rows = measure_pairs(pairs, methods, weights=weights, split=split, cache_dir=cache, **options)
    summary = print_summary(rows)
    write_evaluation(output, rows, summary, inputs={"pairs": pairs, "weights": weights}, options=options)
    failed = sum(1 for row in rows if row["error"])
    print(f"wrote {output}/evaluation.csv and evaluation.json" + (f"; {failed} failed" if failed else ""))
    return 3 if failed else 0
