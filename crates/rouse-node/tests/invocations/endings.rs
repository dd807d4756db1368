//! The end of the node, of clients and of instances, while requests run and wait.

use tokio::task::JoinHandle;

use super::*;

type Call = JoinHandle<Result<InvokeOutcome, Refusal>>;

fn call(bed: &Bed, event: Value) -> Call {
    let node = Arc::clone(&bed.node);
    tokio::spawn(async move {
        let options = InvokeOptions::default();
        node.invoke(&target("f"), event.to_string().into(), &options)
            .await
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_closed_finishes_what_runs_and_keeps_events_for_later() {
    let bed = Bed::with(|config| {
        config.max_concurrency = 2;
        config.max_async_concurrency = 1;
        config.queue_wait_s = 3600;
    });
    bed.create("f", json!({})).await;
    let marks: Vec<String> = ["request", "event", "late"]
        .map(|name| bed.mark(name))
        .into();
    let hold = |mark: &String| json!({ "do": "wait", "mark": mark });
    let running = call(&bed, hold(&marks[0]));
    exists(&marks[0]).await;
    let send = async |event: Value| {
        let payload = event.to_string().into();
        bed.node
            .invoke_event(&target("f"), payload, None)
            .await
            .unwrap()
    };
    send(hold(&marks[1])).await;
    exists(&marks[1]).await;
    send(json!({ "do": "name", "mark": marks[2], "name": "late" })).await;
    let waiting = call(&bed, json!({}));
    while bed.description("f").serving.waiting < 1 {
        pause().await;
    }
    bed.node.close();
    assert_eq!(waiting.await.unwrap().unwrap_err(), Refusal::Stopping);
    assert_eq!(
        call(&bed, json!({})).await.unwrap().unwrap_err(),
        Refusal::Stopping
    );
    let drained = {
        let node = Arc::clone(&bed.node);
        tokio::spawn(async move { node.drained().await })
    };
    // Both that ran are waited for.
    std::fs::remove_file(&marks[0]).unwrap();
    assert_eq!(running.await.unwrap().unwrap().function_error, None);
    assert!(!drained.is_finished());
    std::fs::remove_file(&marks[1]).unwrap();
    drained.await.unwrap();
    assert!(!Path::new(&marks[2]).exists());
    assert_eq!(bed.node.pending_events(), 1);
    let bed = bed.restart().await;
    exists(&marks[2]).await;
    while bed.node.pending_events() > 0 {
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_client_goes_away_ends_or_finishes_as_its_policy_says() {
    let bed = Bed::start();
    bed.create("f", json!({})).await;
    for (policy, answers) in [("end", 0), ("finish", 1)] {
        let patch = json!({ "on_disconnect": policy });
        bed.node.set_serving(&target("f"), &patch).await.unwrap();
        let before: u64 = bed.description("f").boots.values().sum();
        let mark = bed.mark(policy);
        let gone = call(&bed, json!({ "do": "wait", "mark": mark }));
        exists(&mark).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        if policy == "finish" {
            assert_eq!(bed.description("f").serving.running, 1);
            std::fs::remove_file(&mark).unwrap();
        }
        bed.quiet("f").await;
        while bed.description("f").serving.running > 0 {
            pause().await;
        }
        // A boot counts when its invocation has ended by itself.
        let after: u64 = bed.description("f").boots.values().sum();
        assert_eq!(after - before, answers, "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_instance_that_dies_is_seen_and_named() {
    let bed = Bed::start();
    bed.create(
        "f",
        json!({ "RouseServing": { "isolation": "instance", "keep_alive": 3600 } }),
    )
    .await;
    let pid = answer(&bed.invoke("f", json!({})).await)["pid"]
        .as_i64()
        .unwrap();
    assert_eq!(bed.description("f").instances.idle, 1);
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    while bed.description("f").instances.idle > 0 {
        pause().await;
    }
    let deaths = bed.description("f").deaths;
    assert_eq!(
        (deaths["signal"], deaths["exit"], deaths["out_of_memory"]),
        (1, 0, 0)
    );
    bed.invoke("f", json!({ "do": "exit" })).await;
    assert_eq!(bed.description("f").deaths["exit"], 1);
    bed.quiet("f").await;
    assert_eq!(bed.invoke("f", json!({})).await.function_error, None);
}
