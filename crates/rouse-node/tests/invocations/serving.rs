//! What a function's serving policy decides.

use std::sync::atomic::Ordering;

use super::*;

async fn decide(bed: &Bed, patch: Value) {
    bed.node.set_serving(&target("f"), &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolation_by_instance_uses_a_copy_of_a_snapshot_again() {
    for point in ["restore", "next"] {
        let bed = Bed::start();
        let environment = json!({ "Variables": { "POINT": point } });
        bed.create(
            "f",
            json!({ "Environment": environment, "RouseServing": { "isolation": "instance" } }),
        )
        .await;
        let first = bed.invoke("f", json!({})).await;
        assert_eq!(first.path, BootPath::Fork);
        for count in 2..5 {
            let next = bed.invoke("f", json!({})).await;
            assert_eq!(
                (next.path, &answer(&next)["count"]),
                (BootPath::Warm, &json!(count))
            );
            assert_eq!(answer(&next)["pid"], answer(&first)["pid"]);
        }
        // One that failed by itself goes on; one that ended is replaced.
        assert!(
            bed.invoke("f", json!({ "do": "raise" }))
                .await
                .function_error
                .is_some()
        );
        assert_eq!(
            answer(&bed.invoke("f", json!({})).await)["pid"],
            answer(&first)["pid"]
        );
        bed.invoke("f", json!({ "do": "exit" })).await;
        let fresh = bed.invoke("f", json!({})).await;
        assert_eq!(
            (fresh.path, &answer(&fresh)["count"]),
            (BootPath::Fork, &json!(1))
        );
        // Back to the default: what is idle is not used any more.
        decide(&bed, json!({ "isolation": null })).await;
        assert_eq!(bed.invoke("f", json!({})).await.path, BootPath::Fork);
    }
}

/// A node serves for months: what one request of a warm instance leaves behind would add up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_requests_leave_no_tasks_behind() {
    let bed = Bed::start();
    bed.create("f", json!({ "RouseServing": { "isolation": "instance" } }))
        .await;
    for _ in 0..3 {
        bed.invoke("f", json!({})).await;
    }
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for _ in 0..50 {
        assert_eq!(bed.invoke("f", json!({})).await.path, BootPath::Warm);
    }
    // Tasks that end by themselves may not have ended yet.
    while tasks() > before + 10 {
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolation_by_request_holds_without_a_snapshot_too() {
    let bed = Bed::start();
    bed.boot.faults.checkpoint.store(true, Ordering::SeqCst);
    bed.create("f", json!({ "RouseServing": { "isolation": "request" } }))
        .await;
    for _ in 0..2 {
        let outcome = bed.invoke("f", json!({})).await;
        assert_eq!(
            (outcome.path, &answer(&outcome)["count"]),
            (BootPath::Cold, &json!(1))
        );
    }
    bed.quiet("f").await;
    assert_eq!(bed.description("f").instances.idle, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_were_asked_for_are_started_and_stay() {
    let bed = Bed::with(|config| config.keep_alive_s = 0);
    bed.boot.faults.checkpoint.store(true, Ordering::SeqCst);
    bed.create("f", json!({})).await;
    decide(&bed, json!({ "min_instances": 2 })).await;
    while bed.description("f").instances.idle < 2 {
        pause().await;
    }
    let outcome = bed.invoke("f", json!({})).await;
    assert_eq!(
        (outcome.path, &answer(&outcome)["count"]),
        (BootPath::Warm, &json!(1))
    );
    assert_eq!(bed.description("f").boots["cold"], 0);
    // Dead ones are replaced. A surplus one may end by itself at this moment.
    let killed = bed.boot.living();
    for pid in &killed {
        let pid = rustix::process::Pid::from_raw(*pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    while bed.description("f").deaths["signal"] < 1 {
        pause().await;
    }
    let replaced = || bed.boot.living().difference(&killed).count() >= 2;
    while !replaced() || bed.description("f").instances.idle < 2 {
        pause().await;
    }
    // Nothing is left of them when they are not wanted any more.
    decide(&bed, json!({ "min_instances": null })).await;
    while bed.description("f").instances.idle > 0 {
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_survives_updates_and_restarts_but_what_is_provisioned_belongs_to_a_version() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    let before = bed.description("f").record.revision_id.clone();
    decide(
        &bed,
        json!({ "isolation": "instance", "provisioned": 1, "keep_alive": "histogram" }),
    )
    .await;
    assert_eq!(bed.description("f").record.revision_id, before);
    let bed = bed.restart().await;
    let policy = bed.description("f").serving.policy;
    assert_eq!(
        serde_json::to_value(&policy).unwrap(),
        json!({ "isolation": "instance", "provisioned": 1, "keep_alive": "histogram" })
    );
    let version = bed
        .node
        .publish_version(&target("f"), serde_json::from_value(json!({})).unwrap())
        .await
        .unwrap();
    assert_eq!(version.serving.isolation, policy.isolation);
    assert_eq!(version.serving.provisioned, None);
    let wrong = bed
        .node
        .set_serving(&target("f"), &json!({ "isolation": "none" }))
        .await;
    assert!(matches!(wrong, Err(Refusal::InvalidParameterValue(_))));
    assert_eq!(bed.description("f").serving.policy, policy);
}
