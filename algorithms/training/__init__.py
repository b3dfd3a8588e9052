"""Trains adapters: what learns, on which layers, by which loss, with which optimiser, on what data."""
