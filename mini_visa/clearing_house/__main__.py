"""`python -m mini_visa.clearing_house`: the clearing house in this process, until SIGTERM or Ctrl-C."""

from mini_visa import log_format
from mini_visa.clearing_house.app import run
from mini_visa.settings import settings

if __name__ == "__main__":
    log_format.configure(settings().log_level)
    run(settings())
