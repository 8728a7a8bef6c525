"""The linear probe: classifiers on frozen features, chosen on a hold-out, tested once."""
