"""Pages and plots of circuits and of compared circuits."""
