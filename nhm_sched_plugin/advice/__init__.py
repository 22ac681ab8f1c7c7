"""Who gives advice: the Protocols of forecaster, policy and sink, and their makers."""
