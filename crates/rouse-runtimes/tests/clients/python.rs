use rouse_runtimes::Runtime;
use serde_json::json;

use crate::api::Client;

const SNAP_START: (&str, &str) = ("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start");

fn start(code: &str) -> Client {
    Client::start(Runtime::Python3, &[("app.py", code)], "app.handler", &[])
}

fn start_snapstart(code: &str) -> Client {
    let mut client = Client::start(
        Runtime::Python3,
        &[("app.py", code)],
        "app.handler",
        &[SNAP_START],
    );
    // A node that has no warm-up events.
    client.expect("GET", "warm-up/next");
    client.answer(204, &[], b"");
    client
}

#[test]
fn events_and_results_are_json() {
    let mut client = start("def handler(event, context): return event\n");
    for event in [
        "null",
        "true",
        "-1",
        "1.5",
        "\"\u{e9}\u{1f600}\"",
        "[]",
        "{}",
        " {\"a\": [1, {\"b\": null}]} ",
        "1e300",
        "\"\\ud83d\\ude00 \\\" \\\\\"",
    ] {
        let expected: serde_json::Value = serde_json::from_str(event).unwrap();
        assert_eq!(client.invoke(event), expected, "{event}");
    }
    for event in ["", "{", "[1,]", "1 2", "\u{e9}"] {
        let error = client.invoke_error(event);
        assert_eq!(error["errorType"], "Runtime.UnmarshalError", "{event}");
    }
}

#[test]
fn large_events_arrive_in_pieces() {
    let mut client = start("def handler(event, context): return len(event), event[-1]\n");
    let event = format!("\"{}z\"", "x".repeat(5 << 20));
    assert_eq!(client.invoke(&event), json!([(5 << 20) + 1, "z"]));
    // Chunked, and each piece on its own.
    client.expect("GET", "invocation/next");
    client.send(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nLambda-Runtime-Aws-Request-Id: 1\r\n",
    );
    for piece in ["\r\n", "3\r\n\"ab", "\r\n2;x=y\r\nc\"\r", "\n0\r\n", "\r\n"] {
        client.send(piece.as_bytes());
    }
    assert_eq!(client.response(), json!([3, "c"]));
}

#[test]
fn context_has_what_lambda_documents() {
    let mut client = start(
        "import os
def handler(event, c):
    return [c.aws_request_id, c.function_name, c.memory_limit_in_mb, c.invoked_function_arn, c.log_group_name,
            c.get_remaining_time_in_millis() > 1000, c.client_context.custom['k'], c.client_context.client.app_title,
            c.identity.cognito_identity_id, os.environ.get('_X_AMZN_TRACE_ID')]
",
    );
    client.expect("GET", "invocation/next");
    client.answer(
        200,
        &[
            ("lambda-runtime-aws-request-id", "1"),
            ("LAMBDA-RUNTIME-DEADLINE-MS", "99999999999999"),
            ("Lambda-Runtime-Invoked-Function-Arn", "arn"),
            ("Lambda-Runtime-Trace-Id", "Root=1-2;Parent=3;Sampled=1"),
            (
                "Lambda-Runtime-Client-Context",
                "{\"custom\":{\"k\":\"\u{e9}\"},\"client\":{\"app_title\":\"t\"}}",
            ),
            (
                "Lambda-Runtime-Cognito-Identity",
                "{\"cognitoIdentityId\":\"i\"}",
            ),
        ],
        b"{}",
    );
    assert_eq!(
        client.response(),
        json!([
            "1",
            "tested",
            "128",
            "arn",
            null,
            true,
            "\u{e9}",
            "t",
            "i",
            "Root=1-2;Parent=3;Sampled=1"
        ])
    );
}

