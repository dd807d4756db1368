//! How functions fail, and what their callers see.

use std::sync::atomic::Ordering;

use rouse_node::engine::admission::queue::Limit;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_have_lambda_s_shape() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    let fails = async |event: Value| {
        let outcome = bed.invoke("f", event).await;
        assert_eq!(
            (outcome.status, outcome.function_error),
            (200, Some("Unhandled"))
        );
        let body = answer(&outcome);
        (
            outcome.request_id,
            body["errorType"].as_str().unwrap().to_owned(),
            body["errorMessage"].as_str().unwrap().to_owned(),
        )
    };
    let (_, kind, message) = fails(json!({ "do": "raise" })).await;
    assert_eq!((kind.as_str(), message.as_str()), ("ValueError", "no good"));
    let (id, kind, message) = fails(json!({ "do": "exit" })).await;
    assert_eq!(
        (kind, message),
        (
            "Runtime.ExitError".into(),
            format!("RequestId: {id} Error: Runtime exited with error: exit status 3")
        )
    );
    let (_, kind, message) = fails(json!({ "do": "large" })).await;
    assert_eq!(kind, "Function.ResponseSizeTooLarge");
    assert_eq!(
        message,
        "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
    );
    bed.quiet("f").await;
    assert_eq!(bed.description("f").errors, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_ends_the_instance() {
    let bed = Bed::start();
    bed.create("f", json!({ "Timeout": 1 })).await;
    let mark = bed.mark("pid");
    let options = InvokeOptions {
        log_tail: true,
        ..InvokeOptions::default()
    };
    let hang = async || {
        let event = json!({ "do": "hang", "mark": mark });
        bed.invoke_with("f", event, options.clone()).await.unwrap()
    };
    let mut outcome = hang().await;
    // Its second may have been over before it has left its mark.
    while !Path::new(&mark).exists() {
        outcome = hang().await;
    }
    let id = &outcome.request_id;
    assert_eq!(
        answer(&outcome),
        json!({ "errorType": "Sandbox.Timedout", "errorMessage": format!("RequestId: {id} Error: Task timed out after 1.00 seconds") })
    );
    let tail = String::from_utf8(outcome.log_tail.unwrap()).unwrap();
    assert!(
        tail.contains(&format!(
            "{id} Task timed out after 1.00 seconds\nEND RequestId: {id}\n"
        )),
        "{tail}"
    );
    assert!(tail.contains("Status: timeout"), "{tail}");
    let pid = std::fs::read_to_string(&mark).unwrap();
    while Path::new(&format!("/proc/{pid}")).exists() {
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_init_is_answered_by_invocations() {
    let bed = Bed::start();
    bed.create("f", json!({ "Handler": "missing.handler" }))
        .await;
    assert_eq!(
        bed.description("f").record.state,
        rouse_node::function::record::State::Done
    );
    let snapshot = bed.description("f").snapshot;
    let reason = snapshot.reason.unwrap();
    assert_eq!(
        reason,
        "Init failed: Runtime.ImportModuleError: No module named 'missing'"
    );
    let outcome = bed.invoke("f", json!({})).await;
    assert_eq!(outcome.function_error, Some("Unhandled"));
    assert_eq!(answer(&outcome)["errorType"], "Runtime.ImportModuleError");
    // Dead instances are not kept.
    assert_eq!(bed.description("f").instances.idle, 0);
}

/// Whoever kills blank processes and templates says nothing about snapshots: what is killed is served all the same, and no
/// path is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_from_outside_is_not_held_against_a_snapshot() {
    let bed = Bed::start();
    // Of three attempts to try a new snapshot, two come to nothing.
    bed.boot.faults.outside.store(2, Ordering::SeqCst);
    bed.create("f", json!({})).await;
    bed.boot.faults.outside.store(usize::MAX, Ordering::SeqCst);
    for _ in 0..6 {
        // From nothing, or what was started so before.
        let path = bed.invoke("f", json!({})).await.path;
        assert!(matches!(path, BootPath::Cold | BootPath::Warm), "{path:?}");
    }
    bed.boot.faults.outside.store(0, Ordering::SeqCst);
    assert_eq!(bed.invoke("f", json!({})).await.path, BootPath::Fork);
    bed.invoke_on("f", BootPath::Restore).await;
}

/// A copy that cannot load its function any more keeps nobody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_come_up_fails() {
    let bed = Bed::start();
    let code = "
import os
if 'PARKED_PORT' in os.environ: raise RuntimeError('only once')
def handler(event, context): return 7
";
    bed.create_with("f", code, json!({})).await;
    while bed.description("f").record.state == rouse_node::function::record::State::Busy {
        pause().await;
    }
    assert!(bed.description("f").snapshot.reason.is_some());
    let outcome = bed.invoke("f", json!({})).await;
    assert_eq!((outcome.path, answer(&outcome)), (BootPath::Cold, json!(7)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_node_can_take_is_throttled() {
    let bed = Bed::with(|config| {
        config.max_concurrency = 1;
        config.queue_max = 0;
    });
    bed.create("f", json!({})).await;
    let mark = bed.mark("mark");
    let (node, event) = (
        Arc::clone(&bed.node),
        json!({ "do": "wait", "mark": mark }).to_string(),
    );
    let running = tokio::spawn(async move {
        node.invoke(&target("f"), event.into(), &InvokeOptions::default())
            .await
    });
    exists(&mark).await;
    let refused = bed
        .invoke_with("f", json!({}), InvokeOptions::default())
        .await
        .unwrap_err();
    let Refusal::TooManyRequests(throttle) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(throttle.limit, Limit::Node);
    assert_eq!(bed.description("f").throttles, 1);
    std::fs::remove_file(&mark).unwrap();
    assert_eq!(running.await.unwrap().unwrap().function_error, None);
    assert_eq!(bed.invoke("f", json!({})).await.function_error, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_ends_the_instance() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    let mark = bed.mark("pid");
    let (node, event) = (
        Arc::clone(&bed.node),
        json!({ "do": "hang", "mark": mark }).to_string(),
    );
    let running = tokio::spawn(async move {
        node.invoke(&target("f"), event.into(), &InvokeOptions::default())
            .await
    });
    exists(&mark).await;
    running.abort();
    bed.quiet("f").await;
    let pid = std::fs::read_to_string(&mark).unwrap();
    while Path::new(&format!("/proc/{pid}")).exists() {
        pause().await;
    }
}
