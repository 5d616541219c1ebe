"""What is in a dataset, and what in it may be a mistake, before it is trained on."""
