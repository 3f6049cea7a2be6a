"""The documentation is true: its code runs, its tables are the models', its names are those that runs write."""
