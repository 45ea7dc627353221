"""What happens inside a training loop: wrapped optimizers, averages, lottery tickets."""
