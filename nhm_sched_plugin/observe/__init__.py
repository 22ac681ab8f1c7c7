"""What people and machines see: metrics, the `/metrics` listener, reports and plots."""
