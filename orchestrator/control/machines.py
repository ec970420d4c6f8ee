"""The use cases around single machines: what they say of themselves, and draining them."""

from __future__ import annotations

from orchestrator.control.fleet import FleetWatcher
from orchestrator.control.nodebook import NodeBook
from orchestrator.control.views import Views
from orchestrator.errors import NotFoundError
from orchestrator.messages import NodeView
from orchestrator.messages_agent import NodeNote


class Machines:
    """What nodes tell, and what people order of them."""

    def __init__(self, book: NodeBook, watcher: FleetWatcher, views: Views) -> None:
        self._book = book
        self._watcher = watcher
        self._views = views

    def nodes(self) -> list[NodeView]:
        """Machines, what runs on them, and since when nothing was heard of them."""
        views = self._views.nodes(self._watcher.fleet)
        return [view.model_copy(update={"silent_s": self._book.silent_s(view.name)}) for view in views]

    def report(self, name: str, note: NodeNote) -> None:
        """Take in what a node says of itself. Of a node that Ray does not know it is kept until it does."""
        self._book.take(name, note)
        self._watcher.refresh()

    def drain(self, name: str) -> NodeView:
        """Start nothing new on this node, and have what runs there save and go on elsewhere.

        Durable once it returns. NotFoundError names the nodes there are.
        """
        self._check(name)
        self._book.drains.add(name)
        self._watcher.refresh()
        return self._view(name)

    def undrain(self, name: str) -> NodeView:
        """Use the node again; nothing where it is not being drained. Who was ordered to go, goes."""
        self._check(name)
        self._book.drains.remove(name)
        self._watcher.refresh()
        return self._view(name)

    def _check(self, name: str) -> None:
        there = {node.name for node in self._watcher.fleet.nodes}
        if name not in there and name not in self._book.drains:
            known = f"the nodes there are: {', '.join(sorted(there))}" if there else "no node is connected"
            raise NotFoundError(f"no node is called {name}", remedy=known)

    def _view(self, name: str) -> NodeView:
        views = {view.name: view for view in self.nodes()}
        away = NodeView(name=name, pool="", state="lost", draining=name in self._book.drains)
        return views.get(name, away)
