"""A Docker daemon that makes nothing: it writes down the environment that `docker create` asks for.
Arguments: its socket, and the file for the environment, each variable ended by a zero byte."""

import http.server
import json
import socketserver
import sys

SOCKET, TO = sys.argv[1:]


class Daemon(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def address_string(self):
        return "client"

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, code, body):
        self.send_response(code)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.reply(200, b"{}")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.body()
        if "/containers/create" in self.path:
            with open(TO, "wb") as to:
                for variable in json.loads(body)["Env"] or []:
                    to.write(variable.encode() + b"\0")
        self.reply(201, b'{"Id": "none", "Warnings": []}')


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


with Server(SOCKET, Daemon) as server:
    print("ready", flush=True)
    server.serve_forever()
