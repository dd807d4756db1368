"""rouse's runtime client for Python functions.

    python3 bootstrap.py HANDLER
    python3 bootstrap.py            (with ROUSE_TEMPLATE=1: a language template, see `_rouse_template`)

Imports the handler, then answers invocations from the Lambda Runtime API (2018-06-01), with SnapStart's
`restore/next` when AWS_LAMBDA_INITIALIZATION_TYPE is `snap-start`.

A restored instance runs this loop first, so its cost is boot time: every page that is touched is a page fault and every
object whose reference count changes is a page copied. Hence the raw socket instead of `http.client`, `_json`
instead of `json` (which imports `re` and `enum`), one function for the whole of an invocation that is run on made-up
requests before the snapshot (`warm_up`), and everything that only failures need in a module of its own.
"""

import os
import sys
import time

import _json
import _socket

API = "/2018-06-01/runtime/"
TASK_ROOT = os.environ.get("LAMBDA_TASK_ROOT", "/var/task")
RUNTIME_DIR = os.path.dirname(os.path.abspath(__file__))
RECEIVE_SIZE = 8192
# Tells the node that it may send the next invocation as the reply to an answer, which saves a round trip. A node that does not
# know it replies as always, and `serve` asks for work.
ACCEPT_NEXT = "Rouse-Response-Accept: invocation\r\n"
# An answer is kept until its reply has come. A larger one, bytes, is not to be kept until there is more work.
LARGEST_KEPT = 65536


class Fault(Exception):
    """A failure with one of Lambda's `Runtime.*` error types."""

    def __init__(self, error_type, message, trace=None):
        Exception.__init__(self, message)
        self.error_type = error_type
        self.message = message
        self.trace = trace


# --- The connection to the Runtime API ------------------------------------------------------------------------------


class Connection:
    """One keep-alive HTTP/1.1 connection."""

    __slots__ = ("address", "host", "socket")

    def __init__(self, api):
        host, _, port = api.rpartition(":")
        self.address = (host, int(port))
        self.host = "Host: " + api + "\r\n"
        self.socket = None
        self.connect()

    def connect(self):
        # `_socket.socket` and not `socket.socket`: the timeout is set here, so that a function's
        # `socket.setdefaulttimeout` does not reach this connection.
        self.socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self.socket.settimeout(None)
        self.socket.connect(self.address)
        self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)

    def request(self, head, body=b""):
        """Sends a request and returns (status, headers, body). A connection that the other end has closed in the
        meantime is opened again, once."""
        try:
            self.socket.sendall(head + body)
            return self.reply()
        except OSError:
            self.socket.close()
            self.connect()
            self.socket.sendall(head + body)
            return self.reply()

    def receive(self, size):
        data = self.socket.recv(size)
        if not data:
            raise ConnectionResetError("the runtime API closed the connection")
        return data

    def reply(self):
        data = self.receive(RECEIVE_SIZE)
        end = data.find(b"\r\n\r\n")
        while end < 0:
            data += self.receive(RECEIVE_SIZE)
            end = data.find(b"\r\n\r\n")
        headers = {}
        lines = data[:end].decode("latin-1").split("\r\n")
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        status = int(lines[0][9:12])
        body = data[end + 4 :]
        length = headers.get("content-length")
        if length is not None:
            missing = int(length) - len(body)
            if missing > 0:
                parts = [body]
                while missing > 0:
                    part = self.receive(min(missing, 1 << 20))
                    parts.append(part)
                    missing -= len(part)
                body = b"".join(parts)
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            body = self.chunks(body)
        return status, headers, body

    def chunks(self, data):
        """The body of a chunked reply of which `data` has been read already."""
        body = []
        while True:
            while b"\r\n" not in data:
                data += self.receive(RECEIVE_SIZE)
            line, _, data = data.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                # What follows is an empty line or trailers, none of which concerns us.
                while not (data.startswith(b"\r\n") or b"\r\n\r\n" in data):
                    data += self.receive(RECEIVE_SIZE)
                return b"".join(body)
            while len(data) < size + 2:
                data += self.receive(RECEIVE_SIZE)
            body.append(data[:size])
            data = data[size + 2 :]

    def get(self, path, extra=""):
        return self.request(("GET " + API + path + " HTTP/1.1\r\n" + self.host + extra + "\r\n").encode("latin-1"))

    def post(self, path, body, content_type="application/json", extra=""):
        return self.request(self.post_head(path, len(body), content_type, extra), body)

    def post_head(self, path, length, content_type, extra):
        return (
            "POST " + API + path + " HTTP/1.1\r\n" + self.host + "Content-Type: " + content_type
            + "\r\n" + extra + "Content-Length: " + str(length) + "\r\n\r\n"
        ).encode("latin-1")


