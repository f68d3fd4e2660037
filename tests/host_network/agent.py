"""A process in a pod: does what it is told on standard input, one JSON object a line, and answers each with one."""

import array
import json
import os
import socket
import sys

sockets = {}


def connect(to):
    made = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
    made.settimeout(5)
    made.connect((to, 80))
    return made


def ask(connection, method, path, headers):
    host = connection.getpeername()[0]
    host = f"[{host}]" if ":" in host else host
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(65536)
        if not more:
            raise OSError("closed")
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return [int(head.split(b" ")[1]), body.decode()]


def do(what, name="", to="169.254.169.254", method="GET", path="", headers=()):
    if what == "get":
        with connect(to) as connection:
            return ask(connection, method, path, headers)
    if what == "open":
        sockets[name] = connect(to)
    elif what == "make":
        sockets[name] = socket.socket()
        sockets[name].settimeout(5)
    elif what == "connect":
        sockets[name].connect((to, 80))
    elif what == "ask":
        return ask(sockets[name], method, path, headers)
    elif what == "close":
        sockets.pop(name).close()
    elif what == "reset":
        sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sockets.pop(name).close()
    elif what == "listen":
        sockets["unix"] = socket.socket(socket.AF_UNIX)
        sockets["unix"].bind(path)
        sockets["unix"].listen()
    elif what == "hand":
        with socket.socket(socket.AF_UNIX) as unix:
            unix.connect(path)
            with sockets.pop(name) as handed:
                rights = array.array("i", [handed.fileno()])
                unix.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    elif what == "take":
        unix, _ = sockets.pop("unix").accept()
        _, descriptors, _, _ = socket.recv_fds(unix, 1, 1)
        sockets[name] = socket.socket(fileno=descriptors[0])
        sockets[name].settimeout(5)
    elif what == "move":
        with open(f"/sys/fs/cgroup/{path}/cgroup.procs", "w") as procs:
            procs.write("0")
    return [0, ""]


for line in sys.stdin:
    try:
        answer = do(**json.loads(line))
    except OSError as error:
        answer = [-1, str(error)]
    print(json.dumps(answer), flush=True)
