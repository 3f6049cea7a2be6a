"""Generated web forms, plans that fill them in, and two executors of plans: in process, and in a real browser."""
