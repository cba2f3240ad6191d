"""`voxelwave eeg train` and `diagnose`: train a network on a study, and use one on recordings."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from ..eeg.networks import ModelCard
    from .batch_find import Case

LAST, CURVE, DIAGNOSIS = "last.ckpt", "curve.csv", "diagnosis.json"
NO_DEVICE = (
    "Research software and no medical device: a probability says how alike a recording is to those of a training "
    "group, and nothing about a person's health."
)
# torch, mne and their friends load in the functions, so that --help answers at once


def train(
    study: Path,
    *,
    output: Path,
    network: Literal["adhdeepnet", "eegnet", "shallow"] = "adhdeepnet",
    settings: dict[str, Any] | None = None,
    windows: dict[str, Any] | None = None,
    positive: str | None = None,
    validation_share: float = 0.2,
    epochs: int = 100,
    patience: int = 15,
    reduce_patience: int = 10,
    batch: int = 64,
    class_weights: bool = True,
    monitor: Literal["validation_loss", "validation_accuracy"] = "validation_loss",
    cache: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Train one network on the recordings of STUDY, for use with `diagnose` and `explain`.

    A share of the subjects, of both classes alike, is kept for validation: it decides when to stop, which epoch is
    kept, and the threshold. So its figures flatter; for honest ones run `voxelwave eeg nested-cv`. OUTPUT receives
    model.safetensors and model.json, curve.csv (a row per epoch), last.ckpt and record.json.

    Args:
        study: subjects.tsv or its folder, a BIDS folder, or a folder with one sub-folder or .zip per class.
        output: the folder to write into.
        network: adhdeepnet, eegnet or shallow.
        settings: of the training (lr, augmentation such as 1,2x0.1) and of the network (for adhdeepnet F1, D,
            kernel_length, se_nodes, max_norm, drop_prob).
        windows: how recordings are cut: seconds, overlap, sfreq, band, reference, channels, scaling and so on.
        positive: the class that is diagnosed; default the one not called control, healthy or normal.
        validation_share: of the subjects.
        epochs: at most.
        patience: epochs without a better validation loss until it stops.
        reduce_patience: the same until the learning rate halves.
        batch: windows per step.
        class_weights: weigh the classes by their windows.
        monitor: what the kept epoch has best.
        cache: a folder for cut windows, to start faster the next time.
        resume: go on from last.ckpt of the output folder.
        seed: of the split, parameters, order, noise and dropout.
        threads: of the CPU; default all.
        device: where it trains; auto takes a GPU if there is one.
    """
    import logging

    import numpy as np
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

    from ..eeg.estimators import balanced_weights, network_arguments, parse_augmentation, tensors_of
    from ..eeg.fast_layers import keep_freed_memory
    from ..eeg.module import BestEpoch, EEGModule, WindowData, predict_windows
    from ..eeg.networks import CARD, WEIGHTS, ModelCard, save_network
    from ..eeg.study import read_study
    from ..eeg.windows import Scaler, WindowOptions, load_windows
    from .checks import at_least, check_resume
    from .compute import choose_device, use_threads
    from .record import write_record
    from .statistics import choose_threshold

    at_least(1, epochs=epochs, patience=patience, reduce_patience=reduce_patience, threads=threads)
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(device)]
    checkpoint = output / LAST
    check_resume(checkpoint, resume)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # advertisements and hardware lists
    use_threads(threads)
    keep_freed_memory()
    data = load_windows(read_study(study, positive), WindowOptions.of(windows), cache)
    for note in data.notes:
        print(f"note: {note}")
    subjects = validation_split(data.labels, validation_share, seed)
    rows = [data.rows(part) for part in subjects]
    scaler = Scaler.fit(data.x[rows[0]]) if data.options.scaling == "fold" else None
    chosen = settings or {}
    sigmas, magnifications = parse_augmentation(chosen.get("augmentation", "none"))
    arguments = network_arguments(data, chosen)
    seed_everything(seed, verbose=False)
    module = EEGModule(
        network=network,
        arguments=arguments,
        lr=chosen.get("lr", 1e-3),
        class_weights=balanced_weights(data.labels[data.subject[rows[0]]]) if class_weights else None,
        sigmas=sigmas,
        magnifications=magnifications,
        reduce_patience=reduce_patience,
        seed=seed,
    )
    training, validation = (
        WindowData(*tensors_of(data, part, scaler), levels=levels)
        for part, levels in zip(rows, (module.levels, [0.0]), strict=True)
    )
    parameters = sum(p.numel() for p in module.network.parameters())
    print(
        f"{len(subjects[0])} training subjects with {len(rows[0])} windows, {len(subjects[1])} for validation with "
        f"{len(rows[1])}; {network} with {parameters} parameters"
    )
    best = BestEpoch(monitor, patience=patience)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs,
            logger=False,
            callbacks=[
                best,
                ModelCheckpoint(output, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
                RichProgressBar(),
            ],
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loaders = training.loader(batch, shuffle=module.order), validation.loader(128)
        trainer.fit(module, *loaders, ckpt_path=checkpoint if resume else None, weights_only=True)
    best.restore(module)
    _write_table(output / CURVE, best.curve)
    label = data.labels[np.asarray(subjects[1])]
    probability = predict_windows(module.network.cpu(), validation.x)
    scores = np.array([probability[validation.subject.numpy() == one].mean() for one in subjects[1]])
    threshold = choose_threshold(label, scores)
    card = ModelCard(
        network=network,
        arguments=arguments,
        classes=data.classes,
        channels=data.channels,
        sfreq=data.sfreq,
        windows=asdict(data.options),
        unit=data.unit,
        scaler=None if scaler is None else {"mean": scaler.mean.tolist(), "sd": scaler.sd.tolist()},
        threshold=threshold,
        subjects=data.subjects,
        notes={
            "settings": chosen,
            "seed": seed,
            "epochs": best.epoch,
            "validation": [data.subjects[i] for i in subjects[1]],
        },
    )
    save_network(output, module.network, card)
    figures = best.curve[best.epoch - 1]
    write_record(
        output / "record.json",
        inputs={},
        options={"study": study, "network": network, "settings": chosen, "windows": asdict(data.options), "seed": seed}
        | {"epochs": epochs, "patience": patience, "batch": batch, "monitor": monitor, "class_weights": class_weights},
        metrics={**figures, "threshold": threshold},
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
    print(
        f"wrote {output}/: {WEIGHTS}, {CARD}, {CURVE}; epoch {best.epoch} of {len(best.curve)} kept, AUC of "
        f"{len(label)} validation subjects {figures['validation_auc']:.2f} (they chose it, so it flatters)"
    )


def validation_split(labels: Any, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and validation subjects, both classes alike.

    Example:
        >>> [len(part) for part in validation_split([0, 1] * 10, 0.2, seed=0)]
        [16, 4]
    """
    import numpy as np
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {share}")
    everyone = np.arange(len(labels))
    try:
        train_part, validation = train_test_split(everyone, test_size=share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(f"{len(everyone)} subjects cannot be split with validation_share {share}: {error}") from None
    return sorted(train_part.tolist()), sorted(validation.tolist())


def diagnose(
    *,
    input: Path,
    output: Path,
    weights: Path,
    threshold: float | None = None,
    abstain: float = 0.1,
    threads: int | None = None,
    dry_run: bool = False,
    include: str | None = None,
    jobs: int | None = None,
    part: str | None = None,
    cluster: str | None = None,
    slurm: dict[str, Any] | None = None,
    keep_identifiers: bool = False,
) -> int:
    """Give the probability of the diagnosed class for one recording, or for each below a folder.

    Recordings are cut and scaled as those that the weights were trained on. OUTPUT receives subjects.csv (a row per
    recording: mean probability of its windows, and "uncertain" where that is within --abstain of the threshold),
    windows.csv and diagnosis.json; for a folder also the last two for each recording in a folder of its own,
    manifest.jsonl and index.html. There a recording that is broken or does not fit the weights (channels, rate, length)
    is recorded with its reason and the others go on (exit code 3); the same command again does what is missing or
    changed. This is research software and no medical device.

    Args:
        input: a recording, or a folder of recordings.
        output: the folder to write to.
        weights: model.safetensors with model.json beside it.
        threshold: probability from which a recording counts as positive; default that of the weights.
        abstain: half the width of the band around the threshold where no decision is given.
        threads: of the CPU, per job; default all.
        dry_run: of a folder: only show what would be done.
        include: of a folder: only what these globs fit, such as "sub-01*,*rest*": file name or path.
        jobs: of a folder: processes on this machine, or recordings under way at once on a cluster.
        part: of a folder: i/n, for the i-th of n jobs of an array.
        cluster: dask://HOST:PORT, slurm, or slurm-local to try it out.
        slurm: submitit's parameters, such as slurm_partition and mem_gb.
        keep_identifiers: of a folder: name recordings by their files, and show and record these names.
    """

    from ..eeg.recording import SUFFIXES
    from .batch import run_batch
    from .batch_find import choose, find_cases
    from .checks import at_least
    from .compute import use_threads

    at_least(1, threads=threads, jobs=jobs)
    if not input.exists():
        raise FileNotFoundError(f"no recording or folder at {input}")
    use_threads(threads)
    work = batch_work(weights=str(weights), threshold=threshold, abstain=abstain)
    if input.is_file():
        return _diagnose_single(input, output, work)
    found = find_cases(input, ("eeg",), output=output, suffixes={"eeg": SUFFIXES}, keep_identifiers=keep_identifiers)
    if not found.cases:
        raise FileNotFoundError(f"{input} holds no recording ({', '.join(SUFFIXES)})")
    options = {"threshold": work.threshold, "abstain": abstain}
    return run_batch(
        choose(found.cases, include=include),
        {"factory": f"{__name__}:batch_work", "arguments": {"weights": str(weights.resolve()), **options}},
        output,
        root=input,
        options=options,
        weights=weights,
        jobs=jobs,
        cluster=cluster,
        slurm=slurm,
        part=part,
        dry_run=dry_run,
        threads=threads,
        keep_identifiers=keep_identifiers,
        notes=found.notes,
        finish=work.write_all,
    )


@dataclass(frozen=True)
class Diagnosis:
    """A trained network in memory and how its probabilities are read.

    Args:
        network: of the weights.
        card: what it was trained on.
        weights: their file.
        threshold: probability from which a recording counts as positive.
        abstain: half the width of the band without a decision.
    """

    network: "nn.Module"
    card: "ModelCard"
    weights: Path
    threshold: float
    abstain: float

    def __call__(self, case: "Case", folder: Path) -> dict[str, Any]:
        """Diagnose one recording of a batch."""
        row, windows = self.diagnose(case.inputs[0])
        for line in (row, *windows):
            line["subject"] = case.identifier
            del line["file"]
        _write_table(folder / "windows.csv", windows)
        read_as = {"class": self.card.classes[1], "threshold": self.threshold}
        _write_json(folder / DIAGNOSIS, {"note": NO_DEVICE, **read_as, **row, "window": windows})
        metrics = {name: row[name] for name in ("probability", "decision", "windows", "windows_above", "seconds")}
        return {"metrics": metrics, "warnings": [note for note in row["notes"].split("; ") if note]}

    def diagnose(self, file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A row about the recording, and one about each window."""
        return _diagnose_one(file, self.network, self.card, self.threshold, self.abstain)

    def write_all(self, output: Path) -> None:
        """The tables of all recordings of a batch, from their folders."""
        from .batch import read_manifest

        rows, window_rows, failed = [], [], []
        for name, entry in sorted(read_manifest(output).items()):
            if entry["status"] != "done":
                failed.append({"subject": name, "reason": entry["error"]})
                continue
            row = json.loads((output / name / DIAGNOSIS).read_text())
            file = entry["inputs"][0]["path"]
            window_rows += [{"subject": w.pop("subject"), "file": file, **w} for w in row.pop("window")]
            for key in ("note", "class", "threshold"):
                del row[key]
            rows.append({"subject": row.pop("subject"), "file": file, **row})
        self.write(output, rows, window_rows, failed)

    def write(
        self,
        output: Path,
        rows: list[dict[str, Any]],
        window_rows: list[dict[str, Any]],
        failed: list[dict[str, str]],
    ) -> None:
        """subjects.csv, windows.csv and diagnosis.json; the rows on the screen too."""
        _write_diagnosis(output, rows, window_rows, failed, self)
        for row in rows:
            words = f"{self.card.classes[1]} {row['probability']:.3f} ({row['decision']}; {row['windows']} windows)"
            print(f"{row['subject']}: {words}")
        print(f"{NO_DEVICE}\nwrote {output}/: subjects.csv, windows.csv, {DIAGNOSIS}; {len(failed)} recordings failed")


def batch_work(*, weights: str, threshold: float | None, abstain: float) -> Diagnosis:
    """A trained network made ready, from plain values."""
    from ..eeg.networks import load_network

    network, card = load_network(Path(weights))
    threshold = card.threshold if threshold is None else threshold
    if not 0 <= threshold <= 1 or not 0 <= abstain <= 1:
        raise ValueError(f"threshold and abstain must lie between 0 and 1, got {threshold} and {abstain}")
    return Diagnosis(network, card, Path(weights), threshold, abstain)


def _diagnose_single(file: Path, output: Path, work: Diagnosis) -> int:
    try:
        row, windows = work.diagnose(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}") from error
    work.write(output, [row], windows, [])
    return 0


def _diagnose_one(
    file: Path, network: "nn.Module", card: "ModelCard", threshold: float, abstain: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..eeg.module import predict_windows
    from ..eeg.windows import cut, scaled

    options = card.window_options
    recording = options.read(file)
    if recording.file_sfreq < card.sfreq:
        raise ValueError(
            f"the weights need at least {card.sfreq:g} Hz, got {recording.file_sfreq:g} Hz, which holds no fast EEG"
        )
    if options.scaling in ("none", "fold") and recording.unit != card.unit:
        raise ValueError(f"the weights need recordings in {card.unit} as those of the training, got {recording.unit}")
    x, start = cut(recording, options)
    if len(x) == 0:
        raise ValueError(f"no window of {options.seconds:g} s free of bad spans in {recording.seconds:.1f} s")
    x = scaled(x, recording, options.scaling)
    scaler = card.fitted_scaler
    probability = predict_windows(network, x if scaler is None else scaler.apply(x))
    mean = float(probability.mean())
    notes = list(recording.notes)
    if {file.stem, file.stem.removesuffix("_raw"), file.stem.split("_")[0]} & set(card.subjects):
        notes.append("these weights were trained on a subject of this name, so its probability flatters")
    negative, positive = card.classes
    decision = positive if mean >= threshold else negative
    row = {
        "subject": file.stem,
        "file": str(file),
        "probability": mean,
        "decision": "uncertain" if abs(mean - threshold) < abstain else decision,
        "windows": len(x),
        "windows_above": int((probability >= threshold).sum()),
        "sd_over_windows": float(probability.std()),
        "seconds": round(recording.seconds, 3),
        "notes": "; ".join(notes),
    }
    return row, [
        {
            "subject": file.stem,
            "file": str(file),
            "start_s": round(float(first) / recording.sfreq, 3),
            "probability": float(value),
        }
        for first, value in zip(start, probability, strict=True)
    ]


def _write_diagnosis(
    output: Path,
    rows: list[dict[str, Any]],
    window_rows: list[dict[str, Any]],
    failed: list[dict[str, str]],
    work: Diagnosis,
) -> None:
    _write_table(output / "subjects.csv", rows)
    _write_table(output / "windows.csv", window_rows)
    content = {
        "note": NO_DEVICE,
        "positive": work.card.classes[1],
        "negative": work.card.classes[0],
        "threshold": work.threshold,
        "uncertain": [max(0.0, work.threshold - work.abstain), min(1.0, work.threshold + work.abstain)],
        "weights": str(work.weights),
        "network": work.card.network,
        "subjects": [row | {"window": [w for w in window_rows if w["subject"] == row["subject"]]} for row in rows],
        "failed": failed,
    }
    _write_json(output / DIAGNOSIS, content)


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    from ..volumes.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        if rows:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from ..volumes.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
