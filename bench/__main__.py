"""`make bench`: every comparison, one JSON object on stdout."""

import json

from bench import start, training

print(json.dumps({"start": start.run(), "training": training.run()}, indent=2))
