"""Parsl's interchange, which also heeds the walltime of pilots: `python interchange.py`, started by Parsl.

The interchange hands tasks to managers, one per node. This one hands a task only to a manager that has enough minutes
left for it, the shortest of them first, and ends an idle manager for which no waiting task fits. (Parsl does neither:
its issue 3249.) It runs as a script, so it imports nothing of this package.
"""

import pickle
import sys
import time
from typing import Any

import zmq
from parsl.executors.high_throughput import interchange

SHARE = 0.9  # of a fresh pilot's time: a longer task starts in a fresh pilot and goes on in the next one
SECONDS = 1.0  # between two searches while no message arrives
IDLE = 15  # seconds without a task before a manager ends: time to learn that tasks are faster than planned


class Interchange(interchange.Interchange):  # type: ignore[misc]
    """Hands tasks to managers by priority and time left.

    A task's resource specification has `seconds`, its expected duration; 0 if it is unknown. A manager's time ends
    when it drains, at the executor's `drain_period`.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.pace = 1.0  # measured by expected duration of the tasks that have ended
        self._searched = 0.0

    def process_command(self, monitoring_radio: Any) -> None:
        """Answer a command of the driver; as Parsl's, with two more."""
        if self.socks.get(self.command_channel) == zmq.POLLIN:
            self.command_channel.send_pyobj(self._answer(self.command_channel.recv_pyobj()))

    def _answer(self, command: Any) -> Any:
        name: str = command if isinstance(command, str) else command[0]
        argument: Any = command[-1]
        if name == "CONNECTED_BLOCKS":
            return self.connected_block_history
        if name == "WORKER_BINDS":
            return self.worker_port
        if name == "MANAGERS":
            return [self._describe(manager_id.decode(), m) for manager_id, m in self._ready_managers.items()]
        if name == "PACE":
            self.pace = argument
        for manager_id, m in self._ready_managers.items():
            if name == "HOLD_MANAGER" and manager_id.decode() == argument:
                m["active"] = False
            if name == "LOST" and m["block_id"] == argument:
                m["last_heartbeat"] = 0  # `expire_bad_managers` fails its tasks next
        return None

    def _describe(self, name: str, m: Any) -> dict[str, Any]:
        free = m["max_capacity"] - len(m["tasks"])
        return {
            "manager": name, "block_id": m["block_id"], "worker_count": m["worker_count"], "tasks": len(m["tasks"]),
            "idle_duration": time.time() - (m["idle_since"] or time.time()), "active": m["active"],
            "draining": m["draining"], "running": list(m["tasks"]), "hostname": m["hostname"],
            "used": m.get("used", False),
            "unfit": free if self.pending_task_queue and not self._fitting(m, 1) else 0,
        }  # fmt: skip

    def process_manager_socket_message(self, interesting_managers: set[bytes], *arguments: Any) -> None:
        """Handle a message of a manager, and count its time by this machine's clock."""
        super().process_manager_socket_message(interesting_managers, *arguments)
        for m in self._ready_managers.values():
            if "lifetime" not in m:
                m["lifetime"] = m["drain_time"] - m["start_time"]
                m["drain_time"] = time.time() + m["lifetime"]

    def process_tasks_to_send(self, interesting_managers: set[bytes], monitoring_radio: Any) -> None:
        """Hand out tasks, to the managers with the least time left first."""
        if not (self.socks or time.monotonic() > self._searched + SECONDS) or not self.pending_task_queue:
            return
        self._searched = time.monotonic()
        managers = [(manager_id, m) for manager_id, m in self._ready_managers.items() if self._free(m)]
        for manager_id, m in sorted(managers, key=lambda pair: pair[1]["drain_time"]):
            if tasks := self._fitting(m, self._free(m)):
                for task in tasks:
                    self.pending_task_queue.remove(task)
                messages = [message for *_, message in tasks]
                self.manager_sock.send_multipart([manager_id, pickle.dumps(messages)])
                self.count += len(tasks)
                m["tasks"].extend(message["task_id"] for message in messages)
                m["idle_since"], m["used"] = None, True
            elif self.pending_task_queue and not m["tasks"] and time.time() > m["idle_since"] + IDLE:
                interchange.logger.info(f"No waiting task fits the time left of manager {manager_id!r}: it ends")
                m["draining"] = True

    def _free(self, m: Any) -> int:
        """Number of tasks that a manager can take now."""
        return m["max_capacity"] - len(m["tasks"]) if m["active"] and not m["draining"] else 0

    def _fitting(self, m: Any, count: int) -> list[Any]:
        """The first `count` waiting tasks, by priority, that a manager has time for."""
        left = m["drain_time"] - time.time()
        fitting: list[Any] = []
        for entry in reversed(self.pending_task_queue):  # Parsl keeps the most urgent last
            if len(fitting) == count:
                break
            seconds = entry[-1]["context"].get("resource_spec", {}).get("seconds", 0)
            if min(seconds * self.pace, SHARE * m["lifetime"]) <= left:
                fitting.append(entry)
        return fitting


if __name__ == "__main__":
    from parsl.utils import setproctitle

    setproctitle("parsl: HTEX interchange")
    Interchange(**pickle.load(sys.stdin.buffer)).start()
