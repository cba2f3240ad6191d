"""Diagnosis from raw EEG: reading recordings, windows, features, networks, and an audit of leakage."""
