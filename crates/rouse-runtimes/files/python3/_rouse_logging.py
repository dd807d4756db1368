"""The root logger's handler and format, as Lambda sets them. Imported together with the function's first use of `logging`."""

import sys
import time


def install(logging, state):
    class Handler(logging.Handler):
        def emit(self, record):
            try:
                sys.stdout.write(self.format(record))
                sys.stdout.flush()
            except Exception:
                self.handleError(record)

    class RequestId(logging.Filter):
        def filter(self, record):
            record.aws_request_id = state.request_id or ""
            return True

    logging.Formatter.converter = time.gmtime
    handler = Handler()
    handler.setFormatter(
        logging.Formatter(
            "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n", "%Y-%m-%dT%H:%M:%S"
        )
    )
    handler.addFilter(RequestId())
    logging.getLogger().addHandler(handler)
