"""AlexNet's local response normalisation and max-pooling in one kernel."""