#[test]
fn errors_have_lambdas_shape() {
    let mut client = start(
        "import decimal
def handler(event, context):
    if event == 'raise':
        fails()
    if event == 'set':
        return {1, 2}
    if event == 'circle':
        circle = []
        circle.append(circle)
        return circle
    if event == 'decimal':
        return [decimal.Decimal('1.5'), decimal.Decimal(2)]
    return event

def fails():
    raise ValueError('no \u{e9}')
",
    );
    let error = client.invoke_error("\"raise\"");
    assert_eq!(error["errorType"], "ValueError");
    assert_eq!(error["errorMessage"], "no \u{e9}");
    assert_eq!(error["requestId"], "1");
    let trace = error["stackTrace"].as_array().unwrap();
    assert_eq!(trace.len(), 2);
    assert!(
        trace[0]
            .as_str()
            .unwrap()
            .contains("app.py\", line 4, in handler\n    fails()\n")
    );
    let error = client.invoke_error("\"set\"");
    assert_eq!(error["errorType"], "Runtime.MarshalError");
    assert_eq!(
        error["errorMessage"],
        "Unable to marshal response: Object of type set is not JSON serializable"
    );
    assert_eq!(
        client.invoke_error("\"circle\"")["errorType"],
        "Runtime.MarshalError"
    );
    assert_eq!(client.invoke("\"decimal\""), json!([1.5, 2]));
    assert!(
        client
            .output()
            .contains("[ERROR] ValueError: no \u{e9}\rTraceback (most recent call last):\r")
    );
}

#[test]
fn init_errors_are_reported() {
    let cases = [
        (
            &[("other.py", "")][..],
            "app.handler",
            "Runtime.ImportModuleError",
            "Unable to import module 'app': No module named 'app'",
        ),
        (
            &[("app.py", "import missing_thing")],
            "app.handler",
            "Runtime.ImportModuleError",
            "Unable to import module 'app': No module named 'missing_thing'",
        ),
        (
            &[("app.py", "")],
            "app.handler",
            "Runtime.HandlerNotFound",
            "Handler 'handler' missing on module 'app'",
        ),
        (
            &[("app.py", "def")],
            "app.handler",
            "Runtime.UserCodeSyntaxError",
            "Syntax error in module 'app': invalid syntax (app.py, line 1)",
        ),
        (
            &[("app.py", "")],
            "app",
            "Runtime.MalformedHandlerName",
            "Bad handler 'app': not enough values to unpack (expected 2, got 1)",
        ),
        (
            &[("app.py", "")],
            "sys.exit",
            "Runtime.BuiltInModuleConflict",
            "Cannot use built-in module sys as a handler module",
        ),
        (
            &[("app.py", "1 / 0")],
            "app.handler",
            "ZeroDivisionError",
            "division by zero",
        ),
    ];
    for (files, handler, kind, message) in cases {
        let mut client = Client::start(Runtime::Python3, files, handler, &[]);
        let (error, header) = client.init_error();
        assert_eq!(
            (error["errorType"].as_str(), error["errorMessage"].as_str()),
            (Some(kind), Some(message))
        );
        assert_eq!(header.as_deref(), Some(kind));
        assert_eq!(client.wait().code(), Some(1));
    }
}

#[test]
fn exits_are_left_to_the_function() {
    let mut client = start("import sys\ndef handler(event, context): sys.exit(3)\n");
    client.expect("GET", "invocation/next");
    client.event("1", "{}");
    assert_eq!(client.wait().code(), Some(3));
    assert_eq!(start("import sys\nsys.exit(4)\n").wait().code(), Some(4));
}

#[test]
fn packages_are_found_where_packagers_put_them() {
    let files = [
        (
            "pkg/mod.py",
            "import one, two\ndef handler(event, context): return [one.NAME, two.NAME]\n",
        ),
        ("site-packages/one.py", "NAME = 1\n"),
        ("python/two.py", "NAME = 2\n"),
    ];
    for handler in ["pkg/mod.handler", "pkg.mod.handler"] {
        let mut client = Client::start(Runtime::Python3, &files, handler, &[]);
        assert_eq!(client.invoke("{}"), json!([1, 2]));
    }
}

