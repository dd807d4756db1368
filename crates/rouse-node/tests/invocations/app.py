import json
import os
import sys
import threading
import time

count = 0


def handler(event, context):
    global count
    count += 1
    if "TELL" in os.environ:
        with open(os.environ["TELL"], "a") as file:
            file.write(json.dumps(event) + "\n")
        return
    do = event.get("do")
    if do == "raise":
        raise ValueError("no good")
    if do == "exit":
        os._exit(3)
    if do == "hang":
        # Whole, or not there.
        with open(event["mark"] + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(event["mark"] + ".new", event["mark"])
        time.sleep(600)
    if do == "wait":
        open(event["mark"], "w").close()
        while os.path.exists(event["mark"]):
            time.sleep(0.005)
    if do == "large":
        return "x" * 7_000_000
    if do == "print":
        print("to stdout")
        print("to stderr", file=sys.stderr, end="")
    if do == "die later":
        threading.Timer(0.01, os._exit, [0]).start()
    if do == "name":
        with open(event["mark"], "a") as file:
            file.write(event["name"] + "\n")
    if do == "append":
        with open(event["mark"], "a") as file:
            file.write(context["lambda-runtime-aws-request-id"] + "\n")
        if len(open(event["mark"]).readlines()) <= event["failures"]:
            raise ValueError("not yet")
    return {"count": count, "pid": os.getpid(), "key": os.environ.get("KEY"), "context": context.get("lambda-runtime-client-context")}
