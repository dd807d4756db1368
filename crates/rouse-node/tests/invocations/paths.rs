//! Which path is taken, and what the function sees on it.

use std::sync::atomic::Ordering;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_with_a_snapshot_gets_a_fresh_instance_each_time() {
    for point in ["restore", "next"] {
        let bed = Bed::start();
        bed.create(
            "f",
            json!({ "Environment": { "Variables": { "KEY": "value", "POINT": point } } }),
        )
        .await;
        let description = bed.description("f");
        assert_eq!(
            description.snapshot.state, "ready",
            "{:?}",
            description.snapshot
        );
        assert_eq!(
            description.snapshot.point,
            Some(if point == "next" {
                "invocation/next"
            } else {
                "restore/next"
            })
        );
        for _ in 0..3 {
            let outcome = bed.invoke("f", json!({})).await;
            assert_eq!(outcome.path, BootPath::Fork);
            assert_eq!(
                (&answer(&outcome)["count"], &answer(&outcome)["key"]),
                (&json!(1), &json!("value"))
            );
            let names: Vec<&str> = outcome.stages.iter().map(|stage| stage.name).collect();
            assert_eq!(names, ["queue", "process", "start", "run", "total"]);
        }
        assert_eq!(bed.invoke_on("f", BootPath::Restore).await["count"], 1);
        assert_eq!(bed.invoke_on("f", BootPath::Cold).await["count"], 1);
        bed.quiet("f").await;
        let boots = bed.description("f").boots;
        assert_eq!(
            (
                boots["fork"],
                boots["restore"],
                boots["cold"],
                boots["warm"]
            ),
            (3, 1, 1, 0)
        );
        assert_eq!(bed.description("f").instances.idle, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_on_request_keeps_an_instance_and_uses_it_again() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    let warm = InvokeOptions {
        boot: Some(BootPath::Warm),
        ..InvokeOptions::default()
    };
    let first = bed.invoke_with("f", json!({}), warm.clone()).await.unwrap();
    assert_eq!(
        (first.path, &answer(&first)["count"]),
        (BootPath::Cold, &json!(1))
    );
    assert_eq!(bed.description("f").instances.idle, 1);
    let second = bed.invoke_with("f", json!({}), warm).await.unwrap();
    assert_eq!(
        (second.path, &answer(&second)["count"]),
        (BootPath::Warm, &json!(2))
    );
    assert_eq!(answer(&first)["pid"], answer(&second)["pid"]);
    // A change of the function ends its idle instances.
    bed.node
        .update_configuration(
            &target("f"),
            serde_json::from_value(json!({ "Timeout": 30 })).unwrap(),
        )
        .await
        .unwrap();
    while bed.description("f").record.last_update == rouse_node::function::record::State::Busy {
        pause().await;
    }
    assert_eq!(bed.description("f").instances.idle, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_snapshot_instances_are_kept() {
    let bed = Bed::start();
    bed.boot.faults.checkpoint.store(true, Ordering::SeqCst);
    bed.create("f", json!({})).await;
    let snapshot = bed.description("f").snapshot;
    assert_eq!(snapshot.state, "failed");
    assert_eq!(
        snapshot.reason.as_deref(),
        Some("The snapshot could not be taken: fd 7: io_uring instance")
    );
    let first = bed.invoke("f", json!({})).await;
    let second = bed.invoke("f", json!({})).await;
    assert_eq!((first.path, second.path), (BootPath::Cold, BootPath::Warm));
    assert_eq!(answer(&second)["count"], 2);
    // A kept instance that died meanwhile is not the caller's problem.
    bed.invoke("f", json!({ "do": "die later" })).await;
    let pid = answer(&second)["pid"].as_i64().unwrap() as i32;
    while bed.boot.living().contains(&pid) {
        pause().await;
    }
    let third = bed.invoke("f", json!({})).await;
    assert_eq!(
        (third.path, &answer(&third)["count"]),
        (BootPath::Cold, &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_does_not_work_is_left_and_then_given_up() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    bed.boot.faults.fork.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(bed.invoke("f", json!({})).await.path, BootPath::Restore);
    }
    assert_eq!(
        bed.description("f").snapshot.fork_problem.as_deref(),
        Some("no fork today")
    );
    bed.boot.faults.restore.store(true, Ordering::SeqCst);
    let options = InvokeOptions {
        boot: Some(BootPath::Restore),
        ..InvokeOptions::default()
    };
    let refusal = bed
        .invoke_with("f", json!({}), options.clone())
        .await
        .unwrap_err();
    assert_eq!(
        refusal,
        Refusal::ResourceNotReady(
            "The function could not be started by restore: no restore today".into()
        )
    );
    for _ in 0..3 {
        assert!(matches!(
            bed.invoke("f", json!({})).await.path,
            BootPath::Cold | BootPath::Warm
        ));
    }
    assert_eq!(bed.description("f").snapshot.state, "failed");
    assert!(matches!(
        bed.invoke_with("f", json!({}), options).await,
        Err(Refusal::SnapStartNotReady(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_an_invocation_comes_back() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    for boot in [BootPath::Fork, BootPath::Cold] {
        let options = InvokeOptions {
            boot: Some(boot),
            log_tail: true,
            measure_memory: true,
            client_context: Some("{\"a\":1}".into()),
            ..InvokeOptions::default()
        };
        let outcome = bed
            .invoke_with("f", json!({ "do": "print" }), options)
            .await
            .unwrap();
        let id = &outcome.request_id;
        let tail = String::from_utf8(outcome.log_tail.clone().unwrap()).unwrap();
        let begin = format!(
            "START RequestId: {id} Version: $LATEST\nto stdout\nto stderr\nEND RequestId: {id}\nREPORT RequestId: {id}\tDuration: "
        );
        assert!(tail.starts_with(&begin), "{tail}");
        assert!(
            tail.contains("Memory Size: 128 MB\tMax Memory Used: 3 MB\t"),
            "{tail}"
        );
        assert!(
            tail.contains(if boot == BootPath::Cold {
                "Init Duration: "
            } else {
                "Restore Duration: "
            }),
            "{tail}"
        );
        assert_eq!(answer(&outcome)["context"], "{\"a\":1}");
        assert_eq!(outcome.memory.unwrap().pss_kib, 1);
    }
    let log = String::from_utf8(bed.node.logs(&target("f"), 100).await.unwrap()).unwrap();
    assert_eq!(
        log.lines()
            .filter(|line| line.contains("\"message\":\"to stdout\""))
            .count(),
        2
    );
    assert!(log.contains("INIT_REPORT"), "{log}");
}
