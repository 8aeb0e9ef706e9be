"""The whole system on one machine, a process a service, watched and restarted.

up.py is the command, system.py the whole story, nursery.py where the processes come from.
"""

from mini_visa.supervisor.lock import AlreadyRunning, Running, running
from mini_visa.supervisor.ports import PortTaken
from mini_visa.supervisor.system import GATEWAY, SERVICES, Part, Service, State, System, SystemFailed

__all__ = [
    "GATEWAY", "SERVICES", "AlreadyRunning", "Part", "PortTaken", "Running", "Service", "State", "System",
    "SystemFailed", "running",
]  # fmt: skip
