use rouse_runtimes::Runtime;
use serde_json::json;

use crate::api::Client;

const SNAP_START: (&str, &str) = ("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start");

fn start(code: &str) -> Client {
    Client::start(Runtime::NodeJs, &[("index.js", code)], "index.handler", &[])
}

fn start_snapstart(code: &str) -> Client {
    let mut client = Client::start(
        Runtime::NodeJs,
        &[("index.js", code)],
        "index.handler",
        &[SNAP_START],
    );
    // A node that has no warm-up events.
    client.expect("GET", "warm-up/next");
    client.answer(204, &[], b"");
    client
}

#[test]
fn handlers_of_each_kind() {
    let cases = [
        (
            "index.js",
            "exports.handler = async (event) => ({ event });",
        ),
        (
            "index.cjs",
            "exports.handler = (event, context, callback) => callback(null, { event });",
        ),
        (
            "index.mjs",
            "export const handler = async (event) => ({ event });",
        ),
        (
            "index.js",
            "exports.handler = (event, context) => { context.succeed({ event }); };",
        ),
        (
            "index.js",
            "exports.handler = (event, context, done) => { setTimeout(done, 5, null, { event }); };",
        ),
    ];
    for (file, code) in cases {
        let mut client = Client::start(Runtime::NodeJs, &[(file, code)], "index.handler", &[]);
        for event in ["1", "\"\u{e9}\u{1f600}\"", "{\"a\":[null]}"] {
            let expected: serde_json::Value = serde_json::from_str(event).unwrap();
            assert_eq!(client.invoke(event), json!({ "event": expected }), "{code}");
        }
    }
    let module = [
        ("package.json", "{\"type\":\"module\"}"),
        (
            "src/app.js",
            "export const a = { b: () => Promise.resolve(7) };",
        ),
    ];
    let mut client = Client::start(Runtime::NodeJs, &module, "src/app.a.b", &[]);
    assert_eq!(client.invoke("{}"), json!(7));
}

#[test]
fn results_without_json_form() {
    let mut client = start(
        "exports.handler = async (event) => event === 1 ? undefined : event === 2 ? 1n : new Promise(() => {});",
    );
    assert_eq!(client.invoke("1"), json!(null));
    assert_eq!(
        client.invoke_error("2")["errorType"],
        "Runtime.MarshalError"
    );
    // Nothing will ever settle this promise: the invocation ends when the event loop runs empty.
    assert_eq!(client.invoke("3"), json!(null));
    assert_eq!(client.invoke("1"), json!(null));
}

#[test]
fn callbacks_wait_for_the_event_loop_unless_told() {
    let mut client = start(
        "let ran = 0;
exports.handler = (event, context, callback) => {
  context.callbackWaitsForEmptyEventLoop = event;
  setTimeout(() => { ran++; }, 50);
  callback(null, { toJSON: () => ran });
};",
    );
    assert_eq!(client.invoke("true"), json!(1));
    assert_eq!(client.invoke("false"), json!(1));
}

#[test]
fn context_has_what_lambda_documents() {
    let mut client = start(
        "exports.handler = async (event, c) => [c.awsRequestId, c.functionName, c.memoryLimitInMB, c.invokedFunctionArn,
  c.getRemainingTimeInMillis() > 1000, process.env._X_AMZN_TRACE_ID ?? null, c.clientContext ?? null];",
    );
    let arn = "arn:aws:lambda:us-east-1:000000000000:function:tested";
    assert_eq!(
        client.invoke("{}"),
        json!(["1", "tested", "128", arn, true, null, null])
    );
}

#[test]
fn errors_have_lambdas_shape() {
    let mut client = start(
        "exports.handler = async (event) => {
  if (event === 1) throw new TypeError('no');
  if (event === 2) throw 'text';
  await new Promise((resolve, reject) => setImmediate(reject, Object.assign(new Error('own'), { name: 'Own.Error' })));
};",
    );
    let error = client.invoke_error("1");
    assert_eq!(
        (&error["errorType"], &error["errorMessage"]),
        (&json!("TypeError"), &json!("no"))
    );
    assert_eq!(error["trace"][0], "TypeError: no");
    assert_eq!(
        client.invoke_error("2"),
        json!({ "errorType": "string", "errorMessage": "text", "trace": [] })
    );
    assert_eq!(client.invoke_error("3")["errorType"], "Own.Error");
    assert!(
        client
            .output()
            .contains("\tERROR\tInvoke Error \t{\"errorType\":\"TypeError\"")
    );
}

#[test]
fn uncaught_errors_end_the_runtime() {
    for (code, kind, exit) in [
        (
            "exports.handler = () => { setTimeout(() => { throw new RangeError('late'); }, 1); };",
            "RangeError",
            129,
        ),
        (
            "exports.handler = () => { Promise.reject(new Error('x')); return new Promise((r) => setTimeout(r, 1e6)); };",
            "Runtime.UnhandledPromiseRejection",
            128,
        ),
    ] {
        let mut client = start(code);
        client.expect("GET", "invocation/next");
        client.event("1", "{}");
        client.next_connection();
        let error = client.expect("POST", "invocation/1/error").json();
        assert_eq!(error["errorType"], kind);
        client.answer(202, &[], b"");
        assert_eq!(client.wait().code(), Some(exit));
    }
}

