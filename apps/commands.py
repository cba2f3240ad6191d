"""The table of the commands: each verb with a class of options and a function that is imported when needed."""

from typing import NamedTuple


class Verb(NamedTuple):
    """One verb: "module:class" of its options and "module:function" of its work, below this folder; and a summary.

    `extras` are those of `runs.extras` that the work needs.
    """

    options: str
    work: str
    summary: str
    extras: tuple[str, ...] = ()


COMMANDS: dict[str, dict[str, Verb]] = {
    "registration": {
        "register": Verb(
            "registration.options:Register", "registration.register:register", "align one scan to another"
        ),
        "apply": Verb(
            "registration.options:Apply",
            "registration.apply:apply",
            "apply a saved transform to images, label maps or points",
        ),
        "transform": Verb(
            "registration.options:Transform",
            "registration.transform:transform",
            "describe or convert a transform, or write its Jacobian map",
        ),
        "train": Verb(
            "registration.options:Train",
            "registration.train:train",
            "train NestedMorph on pairs of scans",
            extras=("train",),
        ),
        "train-tissues": Verb(
            "registration.options:TrainTissues",
            "registration.train_tissues:train_tissues",
            "train the network that brings scans of two contrasts into one",
            extras=("train",),
        ),
        "evaluate": Verb(
            "registration.options:Evaluate",
            "registration.evaluate:evaluate",
            "register a list of pairs and measure the accuracy",
        ),
        "cross-validate": Verb(
            "registration.options:CrossValidate",
            "registration.cross_validate:cross_validate",
            "measure held-out pairs, with settings chosen on pairs of other people",
        ),
        "export": Verb(
            "registration.options:Export", "registration.export:export", "write NestedMorph as an ONNX file"
        ),
        "benchmark": Verb(
            "registration.options:Benchmark",
            "registration.benchmark:benchmark",
            "measure accuracy, time and memory, compared with ANTs SyN",
            extras=("train", "registration"),
        ),
    },
    "restoration": {
        "restore": Verb(
            "restoration.options:Restore",
            "restoration.restore:restore",
            "denoise, super-resolve, deblur: images, volumes, DICOM series",
        ),
        "train": Verb(
            "restoration.options:Train",
            "restoration.train:train",
            "train a network on a folder of images or on real pairs",
            extras=("train",),
        ),
        "evaluate": Verb(
            "restoration.options:Evaluate",
            "restoration.evaluate:evaluate",
            "measure PSNR and SSIM, compared with classical methods",
        ),
        "cross-validate": Verb(
            "restoration.options:CrossValidate",
            "restoration.cross_validate:cross_validate",
            "compare methods on held-out images, with settings chosen on the other images",
        ),
        "export": Verb(
            "restoration.options:Export",
            "restoration.export:export",
            "write weights from a training checkpoint, or a network as an ONNX file",
            extras=("train",),
        ),
        "extract": Verb(
            "restoration.options:Extract", "restoration.extract:extract", "write one size of weights with several sizes"
        ),
        "benchmark": Verb(
            "restoration.options:Benchmark",
            "restoration.benchmark:benchmark",
            "measure time, memory and PSNR, compared with simpler methods",
        ),
        "images": Verb(
            "restoration.options:Images", "restoration.images:images", "gather openly licensed images for training"
        ),
    },
    "eeg": {
        "train": Verb(
            "eeg.options:Train", "eeg.train:train", "train one network on the recordings of a study", extras=("eeg",)
        ),
        "diagnose": Verb(
            "eeg.options:Diagnose", "eeg.diagnose:diagnose", "estimate the probability of the diagnosed class"
        ),
        "explain": Verb(
            "eeg.nested_options:Explain",
            "eeg.explain:explain",
            "show which channels and bands a network relies on",
            extras=("eeg",),
        ),
        "nested-cv": Verb(
            "eeg.nested_options:NestedCV",
            "eeg.nested_cv:nested_cv",
            "evaluate networks and simple models by nested cross-validation, with a report",
            extras=("eeg",),
        ),
        "test": Verb(
            "eeg.nested_options:LockedTest",
            "eeg.locked_test:locked_test",
            "test the final model of a nested run once, on a study that it never saw",
            extras=("eeg",),
        ),
        "audit": Verb(
            "eeg.options:Audit", "eeg.audit:audit", "check a study, and a split of it, for leakage and confounds"
        ),
        "export": Verb("eeg.options:Export", "eeg.export:export", "write a network as an ONNX file"),
        "benchmark": Verb(
            "eeg.options:Benchmark",
            "eeg.benchmark:benchmark",
            "measure the training speed of ADHDeepNet and other networks",
            extras=("eeg",),
        ),
        "planted": Verb(
            "eeg.nested_options:Planted",
            "eeg.planted:planted",
            "test the pipeline on synthetic subjects with a known difference",
            extras=("eeg",),
        ),
    },
    "scanpath": {
        "train": Verb("scanpath.options:Train", "scanpath.train:train", "train OAT on scanpaths", extras=("train",)),
        "predict": Verb(
            "scanpath.options:Predict",
            "scanpath.predict:predict",
            "predict the order in which people look at the objects of a scene",
        ),
        "import": Verb(
            "scanpath.options:Import",
            "scanpath.import_fixations:import_fixations",
            "turn the files of an eye tracker into scanpaths",
        ),
        "evaluate": Verb(
            "scanpath.options:Evaluate",
            "scanpath.evaluate:evaluate",
            "compare a network with simpler models and with people",
            extras=("train",),
        ),
        "cross-validate": Verb(
            "scanpath.options:CrossValidate",
            "scanpath.cross_validate:cross_validate",
            "evaluate by cross-validation over layouts, people or targets",
            extras=("train",),
        ),
        "export": Verb("scanpath.options:Export", "scanpath.export:export", "write OAT as an ONNX file"),
        "benchmark": Verb(
            "scanpath.options:Benchmark",
            "scanpath.benchmark:benchmark",
            "measure the speed of decoding and how well a known observer is learnt",
            extras=("train",),
        ),
    },
    "attention": {
        "explain": Verb(
            "attention.options:Explain",
            "attention.explain:explain",
            "show what the heads of a trained network do, on scenes or recordings",
        ),
        "tune": Verb(
            "attention.options:Tune",
            "attention.tune:tune_network",
            "try changes of attention that need no training, with one report on held-out layouts",
        ),
        "tasks": Verb(
            "attention.options:Tasks",
            "attention.tasks:tasks",
            "train small models on known tasks and show what their attention learns",
        ),
    },
    "batch": {
        "page": Verb(
            "batch.options:Page", "batch.page:page", "write the page of a folder of results again, from its manifest"
        ),
        "benchmark": Verb(
            "bench.options:BatchBenchmark",
            "bench.batch:benchmark",
            "measure the cost of a run over many series, and its recovery from kills",
        ),
    },
    "bench": {
        "all": Verb("bench.options:Speed", "bench.speed:everything", "measure the speed of every field beside peers"),
        "restoration": Verb("bench.options:Speed", "bench.speed:restoration", "measure the speed of restoration"),
        "registration": Verb("bench.options:Speed", "bench.speed:registration", "measure the speed of registration"),
        "eeg": Verb("bench.options:Speed", "bench.speed:eeg", "measure the speed of training on EEG"),
        "scanpath": Verb("bench.options:Speed", "bench.speed:scanpath", "measure the speed of decoding scanpaths"),
        "start": Verb(
            "bench.options:Speed",
            "bench.speed:start",
            "measure the start of commands, reading, and batches of small files",
        ),
        "attention": Verb(
            "bench.options:Attention", "bench.attention:attention", "measure costs and scores of attention mechanisms"
        ),
        "keep": Verb(
            "bench.options:Keep", "bench.accuracy:keep", "keep the figures of a measurement for the page of accuracy"
        ),
        "accuracy": Verb(
            "bench.options:Accuracy", "bench.accuracy:accuracy", "write the page of accuracy from the kept figures"
        ),
        "kernels": Verb(
            "bench.options:Kernels",
            "bench.kernels:kernels",
            "measure speed and accuracy of the selective scan, compared with other implementations",
        ),
    },
}
TOP_LEVEL: dict[str, Verb] = {
    "demo": Verb(
        "demo.options:Demo",
        "demo.demo:demo",
        "align brain scans, denoise a slice, diagnose EEG and predict a scanpath, all from included data",
    ),
    "weights": Verb(
        "weights.options:Weights", "weights.weights:weights", "list the weights that --weights finds by name"
    ),
    "doctor": Verb(
        "tools.options:Doctor", "tools.doctor:doctor", "show versions, kernels, GPU, disk, and what each field lacks"
    ),
    "info": Verb("tools.options:Info", "tools.info:info", "describe a file or folder, and what can be done with it"),
    "completion": Verb(
        "tools.options:Completion", "tools.completion:completion", "print the completion script of a shell"
    ),
    "report": Verb(
        "report_options:Report", "make_report:report", "write the report of a finished run again, as one HTML file"
    ),
}
