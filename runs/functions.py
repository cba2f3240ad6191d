"""Names of the functions that cells run. Run folders store these names, so they stay valid when modules move."""

import importlib
from typing import Any

_FUNCTIONS = {
    "fit": "voxelwave.apps.nested_cv.fit:fit_cell",
    "refit": "voxelwave.apps.nested_cv.fit:refit_cell",
    "likelihood": "voxelwave.apps.nested_cv.fit:fit_likelihood_cell",
    "measure": "voxelwave.apps.nested_cv.measure:measure_cell",
    "restoration-methods": "voxelwave.apps.restoration.cross_validate:measure_of",
    "registration-methods": "voxelwave.apps.registration.cross_validate:measure_of",
    "baselines": "voxelwave.apps.scanpath.cross_validate:baseline_cell",
    "case": "voxelwave.apps.batch.task:run_case",
    "eeg-models": "voxelwave.eeg.estimators:from_plan",
    "scanpath-models": "voxelwave.scanpath.estimators:from_plan",
    "align": "voxelwave.apps.registration.work:batch_work",
    "restore": "voxelwave.apps.restoration.work:batch_work",
    "diagnose": "voxelwave.apps.eeg.work:batch_work",
}

# the module paths that version 0.1.0 wrote into cell.json and plan.json instead
_NAMES_OF_0_1_0 = {
    "voxelwave.apps.nested_cv:fit_cell": "fit",
    "voxelwave.apps.nested_cv:fit_likelihood_cell": "likelihood",
    "voxelwave.apps.scanpath_cross_validation:baseline_cell": "baselines",
    "voxelwave.apps.batch:run_case": "case",
    "voxelwave.eeg.estimators:from_plan": "eeg-models",
    "voxelwave.scanpath.estimators:from_plan": "scanpath-models",
}


def load_function(name: str) -> Any:
    """Import a function by its name above, or by "module:function".

    Example:
        >>> load_function("math:sqrt")(9.0)
        3.0
    """
    module, _, function = _FUNCTIONS.get(name, name).partition(":")
    return getattr(importlib.import_module(module), function)


def with_present_names(content: Any) -> Any:
    """Replace the module paths that version 0.1.0 wrote as "function" and "factory", at any depth of a JSON value.

    Example:
        >>> with_present_names({"function": "voxelwave.apps.nested_cv:fit_cell", "fold": 0})
        {'function': 'fit', 'fold': 0}
    """
    if isinstance(content, list):
        return [with_present_names(item) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        key: _NAMES_OF_0_1_0.get(value, value)
        if key in ("function", "factory") and isinstance(value, str)
        else with_present_names(value)
        for key, value in content.items()
    }
