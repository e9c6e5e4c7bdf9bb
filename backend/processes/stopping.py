"""`stopping`: set when this process was told to stop.

What is at hand is finished, or left where it can be resumed; the rest goes back to its queue.
"""

import threading

stopping = threading.Event()
