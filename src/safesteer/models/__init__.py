"""Chat models: loading, rendering, generating, steering, hidden states and log-probabilities."""