# --- JSON -----------------------------------------------------------------------------------------------------------


class ScannerSettings:
    """What `_json.make_scanner` reads: the defaults of `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__
    memo = {}


scan_json = _json.make_scanner(ScannerSettings)


def decode_json(data):
    text = data.decode("utf-8-sig").strip(" \t\r\n")
    try:
        value, end = scan_json(text, 0)
    except StopIteration as stop:
        raise ValueError("Expecting value: line 1 column %d (char %d)" % (stop.value + 1, stop.value)) from None
    if end != len(text):
        raise ValueError("Extra data: line 1 column %d (char %d)" % (end + 1, end))
    return value


def encode_unknown(value):
    """Called for values that JSON has no form for; numbers of the `decimal` module are let through as in Lambda."""
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)


def encode_json(value):
    # A new encoder each time: its table for finding circles would keep what it held when an earlier value failed.
    encoder = _json.make_encoder(
        {}, encode_unknown, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True
    )
    return "".join(encoder(value, 0)).encode("ascii")


# --- The context ----------------------------------------------------------------------------------------------------


class Fields:
    """An object with a fixed set of attributes, each None unless the mapping has it."""

    __slots__ = ()

    def __init__(self, mapping=None):
        for name in self.__slots__:
            setattr(self, name, mapping.get(name) if mapping else None)

    def __repr__(self):
        return "%s([%s])" % (
            type(self).__name__,
            ",".join("%s=%s" % (name, getattr(self, name)) for name in self.__slots__),
        )


class Client(Fields):
    __slots__ = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")


class ClientContext(Fields):
    __slots__ = ("custom", "env", "client")

    def __init__(self, mapping):
        Fields.__init__(self, mapping)
        if self.client is not None:
            self.client = Client(self.client)


class CognitoIdentity(Fields):
    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")


class LambdaContext:
    """The second argument of a handler, with the attributes that Lambda documents."""

    def __init__(self, headers):
        environ = os.environ
        self.aws_request_id = headers.get("lambda-runtime-aws-request-id")
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self.client_context = None
        self.identity = CognitoIdentity()
        self._deadline_ms = int(headers.get("lambda-runtime-deadline-ms") or 0)
        text = headers.get("lambda-runtime-client-context")
        if text:
            self.client_context = ClientContext(header_json(text, "Client Context"))
        text = headers.get("lambda-runtime-cognito-identity")
        if text:
            identity = header_json(text, "Cognito Identity")
            self.identity.cognito_identity_id = identity.get("cognitoIdentityId")
            self.identity.cognito_identity_pool_id = identity.get("cognitoIdentityPoolId")

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def log(self, message):
        sys.stdout.write(str(message))

    def __repr__(self):
        return "LambdaContext([%s])" % ",".join(
            "%s=%s" % (name, value) for name, value in vars(self).items() if not name.startswith("_")
        )


def header_json(text, name):
    try:
        # Headers were decoded as Latin-1; what they carry is UTF-8.
        return decode_json(text.encode("latin-1"))
    except Exception as error:
        raise Fault(
            "Runtime.LambdaContextUnmarshalError", "Unable to parse %s JSON: %s" % (name, error)
        ) from None


# --- One invocation -------------------------------------------------------------------------------------------------


class State:
    """What log records and a repeated invocation need to know of the invocation in progress."""

    request_id = None
    trace_id = None
    # Whether `warm_up` has run.
    warm = False


def handle(connection, handler, headers, body, accept):
    """Runs the handler for one event and returns the request that reports the result. `accept` is a header for it."""
    request_id = State.request_id = headers["lambda-runtime-aws-request-id"]
    trace_id = headers.get("lambda-runtime-trace-id")
    if trace_id != State.trace_id:
        State.trace_id = trace_id
        if trace_id is None:
            os.environ.pop("_X_AMZN_TRACE_ID", None)
        else:
            os.environ["_X_AMZN_TRACE_ID"] = trace_id
    # A client that sends this header wants it back, so that a late answer can be told from the current one.
    echo = headers.get("lambda-runtime-invocation-id")
    extra = "Lambda-Runtime-Invocation-Id: " + echo + "\r\n" if echo else ""
    try:
        context = LambdaContext(headers)
        if headers.get("content-type", "application/json").startswith("application/json"):
            try:
                event = decode_json(body)
            except Exception as error:
                raise Fault("Runtime.UnmarshalError", "Unable to unmarshal input: %s" % error) from None
        else:
            event = body
        result = handler(event, context)
        content_type = "application/json"
        if isinstance(result, bytes):
            content_type = "application/unknown"
        else:
            try:
                result = encode_json(result)
            except Exception as error:
                raise Fault("Runtime.MarshalError", "Unable to marshal response: %s" % error) from None
        path = "invocation/" + request_id + "/response"
    except Exception as error:
        import _rouse_faults as faults

        report = faults.describe(error, request_id)
        faults.log(report)
        result, content_type = encode_json(report), "application/json"
        extra += faults.headers(report)
        path = "invocation/" + request_id + "/error"
    if len(result) <= LARGEST_KEPT:
        extra += accept
    return connection.post_head(path, len(result), content_type, extra) + result


def serve(connection, handler, reply):
    """Answers invocations for ever. `reply` is the first one when the restore brought it along, else None."""
    get_next = ("GET " + API + "invocation/next HTTP/1.1\r\n" + connection.host + "\r\n").encode("latin-1")
    while True:
        if reply is None:
            reply = connection.request(get_next)
        status, headers, body = reply
        if status != 200:
            raise RuntimeError("the runtime API answered /invocation/next with %d: %r" % (status, body[:200]))
        if "rouse-copied" in headers:
            renew(connection, headers)
        answer = handle(connection, handler, headers, body, ACCEPT_NEXT)
        reply = headers = body = None
        sys.stdout.flush()
        reply = connection.request(answer)
        answer = None
        if reply[0] != 200:
            if reply[0] >= 500:
                raise RuntimeError("the runtime API answered %d: %r" % (reply[0], reply[2][:200]))
            reply = None


# --- Init and the snapshot ------------------------------------------------------------------------------------------


def prepare_path():
    """/var/task first, then the folders in which packagers put dependencies; our own folder last, so that modules of a
    function are always preferred."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != RUNTIME_DIR]
    folders = [TASK_ROOT]
    for name in ("site-packages", "python"):
        folder = os.path.join(TASK_ROOT, name)
        # A `python` folder that is itself a package is the function's code, not a place for dependencies.
        if os.path.isdir(folder) and not os.path.exists(os.path.join(folder, "__init__.py")):
            folders.append(folder)
    sys.path[0:0] = folders
    sys.path.append(RUNTIME_DIR)