#[test]
fn hooks_run_around_the_snapshot() {
    let mut client = start_snapstart(
        "from snapshot_restore_py import register_before_snapshot, register_after_restore
calls = []
register_before_snapshot(calls.append, 'before 1')
register_before_snapshot(calls.append, 'before 2')
@register_after_restore
def first(): calls.append('after 1')
register_after_restore(calls.append, 'after 2')
def handler(event, context): return calls
",
    );
    client.expect("GET", "restore/next");
    client.answer(200, &[], b"");
    let expected = json!(["before 2", "before 1", "after 1", "after 2"]);
    assert_eq!(client.invoke("{}"), expected);
    assert_eq!(client.invoke("{}"), expected);
}

#[test]
fn invocation_may_come_with_the_restore() {
    let mut client =
        start_snapstart("def handler(event, context): return [event, context.aws_request_id]\n");
    let request = client.expect("GET", "restore/next");
    assert_eq!(
        request.header("rouse-restore-accept"),
        Some("invocation, rehearsal")
    );
    client.event("1", "7");
    assert_eq!(client.response(), json!([7, "1"]));
    assert_eq!(client.invoke("8"), json!([8, "1"]));
}

#[test]
fn invocation_may_come_with_the_reply_to_an_answer() {
    let mut client = start("def handler(event, context): return event\n");
    client.expect_next_with_answer();
}

#[test]
fn hooks_that_fail_end_the_runtime() {
    let code = |hook: &str| {
        format!(
            "import snapshot_restore_py as hooks
@hooks.{hook}
def fails(): raise RuntimeError('hook')
def handler(event, context): pass
"
        )
    };
    let mut client = start_snapstart(&code("register_before_snapshot"));
    let (error, header) = client.init_error();
    assert_eq!(
        (&error["errorType"], &error["errorMessage"]),
        (&json!("RuntimeError"), &json!("hook"))
    );
    assert_eq!(header.as_deref(), Some("Runtime.BeforeSnapshotError"));
    assert_eq!(client.wait().code(), Some(64));

    let mut client = start_snapstart(&code("register_after_restore"));
    client.expect("GET", "restore/next");
    client.answer(200, &[], b"");
    let request = client.expect("POST", "restore/error");
    assert_eq!(
        request.header("lambda-runtime-function-error-type"),
        Some("Runtime.AfterRestoreError")
    );
    client.answer(202, &[], b"");
    assert_eq!(client.wait().code(), Some(65));
}

#[test]
fn logging_has_lambdas_format() {
    let mut client = start(
        "import logging
logging.getLogger().setLevel('INFO')
def handler(event, context):
    logging.info('hello')
    print('partial', end='')
",
    );
    client.invoke("{}");
    let output = client.output();
    assert!(
        output.starts_with("[INFO]\t") && output.contains("Z\t1\thello\n"),
        "{output:?}"
    );
    assert!(output.ends_with("partial"), "{output:?}");
}

#[test]
fn lost_connections_are_opened_again() {
    let mut client = start("def handler(event, context): return event\n");
    assert_eq!(client.invoke("1"), json!(1));
    client.expect("GET", "invocation/next");
    client.hang_up();
    assert_eq!(client.invoke("2"), json!(2));
}

#[test]
fn warm_up_events_come_before_the_hooks() {
    let mut client = Client::start(
        Runtime::Python3,
        &[(
            "app.py",
            "import os
import snapshot_restore_py as hooks
calls = []
hooks.register_before_snapshot(calls.append, 'before')
def handler(event, context):
    calls.append([event, os.environ.get('_X_AMZN_TRACE_ID')])
    return calls
",
        )],
        "app.handler",
        &[SNAP_START],
    );
    for number in ["1", "2"] {
        client.expect("GET", "warm-up/next");
        client.event("1", number);
        client.response();
    }
    client.expect("GET", "warm-up/next");
    client.answer(204, &[], b"");
    client.expect("GET", "restore/next");
    client.answer(200, &[], b"");
    assert_eq!(
        client.invoke("3"),
        json!([[1, null], [2, null], "before", [3, null]])
    );
}
