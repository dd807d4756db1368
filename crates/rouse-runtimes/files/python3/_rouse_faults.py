"""How failures are reported: the JSON shape, the log lines and the headers of Lambda. Imported when something fails."""

import sys
import traceback

BOOTSTRAP = sys.modules["_rouse_bootstrap"]


def describe(error, request_id):
    """The error body: {errorMessage, errorType, requestId, stackTrace}."""
    if isinstance(error, BOOTSTRAP.Fault):
        return {
            "errorMessage": error.message,
            "errorType": error.error_type,
            "requestId": request_id,
            "stackTrace": error.trace or [],
        }
    return {
        "errorMessage": str(error),
        "errorType": type(error).__name__,
        "requestId": request_id,
        "stackTrace": traceback.format_list(frames(error)),
    }


def frames(error):
    """The frames of the function itself: ours, and those of the import machinery above it, are left out."""
    found = traceback.extract_tb(error.__traceback__)
    for index, frame in enumerate(found):
        if frame.filename != BOOTSTRAP.__file__ and not frame.filename.startswith("<frozen importlib"):
            return found[index:]
    return found


def headers(report):
    """The request header that carries the error's type, for types that Lambda's grammar allows in a header."""
    name = report["errorType"]
    if name.startswith("Runtime."):
        return "Lambda-Runtime-Function-Error-Type: " + name + "\r\n"
    return ""


def log(report):
    """One record with carriage returns between its lines, as people's log parsers expect it."""
    lines = ["[ERROR] " + report["errorType"] + (": " + report["errorMessage"] if report["errorMessage"] else "")]
    lines.append("Traceback (most recent call last):")
    for entry in report["stackTrace"]:
        for line in entry.splitlines():
            stripped = line.lstrip(" ")
            # No-break spaces keep the indentation in consoles that trim it.
            lines.append("\u00a0" * (len(line) - len(stripped)) + stripped)
    text = "\r".join(lines) + "\n"
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        sys.stdout.write(text.encode("ascii", "backslashreplace").decode("ascii"))
