"""Will it fit, and how well: the machine, the memory a load takes, its speed, and the best plan with its reasons."""
