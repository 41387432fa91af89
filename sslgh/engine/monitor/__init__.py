"""Monitoring of pretraining: statistics of the embeddings, a collapse alarm, an online probe."""
