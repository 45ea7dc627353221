"""Parts of `benchmarks.distillation`: who is taught, by which losses, and what each part of the study asks."""
