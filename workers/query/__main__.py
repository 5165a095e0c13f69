"""`python -m workers.query`."""

from workers.query.worker import main

main()
