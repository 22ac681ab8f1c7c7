"""The optimizer agent: forecaster and policy behind gRPC, for many orchestrators at once."""
