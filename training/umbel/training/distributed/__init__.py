"""Training in several processes: who they are, what each does of a step, and how their gradients become one."""
