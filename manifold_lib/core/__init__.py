"""What every room uses: checks of arguments, the scorer of a model, passes through it, whole files."""
