"""Answers queries named `who`, and writes down the events that it hears, until it is ended."""

import sys

from meshd import Mesh

mesh = Mesh("answering", control=sys.argv[1])


@mesh.on_query("who")
def who(query):
    return f"I am asked {query.text}"


@mesh.on_event("deploy")
def deployed(event):
    sys.stderr.write(f"heard {event.data.decode()}\n")


sys.stderr.write("starting\n")
mesh.run()
