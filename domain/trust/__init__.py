"""Trust: who may sign, who approves, what policies and the constitution say, and what a scan finds."""
