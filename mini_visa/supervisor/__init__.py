"""The whole system on one machine, a process a service, watched and restarted.

up.py is the command, system.py the whole story, nursery.py where the processes come from.
"""