class LoggingHook:
    """Gives the root logger Lambda's handler and format at the moment that a function imports `logging`; functions that do
    not log do not pay for the import."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(LoggingHook)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = LoggingLoader(spec.loader)
                return spec
        return None


class LoggingLoader:
    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def exec_module(self, module):
        self.loader.exec_module(module)
        import _rouse_logging

        _rouse_logging.install(module, State)


def load_handler(name):
    module_name, dot, function_name = name.rpartition(".")
    if not dot:
        raise Fault(
            "Runtime.MalformedHandlerName",
            "Bad handler '%s': not enough values to unpack (expected 2, got 1)" % name,
        )
    dotted = module_name.replace("/", ".")
    if dotted.split(".")[0] in sys.builtin_module_names:
        raise Fault(
            "Runtime.BuiltInModuleConflict",
            "Cannot use built-in module %s as a handler module" % module_name,
        )
    try:
        __import__(dotted)
        module = sys.modules[dotted]
    except ImportError as error:
        raise Fault(
            "Runtime.ImportModuleError", "Unable to import module '%s': %s" % (module_name, error)
        ) from error
    except SyntaxError as error:
        raise Fault(
            "Runtime.UserCodeSyntaxError",
            "Syntax error in module '%s': %s" % (module_name, error),
            ['  File "%s" Line %s\n    %s' % (error.filename, error.lineno, error.text)],
        ) from error
    try:
        return getattr(module, function_name)
    except AttributeError:
        raise Fault(
            "Runtime.HandlerNotFound",
            "Handler '%s' missing on module '%s'" % (function_name, module_name),
        ) from None


def rehearse(event, context):
    """The handler of invocations that are not for the function."""
    context.get_remaining_time_in_millis()
    return event


def warm_up(connection):
    """Takes the path of an invocation with a handler of ours before the snapshot: the interpreter specialises its
    bytecode in place, and each page that it has done so on before the snapshot is shared by all instances afterwards."""
    kept = State.request_id, State.trace_id
    headers = {
        "lambda-runtime-aws-request-id": "8476a536-e9f4-11e8-9739-2dfe598c3fcd",
        "lambda-runtime-deadline-ms": "1542409706888",
        "lambda-runtime-invoked-function-arn": "arn:aws:lambda:us-east-1:000000000000:function:warm-up",
        "content-type": "application/json",
    }
    event = {"number": 1.5, "text": "\u00e9", "list": [1, None, True], "object": {"key": "value"}}
    body = encode_json(event)

    for _ in range(64):
        handle(connection, rehearse, headers, body, ACCEPT_NEXT)
    State.request_id, State.trace_id = kept
    State.warm = True


def answer_warm_up(connection, handler):
    """Answers the events that the function is to have seen before its snapshot, if the node has any. They are part of init:
    the hooks around the snapshot come afterwards, and so do the generators' reseeding and the collection of garbage."""
    while True:
        status, headers, body = connection.get("warm-up/next", "")
        if status != 200:
            break
        answer = handle(connection, handler, headers, body, "")
        sys.stdout.flush()
        connection.request(answer)
        headers = body = answer = None
    State.request_id = State.trace_id = None
    os.environ.pop("_X_AMZN_TRACE_ID", None)