#[test]
fn init_errors_are_reported() {
    let cases = [
        (
            "other.js",
            "",
            "index.handler",
            "Runtime.ImportModuleError",
            "Error: Cannot find module 'index'",
        ),
        (
            "index.js",
            "require('missing')",
            "index.handler",
            "Runtime.ImportModuleError",
            "Cannot find module 'missing'",
        ),
        (
            "index.mjs",
            "import 'missing'",
            "index.handler",
            "Runtime.ImportModuleError",
            "Cannot find package 'missing'",
        ),
        (
            "index.js",
            "",
            "index.handler",
            "Runtime.HandlerNotFound",
            "index.handler is undefined or not exported",
        ),
        (
            "index.js",
            "function",
            "index.handler",
            "Runtime.UserCodeSyntaxError",
            "SyntaxError: ",
        ),
        (
            "index.js",
            "",
            "index",
            "Runtime.MalformedHandlerName",
            "Bad handler",
        ),
        (
            "index.js",
            "",
            "../x.handler",
            "Runtime.MalformedHandlerName",
            "Bad handler",
        ),
        (
            "index.js",
            "throw new RangeError('no')",
            "index.handler",
            "RangeError",
            "no",
        ),
    ];
    for (file, code, handler, kind, message) in cases {
        let mut client = Client::start(Runtime::NodeJs, &[(file, code)], handler, &[]);
        let (error, header) = client.init_error();
        assert_eq!(error["errorType"], kind, "{error}");
        assert!(
            error["errorMessage"].as_str().unwrap().contains(message),
            "{error}"
        );
        assert_eq!(header.as_deref(), Some(kind));
        assert_eq!(client.wait().code(), Some(1));
    }
}

#[test]
fn hooks_run_around_the_snapshot() {
    let mut client = start_snapstart(
        "const { registerBeforeSnapshot, registerAfterRestore } = require('rouse-snapshot');
const calls = [];
registerBeforeSnapshot((x) => calls.push(x), 'before 1');
registerBeforeSnapshot(async (x) => { await null; calls.push(x); }, 'before 2');
registerAfterRestore((x) => calls.push(x), 'after 1');
globalThis[Symbol.for('rouse.snapshot')].registerAfterRestore((x) => calls.push(x), 'after 2');
exports.handler = async () => calls;",
    );
    client.expect("GET", "restore/next");
    client.answer(200, &[], b"");
    let expected = json!(["before 2", "before 1", "after 1", "after 2"]);
    assert_eq!(client.invoke("{}"), expected);
    assert_eq!(client.invoke("{}"), expected);
}

#[test]
fn invocation_may_come_with_the_restore() {
    let mut client = start_snapstart(
        "exports.handler = async (event, context) => [event, context.awsRequestId];",
    );
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
    let mut client = start("exports.handler = async (event) => event;");
    client.expect_next_with_answer();
}

#[test]
fn hooks_that_fail_end_the_runtime() {
    let code = |hook: &str| {
        format!(
            "require('rouse-snapshot').{hook}(async () => {{ throw new Error('hook'); }}); exports.handler = () => {{}};"
        )
    };
    let mut client = start_snapstart(&code("registerBeforeSnapshot"));
    let (_, header) = client.init_error();
    assert_eq!(header.as_deref(), Some("Runtime.BeforeSnapshotError"));
    assert_eq!(client.wait().code(), Some(64));

    let mut client = start_snapstart(&code("registerAfterRestore"));
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
fn large_and_chunked_events() {
    let mut client = start("exports.handler = async (event) => event.length;");
    let event = format!("\"{}\"", "x".repeat(5 << 20));
    assert_eq!(client.invoke(&event), json!(5 << 20));
    client.expect("GET", "invocation/next");
    client.send(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nLambda-Runtime-Aws-Request-Id: 1\r\n",
    );
    for piece in ["\r\n", "3\r\n\"ab", "\r\n2\r\nc\"\r", "\n0\r\n", "\r\n"] {
        client.send(piece.as_bytes());
    }
    assert_eq!(client.response(), json!(3));
}

#[test]
fn console_has_lambdas_format() {
    let mut client =
        start("exports.handler = async () => { console.log('a %d', 1); console.error('b\\nc'); };");
    client.invoke("{}");
    let output = client.output();
    assert!(
        output.contains("Z\t1\tINFO\ta 1\n") && output.contains("Z\t1\tERROR\tb\rc\n"),
        "{output:?}"
    );
}

#[test]
fn lost_connections_are_opened_again() {
    let mut client = start("exports.handler = async (event) => event;");
    assert_eq!(client.invoke("1"), json!(1));
    client.expect("GET", "invocation/next");
    client.hang_up();
    assert_eq!(client.invoke("2"), json!(2));
}

#[test]
fn warm_up_events_come_before_the_hooks() {
    let mut client = Client::start(
        Runtime::NodeJs,
        &[(
            "index.js",
            "const calls = [];
require('rouse-snapshot').registerBeforeSnapshot((x) => calls.push(x), 'before');
exports.handler = async (event) => { calls.push([event, process.env._X_AMZN_TRACE_ID ?? null]); return calls; };",
        )],
        "index.handler",
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
