"""Diagnosis from raw EEG: reading of recordings, windows, features, networks, and an audit for leakage."""