def snapshot(connection, handler):
    """Runs the hooks around the snapshot, which is taken while `restore/next` is parked. Returns the reply to it when it
    carries an invocation already."""
    import _rouse_unique as unique

    answer_warm_up(connection, handler)
    hooks = sys.modules.get("snapshot_restore_py")
    try:
        before = hooks.get_before_snapshot() if hooks else []
        while before:
            function, args, kwargs = before.pop()
            function(*args, **kwargs)
        unique.prepare()
        if not State.warm:
            warm_up(connection)
        unique.settle()
    except BaseException as error:
        fail(connection, error, "init/error", "Runtime.BeforeSnapshotError", 64)
    # The header tells the node that it may send the invocation with this reply, which saves the first round trip of a
    # restored instance. A node that does not know it answers with an empty body, and `serve` asks for work.
    reply = connection.get("restore/next", "Rouse-Restore-Accept: invocation, rehearsal\r\n")
    if reply[0] != 200:
        error = RuntimeError("the runtime API answered /restore/next with %d: %r" % (reply[0], reply[2][:200]))
        fail(connection, error, "init/error", "Runtime.BeforeSnapshotError", 64)
    try:
        after_restore(unique)
    except BaseException as error:
        fail(connection, error, "restore/error", "Runtime.AfterRestoreError", 65)
    return reply if "lambda-runtime-aws-request-id" in reply[1] else None


def after_restore(unique):
    unique.reseed()
    hooks = sys.modules.get("snapshot_restore_py")
    for function, args, kwargs in hooks.get_after_restore() if hooks else []:
        function(*args, **kwargs)


def renew(connection, headers):
    """In a copy of an instance that was waiting for its next event, before it gets this one."""
    import _rouse_unique as unique

    try:
        # The function may have loaded other generators since its snapshot.
        unique.prepare()
        after_restore(unique)
    except BaseException as error:
        path = "invocation/" + headers["lambda-runtime-aws-request-id"] + "/error"
        fail(connection, error, path, "Runtime.AfterRestoreError", 65)


def fail(connection, error, path, error_type, code):
    """Reports a failure outside of an invocation and ends the process."""
    import _rouse_faults as faults

    report = faults.describe(error, "")
    faults.log(report)
    sys.stdout.flush()
    sys.stderr.flush()
    header = "Lambda-Runtime-Function-Error-Type: " + (error_type or report["errorType"]) + "\r\n"
    try:
        connection.post(path, encode_json(report), extra=header)
    finally:
        # Threads that the function started must not keep a failed runtime alive.
        os._exit(code)


def main():
    handler_name = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("_HANDLER", "")
    # Faults are raised here and described in another module, which must not import this file a second time.
    sys.modules["_rouse_bootstrap"] = sys.modules["__main__"]
    template = len(sys.argv) == 1 and os.environ.get("ROUSE_TEMPLATE") == "1"
    sys.argv[:] = [sys.argv[0]]
    sys.stdout.reconfigure(line_buffering=True)
    connection = Connection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    if template:
        import _rouse_template

        handler_name = _rouse_template.become(connection, sys.modules["__main__"])
    else:
        prepare_path()
        sys.meta_path.insert(0, LoggingHook)
    try:
        handler = load_handler(handler_name)
    except SystemExit:
        raise
    except BaseException as error:
        fail(connection, error, "init/error", None, 1)
    reply = None
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
        reply = snapshot(connection, handler)
    if reply is not None and "rouse-rehearsal" in reply[1]:
        # A copy that shows the node what an invocation touches, and ends then: the function's own handler never runs in it.
        handler = rehearse
    serve(connection, handler, reply)


if __name__ == "__main__":
    main()
