"""Imported by the fork server of the workers, and by nothing else: SIGTERM does not end it.

A cluster sends the signal to every process of a job. The fork server ends when the main process does.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
